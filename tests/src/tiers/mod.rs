//! Faults on a real kernel, tier by tier: what is tried, how often, and what was left behind.
//!
//! * [`host`] (H): every call of every life through the library is refused, or our process is killed
//!   before or after it.
//! * [`syscalls`] (K): system calls of `sandboxctl` fail or kill it, by `strace --inject`.
//! * [`machine`] (V): real VMs; `sandboxctl` and its helpers are killed at all moments.
//!
//! Everything happens in [labs](crate::lab). A tier counts what it has done; a leak is a failure.

pub mod host;
pub mod machine;
pub mod syscalls;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use simulation::fault::Seed;

use crate::lab::{Job, Lab, Outcome, Programs, World};

/// How much of a tier is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Full,
    /// What has this in its name, which is its place and its fault.
    Named(String),
    /// A sample that a seed draws, until the time is over.
    Sample {
        /// The seed.
        seed: u64,
        /// How long runs may be begun.
        budget: Duration,
    },
}

/// What a lab shall do, once it is known which.
pub type Plan = Box<dyn Fn(&World) -> Job + Send + Sync>;

/// One run of a tier.
pub struct Trial {
    /// The place of the fault, by which places are counted.
    pub site: String,
    /// What happens there.
    pub fault: String,
    /// What a lab shall do.
    pub plan: Plan,
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial({} {})", self.site, self.fault)
    }
}

/// What a tier has done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// `H`, `K` or `V`.
    pub tier: &'static str,
    /// Different places.
    pub sites: usize,
    /// What was done there, in how many ways.
    pub modes: usize,
    /// Runs.
    pub runs: usize,
    /// Runs whose fault has struck.
    pub struck: usize,
    /// Runs that the extent leaves out.
    pub left_out: usize,
    /// Runs that left something behind, or were late.
    pub leaks: usize,
    /// What was left behind, late or otherwise wrong, in words.
    pub failures: Vec<String>,
    /// Seconds.
    pub took: Duration,
}

impl Report {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }

    /// Adds what another part of the tier has done.
    pub fn merge(&mut self, other: Self) {
        self.sites += other.sites;
        self.runs += other.runs;
        self.modes = self.modes.max(other.modes);
        self.struck += other.struck;
        self.left_out += other.left_out;
        self.leaks += other.leaks;
        self.failures.extend(other.failures);
        self.took += other.took;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sites {} runs {} modes {} leaks {} breaks {} struck {} left-out {} seconds {:.0}",
            self.tier,
            self.sites,
            self.runs,
            self.modes,
            self.leaks,
            self.failures.len() - self.leaks,
            self.struck,
            self.left_out,
            self.took.as_secs_f64()
        )
    }
}

/// Failures after which a tier ends: whoever reads them needs no more.
const FAILURES_MAX: usize = 25;
/// Labs that work side by side.
const LABS: usize = 2;

/// Puts what is drawn first to the front.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut seed = Seed(seed);
    for end in (1..items.len()).rev() {
        items.swap(end, seed.below(end + 1));
    }
}

/// Performs trials in labs, as far as the extent allows, and judges each outcome.
///
/// # Errors
/// A lab could not be made.
pub fn perform(
    tier: &'static str,
    programs: &Programs,
    mut trials: Vec<Trial>,
    extent: &Extent,
    judge: impl Fn(&Trial, &Outcome) -> Option<String> + Sync,
) -> Result<Report> {
    let begun = Instant::now();
    let budget = match extent {
        Extent::Full | Extent::Named(_) => Duration::MAX,
        Extent::Sample { seed, budget } => {
            shuffle(&mut trials, *seed);
            *budget
        }
    };
    let all = trials.len();
    if let Extent::Named(part) = extent {
        trials.retain(|trial| format!("{} {}", trial.site, trial.fault).contains(part));
    }
    let waiting = Mutex::new(VecDeque::from(trials));
    let report = Mutex::new(Report { tier, ..Report::default() });
    let seen = Mutex::new((BTreeSet::new(), BTreeSet::new()));
    let work = || -> Result<()> {
        let mut lab: Option<Lab> = None;
        while begun.elapsed() < budget {
            let Some(trial) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { break };
            let mut host = match lab.take() {
                Some(lab) => lab,
                None => Lab::open(programs)?,
            };
            let job = (trial.plan)(host.world());
            let outcome = host.run(&job)?;
            let leak = outcome.leak();
            let is_leak = leak.is_some();
            let wrong = leak.or_else(|| judge(&trial, &outcome));
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.runs += 1;
            report.struck += usize::from(outcome.struck.contains(&true) || is_struck(&outcome));
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0.insert(trial.site.clone());
            seen.1.insert(trial.fault.clone());
            drop(seen);
            match wrong {
                Some(why) => {
                    report.leaks += usize::from(is_leak);
                    eprintln!("tier {tier}: {} {}: {why}", trial.site, trial.fault);
                    report.failures.push(format!("{} {}: {why}", trial.site, trial.fault));
                    if report.failures.len() >= FAILURES_MAX {
                        break;
                    }
                }
                None => lab = Some(host),
            }
            if report.runs.is_multiple_of(100) {
                eprintln!("tier {tier}: {} of {all} runs, {} failures", report.runs, report.failures.len());
            }
        }
        lab.map_or(Ok(()), Lab::close)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..LABS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })?;
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (sites, modes) = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    (report.sites, report.modes) = (sites.len(), modes.len());
    report.left_out = all - report.runs;
    report.took = begun.elapsed();
    Ok(report)
}

/// Whether a fault that is no signal has struck: who injects says so.
fn is_struck(outcome: &Outcome) -> bool {
    outcome.run.signal.is_some() || outcome.run.err.contains("(INJECTED") || outcome.run.out.contains("\"struck\"")
}
