//! Which runs there are: generated from what a run without a fault meets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use simulation::fault::{Errno, FaultPlan, Mode, Peer, PlannedFault, Seed, Site, applicable, seeded_plan};

use super::{Reference, Report, run, setting};
use crate::lifecycles::{LIFECYCLES, Lifecycle, lifecycle};

/// A life, and what it is without a fault.
#[derive(Debug)]
pub struct Dry {
    /// The life.
    pub life: Lifecycle,
    /// The sites that it meets, in order.
    pub sites: Vec<Site>,
    /// What it looks like.
    pub reference: Reference,
    /// What is wrong with it even without a fault.
    pub report: Report,
}

/// Lives every life without a fault.
///
/// # Panics
/// Never: the simulated host has all that lives need.
pub fn dry_runs() -> Vec<Dry> {
    let dry = |(id, _): (&str, &str)| {
        let life = lifecycle(id, &setting()).expect("the simulated host has all that lives need");
        let report = run(&life, &FaultPlan::default(), None);
        Dry { life, sites: report.sites.clone(), reference: report.reference.clone(), report }
    };
    LIFECYCLES.into_iter().map(dry).collect()
}

/// The modes that a life tries at a site.
pub fn modes(life: &Lifecycle, site: &Site) -> Vec<Mode> {
    let is_record = matches!(site.port.as_str(), "ledger" | "store");
    if life.is_interrupted {
        let callers = vec![Mode::Interrupted, Mode::Stopped, Mode::GivenUp];
        return if is_record { Vec::new() } else { callers };
    }
    applicable(site)
}

/// All runs of one fault in one life.
pub fn singles(dry: &Dry) -> Vec<FaultPlan> {
    let of = |site: &Site| modes(&dry.life, site).into_iter().map(|mode| FaultPlan::one(site.clone(), mode)).collect();
    dry.sites.iter().flat_map(|site| -> Vec<FaultPlan> { of(site) }).collect()
}

/// A fault at k, and another at each site that is met only because of it: in the undo (F2), or in the
/// recovery of the next process (F3).
pub fn followed_by(dry: &Dry, first: &PlannedFault, second: &[Mode]) -> Vec<FaultPlan> {
    let alone = run(&dry.life, &FaultPlan { faults: vec![first.clone()] }, Some(&dry.reference));
    let Some(at) = alone.sites.iter().position(|site| *site == first.site) else { return Vec::new() };
    let later = alone.sites[at + 1..].iter().filter(|site| !dry.sites.contains(site));
    let pair =
        |site: &Site, mode: Mode| FaultPlan { faults: vec![first.clone(), PlannedFault { site: site.clone(), mode }] };
    // What begins anew after the undo has been seen with single faults.
    let undo = later.take(UNDO_SITES_MAX).collect::<Vec<_>>();
    let mut plans = Vec::new();
    for site in undo {
        let possible = applicable(site);
        plans.extend(second.iter().filter(|mode| possible.contains(mode)).map(|mode| pair(site, *mode)));
    }
    plans
}

/// An undo has at most this many calls and records.
const UNDO_SITES_MAX: usize = 120;

/// What a set of runs came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Different sites at which something failed.
    pub sites: BTreeSet<(&'static str, Site)>,
    /// Runs of each letter of the fault model.
    pub runs: BTreeMap<&'static str, usize>,
    /// Messages, calls and records that were looked at.
    pub events: u64,
    /// Runs that left something behind.
    pub leaks: usize,
    /// Runs in which a rule did not hold.
    pub broken: usize,
    /// The first of them, each with what was wrong.
    pub failures: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Failures that are told in full.
const TOLD_MAX: usize = 25;

impl Tally {
    /// Runs in all.
    pub fn count(&self) -> usize {
        self.runs.values().sum()
    }

    /// Notes a run.
    pub fn add(&mut self, report: &Report) {
        let letter = report.plan.faults.first().map_or("-", |fault| fault.mode.letter());
        *self.runs.entry(letter).or_default() += 1;
        self.sites.extend(report.plan.faults.iter().map(|fault| (report.life, fault.site.clone())));
        self.events += report.events;
        if report.breaks.is_empty() {
            return;
        }
        let is_leak = report.breaks.iter().any(|broken| broken.rule == "I11");
        self.leaks += usize::from(is_leak);
        self.broken += 1;
        if self.failures.len() < TOLD_MAX {
            let breaks: Vec<String> = report.breaks.iter().take(4).map(|broken| format!("    {broken}")).collect();
            self.failures.push(format!("{}\n{}", report.reproduce(), breaks.join("\n")));
        }
    }

    /// Runs `plans` of one life.
    pub fn run_all(&mut self, dry: &Dry, plans: impl IntoIterator<Item = FaultPlan>) {
        let begun = Instant::now();
        for plan in plans {
            self.add(&run(&dry.life, &plan, Some(&dry.reference)));
        }
        self.took += begun.elapsed();
    }

    /// What failed, for a test's message.
    pub fn told(&self) -> String {
        format!("{} of {} runs broke a rule:\n{}", self.broken, self.count(), self.failures.join("\n"))
    }
}

/// A part of `plans`, the same for the same seed: every `stride`-th, from a place that the seed names.
pub fn sample(plans: Vec<FaultPlan>, count: usize, seed: u64) -> Vec<FaultPlan> {
    if plans.len() <= count {
        return plans;
    }
    let mut seed = Seed(seed);
    let mut plans = plans;
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        taken.push(plans.swap_remove(seed.below(plans.len())));
    }
    taken
}

/// A plan of several faults for a life, by a seed.
pub fn swarm(dry: &Dry, seed: u64) -> FaultPlan {
    let mut sites = dry.sites.clone();
    // Sites that only an undo or a second life meets: the same calls, later ones of them.
    let later: Vec<Site> = sites.iter().map(|site| Site { nth: site.nth + 1, ..site.clone() }).collect();
    sites.extend(later);
    seeded_plan(seed, &sites, 6)
}

/// The modes of a second fault in an undo or a recovery.
pub const SECOND: [Mode; 10] = [
    Mode::Error,
    Mode::Hang,
    Mode::HangAfter,
    Mode::CrashBefore,
    Mode::CrashAfter,
    Mode::Late,
    Mode::Malformed,
    Mode::Partial,
    Mode::Resource(Errno::Ebusy),
    Mode::Dies(Peer::Vmm),
];
