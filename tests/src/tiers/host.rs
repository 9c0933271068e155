//! Tier H: every call of every life through the library, on this kernel with stand-ins for VMM and
//! guest, is refused, or our process is killed before or after it.

use anyhow::{Context, Result, ensure};
use simulation::fault::{Mode, Site};

use super::syscalls::repair;
use super::{Extent, Report, Trial, perform};
use crate::lab::{Ended, Job, Lab, Outcome, Programs, Told, World};

/// The lives that this kernel can live: not those with PCI functions, kernel vsock or systemd.
pub const LIVES: [&str; 11] = ["L1", "L2", "L3", "L4", "L5", "L7", "L8", "L9", "L10", "L12", "L15"];
/// The life that another process takes over half-way.
const TAKEN_OVER: &str = "L15";
/// What happens at each site.
pub const MODES: [Mode; 3] = [Mode::Error, Mode::CrashBefore, Mode::CrashAfter];
/// Milliseconds for one life, whatever befalls it.
const LIMIT_MS: u64 = 150_000;

/// The words that live a life, or the rest of it, with faults (none if it is empty).
fn words(world: &World, part: &str, life: &str, faults: &str) -> Vec<String> {
    let (program, file) = (world.programs.lab.display().to_string(), world.file().display().to_string());
    vec![program, part.to_owned(), file, life.to_owned(), faults.to_owned()]
}

/// The job that lives a life with faults (none if it is empty).
pub fn job(world: &World, life: &str, faults: &str) -> Job {
    let mut all = repair(world);
    if life == TAKEN_OVER {
        all.insert(0, words(world, "resume", life, ""));
    }
    Job { words: words(world, "live", life, faults), repair: all, limit_ms: LIMIT_MS, ..Job::default() }
}

/// The job in which the process that takes over meets the faults.
fn job_of_the_heir(world: &World, life: &str, faults: &str) -> Job {
    Job {
        before: vec![words(world, "live", life, "")],
        words: words(world, "resume", life, faults),
        repair: repair(world),
        limit_ms: LIMIT_MS,
        ..Job::default()
    }
}

/// What a life tells that nothing befalls; with what it tells after it was taken over.
///
/// # Errors
/// It fails all the same, or leaves something.
pub fn undisturbed(programs: &Programs, life: &str) -> Result<(Told, Told)> {
    let mut lab = Lab::open(programs)?;
    let job = job(lab.world(), life, "");
    let outcome = lab.run(&job)?;
    ensure!(outcome.leak().is_none(), "{life} itself leaves something: {outcome:#?}");
    let first = told(&outcome.run).with_context(|| format!("{life} itself fails: {outcome:#?}"))?;
    let second = outcome.repair.first().and_then(told).unwrap_or_default();
    for part in [&first, &second] {
        ensure!(part.wrong.is_empty(), "{life} itself: {part:#?}");
        let dies = life.starts_with("L10");
        ensure!(part.errors.is_empty() || dies, "{life} itself fails: {:?}", part.errors);
    }
    ensure!(life != TAKEN_OVER || !second.visits.is_empty(), "{life} is not taken over: {outcome:#?}");
    lab.close()?;
    Ok((first, second))
}

/// What a life has told, if it came to its end.
pub fn told(ended: &Ended) -> Option<Told> {
    serde_json::from_str(ended.out.lines().last()?).ok()
}

fn trials(life: &'static str, sites: Vec<Site>, by: fn(&World, &str, &str) -> Job, part: &str) -> Vec<Trial> {
    let all = sites.into_iter().flat_map(|site| MODES.map(|mode| (site.clone(), mode)));
    all.map(|(site, mode)| {
        let faults = format!("{site}={mode}");
        let plan = move |world: &World| by(world, life, &faults);
        Trial { site: format!("{life}{part}/{site}"), fault: mode.to_string(), plan: Box::new(plan) }
    })
    .collect()
}

/// Runs the tier.
///
/// # Errors
/// A lab could not be made, or a life without faults failed.
pub fn run(programs: &Programs, lives: &[&'static str], extent: &Extent) -> Result<Report> {
    let mut all = Vec::new();
    for life in lives {
        let (first, second) = undisturbed(programs, life)?;
        all.extend(trials(life, first.visits, job, ""));
        all.extend(trials(life, second.visits, job_of_the_heir, " taken over"));
    }
    perform("H", programs, all, extent, judge)
}

/// A life that was not killed has said that it is well; the fault was met.
fn judge(trial: &Trial, outcome: &Outcome) -> Option<String> {
    let heir = outcome.repair.first().and_then(told).filter(|heir| !heir.wrong.is_empty());
    if let Some(heir) = heir {
        return Some(format!("{:?} after {:?}", heir.wrong, heir.errors));
    }
    if outcome.run.signal.is_some() {
        // These lives have a crash in them.
        let may_die = trial.fault.starts_with('C') || ["L9/", "L15/"].iter().any(|life| trial.site.starts_with(life));
        let is_meant = outcome.run.signal == Some(nix::libc::SIGKILL) && may_die;
        return (!is_meant).then(|| format!("killed: {outcome:#?}"));
    }
    let Some(told) = told(&outcome.run) else { return Some(format!("it told nothing: {outcome:#?}")) };
    if !told.wrong.is_empty() {
        return Some(format!("{:?} after {:?}", told.wrong, told.errors));
    }
    None
}
