//! Which runs there are: generated from what a run without a fault meets.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use simulation::fault::{Errno, FaultPlan, Mode, Peer, PlannedFault, Seed, Site, applicable, seeded_plan};

use super::{Break, Reference, Report, run, setting};
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
        let plans: Vec<FaultPlan> = plans.into_iter().collect();
        for report in side_by_side(&plans, |plan| struck(dry, plan)) {
            self.add(&report);
        }
        self.took += begun.elapsed();
    }

    /// Adds what another set came to.
    pub fn merge(&mut self, other: Self) {
        self.sites.extend(other.sites);
        for (letter, count) in other.runs {
            *self.runs.entry(letter).or_default() += count;
        }
        self.events += other.events;
        self.leaks += other.leaks;
        self.broken += other.broken;
    }

    /// What failed, for a test's message.
    pub fn told(&self) -> String {
        format!("{} of {} runs broke a rule:\n{}", self.broken, self.count(), self.failures.join("\n"))
    }
}

/// Runs `plan`: what was generated from a site must strike there, unless another fault changes the way.
fn struck(dry: &Dry, plan: &FaultPlan) -> Report {
    let mut report = run(&dry.life, plan, Some(&dry.reference));
    let first = plan.faults.first().filter(|fault| dry.sites.contains(&fault.site));
    if let Some(missed) = first.filter(|_| report.struck.is_empty()) {
        report.breaks.push(Break { rule: "F1", what: format!("{missed} did not strike") });
    }
    // Thousands of reports are kept until they are counted.
    report.sites = Vec::new();
    report
}

/// Does `work` on each item, on all cores; the results in the order of the items.
pub fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let hands = std::thread::available_parallelism().map_or(1, NonZero::get);
    let part = |first: usize| items.iter().skip(first).step_by(hands).map(&work).collect::<Vec<R>>();
    let mut parts: Vec<std::vec::IntoIter<R>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..hands)
            .map(|first| {
                scope.spawn({
                    let part = &part;
                    move || part(first)
                })
            })
            .collect();
        let ended = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.map(Vec::into_iter).collect()
    });
    (0..items.len()).filter_map(|at| parts[at % hands].next()).collect()
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

/// A plan in which many parties are slow, by a seed.
pub fn slowed(dry: &Dry, seed: u64) -> FaultPlan {
    let mut seed = Seed(seed);
    let is_port = |site: &&Site| !matches!(site.port.as_str(), "ledger" | "store") && site.method != "wait_exit";
    let calls: Vec<Site> = dry.sites.iter().filter(is_port).cloned().collect();
    let slow = |site: Site| PlannedFault { site, mode: Mode::Slow };
    FaultPlan { faults: (0..20).filter_map(|_| seed.one_of(&calls).cloned()).map(slow).collect() }
}

/// Methods of ports that no life calls, nor what a fault leads to, besides those that are the runtime's
/// own to call.
///
/// # Panics
/// Never: the plans below are plans.
pub fn unmet(dry_runs: &[Dry]) -> Vec<String> {
    let mut met: BTreeSet<String> = dry_runs.iter().flat_map(|dry| dry.sites.iter().map(Site::call)).collect();
    for (id, plan) in ONLY_AFTER {
        let plan: FaultPlan = plan.parse().expect("a literal plan");
        let dry = dry_runs.iter().find(|dry| dry.life.id == id);
        let report = dry.map(|dry| run(&dry.life, &plan, Some(&dry.reference)));
        met.extend(report.iter().flat_map(|report| report.sites.iter().map(Site::call)));
    }
    let all = [
        (hypervisor::HypervisorProxy::PORT, hypervisor::HypervisorProxy::METHODS),
        (guest_agent::GuestAgentProxy::PORT, guest_agent::GuestAgentProxy::METHODS),
        (network_actor::NetworkHostProxy::PORT, network_actor::NetworkHostProxy::METHODS),
        (sharefs_actor::ShareFsHostProxy::PORT, sharefs_actor::ShareFsHostProxy::METHODS),
        (cgroup_actor::host::CgroupHostProxy::PORT, cgroup_actor::host::CgroupHostProxy::METHODS),
        (device_actor::host::DeviceHostProxy::PORT, device_actor::host::DeviceHostProxy::METHODS),
        (resource_actors::host::HostFactsProxy::PORT, resource_actors::host::HostFactsProxy::METHODS),
    ];
    let names = all.iter().flat_map(|(port, methods)| methods.iter().map(move |method| format!("{port}.{method}")));
    names.filter(|name| !met.contains(name) && !NOT_OURS.contains(&name.as_str())).collect()
}

/// Faults after which a party is asked what is true.
const ONLY_AFTER: [(&str, &str); 2] =
    [("L5", "device:hypervisor.remove_device#1=E"), ("L1", "supervisor:guest-agent.connect#1=E")];

/// What only a runtime calls, through the agent that a handle gives it.
const NOT_OURS: [&str; 17] = [
    "guest-agent.check",
    "guest-agent.create_sandbox",
    "guest-agent.destroy_sandbox",
    "guest-agent.create_container",
    "guest-agent.start_container",
    "guest-agent.remove_container",
    "guest-agent.update_container",
    "guest-agent.exec_process",
    "guest-agent.signal_process",
    "guest-agent.wait_process",
    "guest-agent.read_stdout",
    "guest-agent.read_stderr",
    "guest-agent.write_stdin",
    "guest-agent.close_stdin",
    "guest-agent.resize_terminal",
    "guest-agent.copy_file",
    "guest-agent.oom_event",
];
