//! Tier V: real VMs. `sandboxctl` is killed at all moments of a life, its helpers at every stage; it is
//! told to end at every step, twice if need be; and parties hang.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::libc::{SIGKILL, SIGSTOP, SIGTERM};
use serde_json::Value;

use super::syscalls::{repair, tool};
use super::{Extent, Report, Trial, perform};
use crate::lab::{Job, Lab, Outcome, Programs, Strike, When, World};

/// Milliseconds for one life, whatever befalls it.
const LIMIT_MS: u64 = 180_000;
/// Moments by the clock at which `sandboxctl` is killed.
const MOMENTS: u64 = 60;
/// How long a death may stay unnoticed before the run is told to end.
const UNNOTICED_US: u64 = 30_000_000;
/// Between two signals of somebody impatient.
const IMPATIENCE_US: [u64; 3] = [0, 5_000, 50_000];

/// A process that can be struck: the begin of its name.
const HELPERS: [&str; 3] = ["qemu-system", "virtiofsd", "vhost-device"];
/// The same where stand-ins take their places.
const STAND_INS: [&str; 3] = ["fake-vmm", "virtiofsd", "fake-vsock"];

fn trace() -> PathBuf {
    "/dev/shm/trace".into()
}

/// `sandboxctl run` of a bundle, traced.
fn words(world: &World, bundle: &str) -> Vec<String> {
    let mut words = tool(world);
    let bundle = world.bundle(bundle).display().to_string();
    words.extend(["run", &bundle, "--id", &world.name, "--host", "real", "--netns", World::POD].map(str::to_owned));
    words.extend(["--trace".to_owned(), trace().display().to_string()]);
    words
}

fn job(world: &World, bundle: &str, strikes: Vec<Strike>) -> Job {
    let mut all = vec![vec!["rm".to_owned(), "-f".to_owned(), trace().display().to_string()]];
    all.extend(repair(world));
    Job { words: words(world, bundle), strikes, repair: all, limit_ms: LIMIT_MS, ..Job::default() }
}

fn strike(when: When, signal: i32, to: Option<&str>) -> Strike {
    Strike { when, signal, to: to.map(str::to_owned) }
}

