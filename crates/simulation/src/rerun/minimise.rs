//! The least that still fails: ddmin (Zeller and Hildebrandt, 2002) over the commands of a trace, then
//! over the faults, then without the delays.

use std::collections::BTreeSet;

use resource_actors::trace::ReplayError;
use sandbox_model::trace::Event;

use super::script::Script;
use super::seeded::rerun;
use super::stress::{Stress, StressReport, plan, run};
use crate::fault::FaultPlan;

/// The least that still fails.
#[derive(Debug)]
pub struct Minimal {
    /// Commands of the trace, and how many are left.
    pub commands: (usize, usize),
    /// Faults of the plan, and how many are left.
    pub faults: (usize, usize),
    /// Copies of the trace's sandboxes that are left.
    pub sandboxes: usize,
    /// Runs that it took.
    pub runs: usize,
    /// The last run that failed, with its trace.
    pub report: StressReport,
}

/// Looks for the least of `events` that breaks a rule under `stress`; `None` if nothing does.
///
/// # Errors
/// [`ReplayError`]: the trace cannot be put under stress.
pub fn minimise(events: &[Event], stress: &Stress) -> Result<Option<Minimal>, ReplayError> {
    let script = Script::of(events)?;
    minimise_with(&script, stress, plan(&script, stress)?, &|report| !report.violations.is_empty())
}

/// As [`minimise`], with a plan of faults instead of a seed, and with what counts as a failure.
///
/// # Errors
/// As [`minimise`].
pub fn minimise_plan(
    events: &[Event],
    stress: &Stress,
    plan: FaultPlan,
    is_failure: &dyn Fn(&StressReport) -> bool,
) -> Result<Option<Minimal>, ReplayError> {
    minimise_with(&Script::of(events)?, stress, plan, is_failure)
}

fn minimise_with(
    script: &Script,
    stress: &Stress,
    plan: FaultPlan,
    is_failure: &dyn Fn(&StressReport) -> bool,
) -> Result<Option<Minimal>, ReplayError> {
    let (mut runs, mut last) = (0, None);
    let mut fails = |script: &Script, stress: &Stress, plan: &FaultPlan| {
        runs += 1;
        let report = run(script, stress, plan.clone())?;
        let failed = is_failure(&report);
        if failed {
            last = Some(report);
        }
        Ok::<_, ReplayError>(failed)
    };
    if !fails(script, stress, &plan)? {
        return Ok(None);
    }
    let mut stress = stress.clone();
    let alone = Stress { sandboxes: 1, ..stress.clone() };
    if stress.sandboxes > 1 && fails(script, &alone, &plan)? {
        stress = alone;
    }
    let sent: Vec<u64> = script.acts.iter().filter(|act| act.command().is_some()).map(|act| act.seq).collect();
    let kept = ddmin(&sent, &mut |kept| fails(&script.keeping(&set(kept)), &stress, &plan))?;
    let script = script.keeping(&set(&kept));
    let planned = plan.faults.len();
    let faults = ddmin(&plan.faults, &mut |faults| fails(&script, &stress, &FaultPlan { faults: faults.to_vec() }))?;
    let plan = FaultPlan { faults };
    // Seed 0 has no delays. Then much happens at the same instant, and the seed may not decide its order.
    let prompt = Stress { seed: 0, ..stress.clone() };
    if stress.seed != 0 && fails(&script, &prompt, &plan)? && is_made_again(&run(&script, &prompt, plan.clone())?)? {
        stress = prompt;
    }
    // The last run that failed is not always the least one.
    fails(&script, &stress, &plan)?;
    let (commands, faults) = ((sent.len(), kept.len()), (planned, plan.faults.len()));
    Ok(last.map(|report| Minimal { commands, faults, sandboxes: stress.sandboxes, runs, report }))
}

/// Whether the seed gives a run once more.
fn is_made_again(report: &StressReport) -> Result<bool, ReplayError> {
    Ok(rerun(&report.header, &report.events, &report.file())?.difference.is_none())
}

fn set(seqs: &[u64]) -> BTreeSet<u64> {
    seqs.iter().copied().collect()
}

/// The least part of `items` for which `fails` holds, which holds for all of them: no single item can be
/// left out.
///
/// # Errors
/// Those of `fails`.
pub fn ddmin<T: Clone, E>(items: &[T], fails: &mut dyn FnMut(&[T]) -> Result<bool, E>) -> Result<Vec<T>, E> {
    let (mut items, mut parts) = (items.to_vec(), 2);
    if !items.is_empty() && fails(&[])? {
        return Ok(Vec::new());
    }
    while items.len() >= 2 {
        let length = items.len().div_ceil(parts);
        let mut smaller = None;
        for begin in (0..items.len()).step_by(length) {
            let end = (begin + length).min(items.len());
            let rest: Vec<T> = items[..begin].iter().chain(&items[end..]).cloned().collect();
            if fails(&rest)? {
                smaller = Some(rest);
                break;
            }
        }
        match smaller {
            Some(rest) => (items, parts) = (rest, parts.saturating_sub(1).max(2)),
            None if parts >= items.len() => break,
            None => parts = (parts * 2).min(items.len()),
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_not_needed_is_left() {
        let items: Vec<u32> = (0..100).collect();
        for needed in [vec![], vec![7], vec![3, 97], vec![0, 1, 50, 99]] {
            let mut runs = 0;
            let least = ddmin(&items, &mut |part| {
                runs += 1;
                Ok::<_, ()>(needed.iter().all(|item| part.contains(item)))
            });
            assert_eq!(least, Ok(needed));
            assert!(runs < 400, "{runs}");
        }
        assert_eq!(ddmin::<u32, &str>(&items, &mut |_| Err("cannot run")), Err("cannot run"));
    }
}
