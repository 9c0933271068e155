//! All runs of the simulated tier: `cargo xtask faults` builds and starts this with optimisation.
//!
//! Prints one line for each life and a sum; exit code 1 if a rule was broken anywhere.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use lifecycle_tests::faults::enumerate::{
    Dry, SECOND, Tally, dry_runs, followed_by, sample, side_by_side, singles, slowed, swarm,
};
use lifecycle_tests::faults::{run, setting};
use lifecycle_tests::lifecycles::lifecycle;
use simulation::fault::{FaultPlan, Mode, PlannedFault};

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Runs of single faults of one life at most.
    singles: usize,
    /// Seeds of many faults for each life.
    swarms: u64,
    /// Pairs of L12.
    pairs: usize,
}

const FULL: Extent = Extent { singles: usize::MAX, swarms: 100, pairs: 3000 };
const QUICK: Extent = Extent { singles: 60, swarms: 10, pairs: 100 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, life, plan] = arguments.as_slice()
        && flag == "--probe"
    {
        return probe(life, plan);
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let extent = if quick { QUICK } else { FULL };
    let (begun, mut sum) = (Instant::now(), Tally::default());
    let dry_runs = dry_runs();
    for dry in &dry_runs {
        let mut tally = Tally::default();
        tally.add(&dry.report);
        tally.run_all(dry, sample(singles(dry), extent.singles, 1));
        if !dry.life.is_interrupted {
            tally.run_all(dry, (0..extent.swarms).map(|seed| swarm(dry, seed)));
            tally.run_all(dry, (0..extent.swarms / 10).map(|seed| slowed(dry, seed)));
        }
        if dry.life.id == "L12" {
            tally.run_all(dry, pairs(dry, extent.pairs));
        }
        line(dry.life.id, &tally);
        for failure in &tally.failures {
            say(failure);
        }
        sum.merge(tally);
    }
    sum.took = begun.elapsed();
    line("all", &sum);
    let letters: Vec<String> = sum.runs.iter().map(|(letter, count)| format!("{letter} {count}")).collect();
    say(&format!("runs by mode: {}", letters.join(", ")));
    if sum.broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One life with one plan: prints the rules that did not hold.
fn probe(life: &str, plan: &str) -> ExitCode {
    let (Some(life), Ok(plan)) = (lifecycle(life, &setting()), plan.parse::<FaultPlan>()) else {
        say("no such life, or no such plan");
        return ExitCode::from(2);
    };
    let dry = run(&life, &FaultPlan::default(), None);
    let report = run(&life, &plan, Some(&dry.reference));
    let broken: BTreeSet<&str> = dry.breaks.iter().chain(&report.breaks).map(|broken| broken.rule).collect();
    say(&broken.into_iter().collect::<Vec<_>>().join(" "));
    ExitCode::SUCCESS
}

/// Faults in the undo of a fault, crashes in the recovery of a crash: every first fault of the life in
/// turn, a few of its followers each.
fn pairs(dry: &Dry, count: usize) -> Vec<FaultPlan> {
    let firsts: Vec<PlannedFault> = dry
        .sites
        .iter()
        .flat_map(|site| [Mode::Error, Mode::CrashAfter].map(|mode| PlannedFault { site: site.clone(), mode }))
        .collect();
    let each = (count / firsts.len().max(1)).max(1);
    let stride = (firsts.len() / count.max(1)).max(1);
    let firsts: Vec<(u64, &PlannedFault)> = (0..).zip(firsts.iter().step_by(stride)).collect();
    let followers = |(seed, first): &(u64, &PlannedFault)| sample(followed_by(dry, first, &SECOND), each, *seed);
    let mut plans: Vec<FaultPlan> = side_by_side(&firsts, followers).into_iter().flatten().collect();
    plans.truncate(count);
    say(&format!("{}: {} pairs, drawn by the seeds 0 to {}", dry.life.id, plans.len(), firsts.len().saturating_sub(1)));
    plans
}

fn line(name: &str, tally: &Tally) {
    let Tally { sites, runs, events, leaks, broken, took, .. } = tally;
    let (sites, modes, runs) = (sites.len(), runs.len(), tally.count());
    say(&format!(
        "{name:5} sites {sites:5}  runs {runs:6}  modes {modes:2}  events {events:9}  leaks {leaks}  breaks {broken}  {:.1} s",
        took.as_secs_f64()
    ));
}

fn say(text: &str) {
    // Whoever has closed the pipe has read enough.
    let _ = writeln!(std::io::stdout(), "{text}");
}
