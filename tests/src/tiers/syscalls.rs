//! Tier K: system calls of `sandboxctl run` fail, or kill it.
//!
//! `strace --inject` strikes the n-th call of a kind in each thread of the program; the helpers that it
//! starts are let go at their `execve`. One run without faults tells how often each call is made.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{Extent, Report, Trial, perform};
use crate::lab::{Job, Lab, Outcome, Programs, World};

/// What may fail, and how. Most writes wake a thread, which does not fail: they only kill.
pub const CALLS: [(&str, &[&str]); 22] = [
    ("mount", &["EPERM", "ENOMEM"]),
    ("move_mount", &["EPERM", "ENOSPC", "EBUSY"]),
    ("open_tree", &["EMFILE", "ENOMEM", "EPERM"]),
    ("mount_setattr", &["EPERM", "ENOMEM"]),
    ("umount2", &["EBUSY", "EPERM"]),
    ("openat2", &["EMFILE", "ENOMEM", "EPERM"]),
    ("mkdirat", &["ENOSPC", "EPERM", "ENOMEM"]),
    ("mkdir", &["ENOSPC", "EPERM"]),
    ("unlinkat", &["EBUSY", "EPERM", "EIO"]),
    ("unlink", &["EBUSY", "EIO"]),
    ("rmdir", &["EBUSY", "EIO"]),
    ("write", &[]),
    ("sendmsg", &["ENOMEM", "EPERM"]),
    ("sendto", &["ENOMEM", "EPERM"]),
    ("ioctl", &["EBUSY", "EPERM", "ENOMEM"]),
    ("clone3", &["ENOMEM"]),
    ("execve", &["ENOMEM", "EIO"]),
    ("connect", &["EMFILE", "EPERM"]),
    ("setns", &["EPERM", "ENOMEM"]),
    ("pidfd_open", &["EMFILE", "ENOMEM"]),
    ("pidfd_send_signal", &["EPERM"]),
    ("unshare", &["EPERM", "ENOMEM", "ENOSPC"]),
];

/// How a record of the ledger may fail.
const LEDGER_ERRORS: [&str; 4] = ["ENOSPC", "EIO", "EINTR", "ENOMEM"];

/// Milliseconds for one run under strace.
const LIMIT_MS: u64 = 60_000;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// A shared directory, a container, three volumes (L3), a pod's network of one endpoint.
    Container,
    /// Three endpoints (L8) beside the container.
    ThreeEndpoints,
}

impl Life {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Container, Self::ThreeEndpoints];

    const fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::ThreeEndpoints => "three-endpoints",
        }
    }

    /// The words of `sandboxctl run`.
    pub fn words(self, world: &World) -> Vec<String> {
        let netns = match self {
            Self::Container => World::POD,
            Self::ThreeEndpoints => World::POD_OF_THREE,
        };
        let mut words = tool(world);
        let bundle = world.bundle("quick").display().to_string();
        // Cgroups are the kernel's: the name must be the lab's own.
        words.extend(["run", &bundle, "--id", &world.name, "--host", "real", "--netns", netns].map(str::to_owned));
        words.push("--quiet".to_owned());
        words
    }
}

/// `sandboxctl` with the lab's configuration.
pub fn tool(world: &World) -> Vec<String> {
    let path = world.programs.sandboxctl.display().to_string();
    vec![path, "--config".to_owned(), world.config.display().to_string()]
}

/// Puts right what a dead process has left.
pub fn repair(world: &World) -> Vec<Vec<String>> {
    let mut words = tool(world);
    words.extend(["cleanup", "--all"].map(str::to_owned));
    vec![words]
}

fn strace(inject: &[String], trace: &str, words: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = ["strace", "-f", "-qq", "--detach-on=execve", "-e"].map(str::to_owned).into();
    all.push(format!("trace={trace}"));
    all.push("-e".to_owned());
    all.push("signal=none".to_owned());
    for inject in inject {
        all.push("-e".to_owned());
        all.push(format!("inject={inject}"));
    }
    all.push("--".to_owned());
    all.extend(words);
    all
}