/// A life without faults: how long it takes, and its records.
#[derive(Debug)]
struct Known {
    took_us: u64,
    records: usize,
    /// Records after which each stage has been reached, with its name.
    stages: Vec<(&'static str, usize)>,
}

/// What each stage ends with: the supervisor's answer to this message.
const STAGES: [(&str, &str); 6] = [
    ("prepared", "PrepareBeforeStartVm"),
    ("started", "StartVm"),
    ("running", "SetupAfterStartVm"),
    ("root", "SetUpRootfs"),
    ("volumes", "SetUpVolumes"),
    ("hotplug", "UpdateLinuxResources"),
];

fn know(programs: &Programs) -> Result<Known> {
    let mut lab = Lab::open(programs)?;
    let mut job = job(lab.world(), "quick", Vec::new());
    job.repair.insert(0, vec!["cat".to_owned(), trace().display().to_string()]);
    let outcome = lab.run(&job)?;
    ensure!(outcome.run.code == Some(0), "the life itself fails: {}", outcome.run.err);
    ensure!(outcome.leak().is_none(), "the life itself leaves something: {:?}", outcome.difference);
    lab.close()?;
    let lines: Vec<Value> = outcome.repair[0].out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let place = |message: &str| {
        lines.iter().position(|line| line["event"] == "replied" && line["message"] == message).map(|at| at + 1)
    };
    let stages = STAGES.iter().filter_map(|(stage, message)| Some((*stage, place(message)?))).collect::<Vec<_>>();
    ensure!(stages.len() == STAGES.len(), "the trace names only {stages:?}");
    Ok(Known { took_us: outcome.run.took_ms * 1000, records: lines.len(), stages })
}

/// `sandboxctl` dies: by the clock, and by what it has done.
fn deaths(known: &Known, per_record: usize) -> Vec<Trial> {
    let by_clock = (0..MOMENTS).map(|n| (format!("clock#{n}"), When::After(known.took_us * n / MOMENTS)));
    let by_record = (1..=known.records)
        .step_by(per_record)
        .map(|record| (format!("record#{record}"), When::Lines(trace(), record)));
    by_clock
        .chain(by_record)
        .map(|(site, when)| {
            let plan = move |world: &World| job(world, "quick", vec![strike(when.clone(), SIGKILL, None)]);
            Trial { site, fault: "SIGKILL".to_owned(), plan: Box::new(plan) }
        })
        .collect()
}

/// A helper dies or hangs at each stage. A death must be noticed; of a hang, at least the end must come.
fn helpers(known: &Known, names: [&'static str; 3]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (stage, record) in &known.stages {
        for name in names {
            for (signal, fault, patience) in [(SIGKILL, "killed", UNNOTICED_US), (SIGSTOP, "stopped", 500_000)] {
                let (record, stage) = (*record, *stage);
                let plan = move |world: &World| {
                    let first = strike(When::Lines(trace(), record), signal, Some(name));
                    job(world, "long", vec![first, strike(When::Later(patience), SIGTERM, None)])
                };
                trials.push(Trial { site: format!("{stage}:{name}"), fault: fault.to_owned(), plan: Box::new(plan) });
            }
        }
    }
    trials
}

/// `sandboxctl` is told to end, once or twice.
fn endings(known: &Known) -> Vec<Trial> {
    let mut trials = Vec::new();
    let stages = known.stages.iter().map(|(_, record)| *record);
    let last = stages.clone().max().unwrap_or(0);
    let records: BTreeSet<usize> = (1..=known.records).step_by(7).chain(stages).collect();
    for record in records {
        // What comes after the container's end comes only if it ends.
        let bundle = if record <= last { "long" } else { "quick" };
        let once = move |world: &World| {
            // It must leave nothing by itself: there is nobody to put it right.
            let job = job(world, bundle, vec![strike(When::Lines(trace(), record), SIGTERM, None)]);
            Job { repair: job.repair[..1].to_vec(), ..job }
        };
        let site = format!("record#{record}");
        trials.push(Trial { site: site.clone(), fault: "SIGTERM".to_owned(), plan: Box::new(once) });
        for pause in IMPATIENCE_US {
            let twice = move |world: &World| {
                let first = strike(When::Lines(trace(), record), SIGTERM, None);
                job(world, bundle, vec![first, strike(When::Later(pause), SIGTERM, None)])
            };
            trials.push(Trial {
                site: site.clone(),
                fault: format!("SIGTERM twice, {pause} us"),
                plan: Box::new(twice),
            });
        }
    }
    trials
}

/// Runs the part with real VMs.
///
/// # Errors
/// A lab could not be made, or a life without faults failed.
pub fn run(programs: &Programs, extent: &Extent) -> Result<Report> {
    let known = know(programs)?;
    let mut trials = deaths(&known, (known.records / 60).max(1));
    trials.extend(helpers(&known, HELPERS));
    perform("V", programs, trials, extent, judge).context("tier V")
}

/// Runs the part in which stand-ins will do: whoever is told to end does, whatever hangs.
///
/// # Errors
/// As [`run`].
pub fn run_with_stand_ins(programs: &Programs, extent: &Extent) -> Result<Report> {
    let known = know(programs)?;
    let mut trials = endings(&known);
    trials.extend(helpers(&known, STAND_INS));
    trials.extend(deaths(&known, 2));
    perform("V (stand-ins)", programs, trials, extent, judge).context("tier V")
}

/// What must be true beside that nothing is left.
fn judge(trial: &Trial, outcome: &Outcome) -> Option<String> {
    let told = &outcome.run.err;
    if told.contains("panicked at") {
        return Some(format!("panicked: {outcome:#?}"));
    }
    if trial.fault == "killed" && outcome.struck.first() == Some(&true) {
        // The helper's death, not the signal that comes if it stays unnoticed.
        let is_noticed =
            outcome.struck.len() == 1 && outcome.run.code.is_some_and(|code| code != 0) && told.contains("error[");
        return (!is_noticed).then(|| format!("its death stays unnoticed: {outcome:#?}"));
    }
    None
}
