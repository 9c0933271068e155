//! Tier H: every call of every life through the library, on this kernel with stand-ins for VMM and
//! guest, is refused, or our process is killed before or after it.

use anyhow::{Context, Result, ensure};
use simulation::fault::{Mode, Site};

use super::syscalls::repair;
use super::{Extent, Report, Trial, perform};
use crate::lab::{Job, Lab, Outcome, Programs, Told, World};

/// The lives that this kernel can live: not those with PCI functions, kernel vsock or systemd.
pub const LIVES: [&str; 10] = ["L1", "L2", "L3", "L4", "L5", "L7", "L8", "L9", "L10", "L12"];
/// What happens at each site.
pub const MODES: [Mode; 3] = [Mode::Error, Mode::CrashBefore, Mode::CrashAfter];
/// Milliseconds for one life, whatever befalls it.
const LIMIT_MS: u64 = 150_000;

/// The job that lives a life with faults (none if it is empty).
pub fn job(world: &World, life: &str, faults: &str) -> Job {
    let path = |path: &std::path::Path| path.display().to_string();
    let words =
        vec![path(&world.programs.lab), "live".to_owned(), path(&world.file()), life.to_owned(), faults.to_owned()];
    Job { words, repair: repair(world), limit_ms: LIMIT_MS, ..Job::default() }
}

/// What a life tells that nothing befalls.
///
/// # Errors
/// It fails all the same, or leaves something.
pub fn undisturbed(programs: &Programs, life: &str) -> Result<Told> {
    let mut lab = Lab::open(programs)?;
    let job = job(lab.world(), life, "");
    let outcome = lab.run(&job)?;
    ensure!(outcome.leak().is_none(), "{life} itself leaves something: {outcome:#?}");
    let told = told(&outcome).with_context(|| format!("{life} itself fails: {outcome:#?}"))?;
    ensure!(told.wrong.is_empty(), "{life} itself: {told:#?}");
    let dies = life.starts_with("L10");
    ensure!(told.errors.is_empty() || dies, "{life} itself fails: {:?}", told.errors);
    lab.close()?;
    Ok(told)
}

/// What a life has told, if it came to its end.
pub fn told(outcome: &Outcome) -> Option<Told> {
    serde_json::from_str(outcome.run.out.lines().last()?).ok()
}

fn trials(life: &'static str, sites: Vec<Site>) -> Vec<Trial> {
    let all = sites.into_iter().flat_map(|site| MODES.map(|mode| (site.clone(), mode)));
    all.map(|(site, mode)| {
        let faults = format!("{site}={mode}");
        let plan = move |world: &World| job(world, life, &faults);
        Trial { site: format!("{life}/{site}"), fault: mode.to_string(), plan: Box::new(plan) }
    })
    .collect()
}

/// Runs the tier.
///
/// # Errors
/// A lab could not be made, or a life without faults failed.
pub fn run(programs: &Programs, lives: &[&'static str], extent: Extent) -> Result<Report> {
    let mut all = Vec::new();
    for life in lives {
        all.extend(trials(life, undisturbed(programs, life)?.visits));
    }
    perform("H", programs, all, extent, judge)
}

/// A life that was not killed has said that it is well; the fault was met.
fn judge(trial: &Trial, outcome: &Outcome) -> Option<String> {
    if outcome.run.signal.is_some() {
        // That life has a crash in it.
        let may_die = trial.fault.starts_with('C') || trial.site.starts_with("L9/");
        let is_meant = outcome.run.signal == Some(nix::libc::SIGKILL) && may_die;
        return (!is_meant).then(|| format!("killed: {outcome:#?}"));
    }
    let Some(told) = told(outcome) else { return Some(format!("it told nothing: {outcome:#?}")) };
    if !told.wrong.is_empty() {
        return Some(format!("{:?} after {:?}", told.wrong, told.errors));
    }
    None
}