/// Runs a life without faults: what strace sees of `calls`, of one file or of all.
fn look(programs: &Programs, life: Life, calls: &str, file: Option<fn(&World) -> String>) -> Result<String> {
    let mut lab = Lab::open(programs)?;
    let log = "/dev/shm/census";
    let mut words = strace(&[], calls, life.words(lab.world()));
    words.splice(1..1, ["-o".to_owned(), log.to_owned()]);
    if let Some(file) = file {
        words.splice(1..1, ["-P".to_owned(), file(lab.world())]);
    }
    let show = vec!["cat".to_owned(), log.to_owned()];
    let remove = vec!["rm".to_owned(), log.to_owned()];
    let job = Job { words, repair: vec![show, remove], limit_ms: LIMIT_MS, ..Job::default() };
    let outcome = lab.run(&job)?;
    ensure!(outcome.run.code == Some(0), "the life itself fails: {outcome:#?}");
    ensure!(outcome.difference.is_empty(), "the life itself leaves something: {outcome:#?}");
    lab.close()?;
    Ok(outcome.repair.into_iter().next().context("the census was shown")?.out)
}

fn ledger(world: &World) -> String {
    world.state.join(&world.name).join("ledger.jsonl").display().to_string()
}

/// Counts calls of a log of `strace -f`, by thread; each kind's largest count.
fn count(log: &str) -> BTreeMap<&'static str, usize> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        *counts.entry((thread, name)).or_default() += 1;
    }
    let most = |name: &str| counts.iter().filter(|((_, call), _)| *call == name).map(|(_, count)| *count).max();
    CALLS.iter().filter_map(|(name, _)| Some((*name, most(name)?))).collect()
}

/// Every trial of a life.
fn trials(programs: &Programs, life: Life) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    let mut add = |call: &'static str, what: &str, file: Option<fn(&World) -> String>, nth: usize, fault: String| {
        let inject = format!("{call}:{fault}:when={nth}");
        let plan = move |world: &World| {
            let mut words = strace(std::slice::from_ref(&inject), call, life.words(world));
            if let Some(file) = file {
                words.splice(1..1, ["-P".to_owned(), file(world)]);
            }
            Job { words, repair: repair(world), limit_ms: LIMIT_MS, ..Job::default() }
        };
        trials.push(Trial { site: format!("{}:{what}#{nth}", life.name()), fault, plan: Box::new(plan) });
    };
    let names = CALLS.map(|(name, _)| name).join(",");
    let counts = count(&look(programs, life, &names, None)?);
    for (call, errnos) in CALLS {
        for nth in 1..=counts.get(call).copied().unwrap_or(0) {
            let errors = errnos.iter().map(|errno| format!("error={errno}"));
            for fault in errors.chain(["signal=SIGKILL".to_owned()]) {
                add(call, call, None, nth, fault);
            }
        }
    }
    let records = count(&look(programs, life, "write", Some(ledger))?).get("write").copied().unwrap_or(0);
    for nth in 1..=records {
        for errno in LEDGER_ERRORS {
            add("write", "ledger", Some(ledger), nth, format!("error={errno}"));
        }
    }
    Ok(trials)
}

/// Runs the tier.
///
/// # Errors
/// A lab could not be made, or a life without faults failed.
pub fn run(programs: &Programs, extent: &Extent) -> Result<Report> {
    let mut all = Vec::new();
    for life in Life::ALL {
        all.extend(trials(programs, life)?);
    }
    perform("K", programs, all, extent, |_, outcome| judge(outcome))
}

/// A run that was struck says so, and does not hang.
fn judge(outcome: &Outcome) -> Option<String> {
    let panicked =
        outcome.run.err.contains("panicked at") || outcome.repair.iter().any(|ended| ended.err.contains("panicked at"));
    panicked.then(|| format!("panicked: {outcome:#?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_thread() {
        let log = "7  mkdirat(3, \"a\", 0700) = 0\n7  write(4, \"x\", 1) = 1\n8  mkdirat(3, \"b\", 0700) = 0\n\
                   7  mkdirat(3, \"c\", 0700 <unfinished ...>\n7  <... mkdirat resumed>) = 0\n";
        assert_eq!(count(log), BTreeMap::from([("mkdirat", 2), ("write", 1)]));
    }
}
