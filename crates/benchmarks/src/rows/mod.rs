//! What has a target: each row measures one thing and says how.

mod attach;
mod bind;
mod kernel;
mod memory;
mod network;
mod recovery;
mod shell;
mod simulated;
mod trace;

use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use schemars::JsonSchema;
use serde::Serialize;
use tempfile::TempDir;

/// What a value is held to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The less the better.
    AtMost(f64),
    /// The more the better.
    AtLeast(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// One measured thing.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The number; null in JSON if it could not be measured.
    #[schemars(with = "Option<f64>")]
    pub value: f64,
    /// Its unit; empty for a ratio or a count.
    pub unit: &'static str,
    /// What it is held to.
    pub target: Option<Target>,
    /// Medians, p99 and spread, or what else explains the number.
    pub detail: String,
}

impl Row {
    fn new(what: &str, value: f64, unit: &'static str, target: Target, detail: String) -> Self {
        Self { what: what.to_owned(), value, unit, target: Some(target), detail }
    }

    /// A row that could not be measured, which counts as missed.
    pub fn failed(measurement: &Measurement, why: String) -> Self {
        let what = format!("{}: it could not be measured", measurement.about);
        Self { what, value: f64::NAN, unit: "", target: Some(Target::AtMost(0.0)), detail: why }
    }

    /// The number for people.
    pub fn shown(&self) -> String {
        if self.value >= 100.0 { format!("{:.0}", self.value) } else { format!("{:.2}", self.value) }
    }

    /// Whether the target is reached; a row without one always is.
    pub fn is_reached(&self) -> bool {
        match self.target {
            None => true,
            Some(Target::AtMost(limit)) => self.value <= limit,
            Some(Target::AtLeast(limit)) => self.value >= limit,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, detail, .. } = self;
        let reached = if self.is_reached() { "ok    " } else { "MISSED" };
        write!(f, "{reached} {what}: {} {unit}", self.shown())?;
        if let Some(target) = self.target {
            write!(f, " (target {target})")?;
        }
        write!(f, "; {detail}")
    }
}

/// A measurement: what it is called on the command line, and how to make it.
#[derive(Debug, Clone, Copy)]
pub struct Measurement {
    /// Its name.
    pub name: &'static str,
    /// What it measures, in a few words.
    pub about: &'static str,
    /// Makes it.
    pub run: fn() -> Result<Vec<Row>, String>,
}

/// All of them, the cheap ones first.
pub const ALL: &[Measurement] = &[
    Measurement { name: "shell", about: "one message to an actor, beside a bare tokio task", run: shell::run },
    Measurement {
        name: "attach",
        about: "one attach with 1 device present and into a VM that is almost full",
        run: attach::run,
    },
    Measurement { name: "lives", about: "whole lives on simulated ports", run: simulated::lives },
    Measurement { name: "recording", about: "whole lives, recorded and not", run: trace::recording },
    Measurement { name: "replay", about: "a trace through the real actors", run: trace::replaying },
    Measurement { name: "recovery", about: "1,000 sandboxes back from their ledgers", run: recovery::run },
    Measurement { name: "memory", about: "what an idle sandbox keeps", run: memory::run },
    Measurement { name: "network", about: "a pod's network beside the system calls alone", run: network::run },
    Measurement { name: "bind", about: "one bind mount beside the system calls alone", run: bind::run },
    Measurement { name: "kernel", about: "whole lives on the real kernel, one and many at once", run: kernel::run },
    Measurement {
        name: "alive",
        about: "10,000 sandboxes alive: starts, memory, threads, wake-ups",
        run: simulated::alive,
    },
];

/// A runtime of one thread on which actors can live.
fn on_one_thread<F: Future>(body: impl FnOnce() -> F) -> Result<F::Output, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, async { body().await }))
}

/// A state directory on tmpfs, as `/run` is wherever a runtime runs, and closed to others, as a store
/// wants it.
fn state_dir(prefix: &str) -> Result<TempDir, String> {
    let closed = Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new().prefix(prefix).permissions(closed).tempdir_in("/dev/shm");
    dir.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_held_to_its_target() {
        let row = |value, target| Row { what: String::new(), value, unit: "", target, detail: String::new() };
        assert!(row(1.5, Some(Target::AtMost(1.5))).is_reached());
        assert!(!row(1.6, Some(Target::AtMost(1.5))).is_reached());
        assert!(!row(2999.0, Some(Target::AtLeast(3000.0))).is_reached());
        assert!(row(9.0, None).is_reached());
        assert!(!Row::failed(&ALL[0], "no".to_owned()).is_reached());
    }
}
