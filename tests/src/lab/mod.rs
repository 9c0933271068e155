//! A host of a test's own: fresh mount, network, PID, IPC and UTS namespaces on this kernel.
//!
//! Its first process (`fault-lab host`) makes a small world (a pod's network, volumes, a disk) and
//! then serves jobs: it runs a program, sends signals on the way, runs a second program that must put
//! everything right, and compares what exists afterwards with what existed before. It sees every
//! process, mount, link and socket of its namespaces, so nothing of a job can hide. Cgroups are the
//! kernel's only ones: there it looks for the lab's name.
//!
//! A lab serves one job after the other: what one left behind would be seen at once. One whose job has
//! left something is closed, and the next job gets another.

mod children;
mod host;
mod live;
mod programs;
mod snapshot;
mod world;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use children::Helper;
pub use host::serve;
pub use live::{Told, live, resume};

pub use programs::Programs;
pub use snapshot::{Snapshot, difference};
pub use world::World;

/// Variables of whoever drives, which are none of a job's business.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];

/// When something shall happen to a running program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// So many microseconds after its start.
    After(u64),
    /// When a file has so many lines.
    Lines(PathBuf, usize),
    /// So many microseconds after the signal before.
    Later(u64),
}

/// A signal on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// When.
    pub when: When,
    /// Its number.
    pub signal: i32,
    /// The programs that get it, by the begin of their names; none is the job's own.
    pub to: Option<String>,
}

/// What a lab shall do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Programs that are run before, one after the other: what they leave is what it is about.
    pub before: Vec<Vec<String>>,
    /// A program and its arguments.
    pub words: Vec<String>,
    /// What happens to it, one after the other.
    pub strikes: Vec<Strike>,
    /// What puts everything right afterwards: programs that are run one after the other.
    pub repair: Vec<Vec<String>>,
    /// Milliseconds that each program may take; then it gets SIGKILL, and the job has failed.
    pub limit_ms: u64,
}

/// How a program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// Whether it had to be ended, being late.
    pub is_late: bool,
    /// Standard output.
    pub out: String,
    /// The end of standard error.
    pub err: String,
    /// Milliseconds.
    pub took_ms: u64,
}

/// What became of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The ends of those that were run before.
    pub before: Vec<Ended>,
    /// The program's end.
    pub run: Ended,
    /// The strikes that were due before its end: whether each had someone to strike.
    pub struck: Vec<bool>,
    /// Milliseconds from the last strike to the program's end.
    pub after_strike_ms: u64,
    /// The ends of those that put everything right.
    pub repair: Vec<Ended>,
    /// What is there now and was not before (`+`), or the other way round (`-`).
    pub difference: Vec<String>,
}

impl Outcome {
    /// Why this is a failure of whoever put things right, if it is.
    pub fn leak(&self) -> Option<String> {
        let late = self.run.is_late
            || self.before.iter().any(|ended| ended.is_late)
            || self.repair.iter().any(|ended| ended.is_late);
        let unclean = self.repair.iter().find(|ended| ended.code != Some(0));
        match (late, unclean, self.difference.is_empty()) {
            (false, None, true) => None,
            (true, ..) => Some(format!("late: {self:#?}")),
            (_, Some(_), _) => Some(format!("not put right: {self:#?}")),
            _ => Some(format!("left: {self:#?}")),
        }
    }
}

/// A lab, seen from outside.
#[derive(Debug)]
pub struct Lab {
    process: Child,
    jobs: Option<ChildStdin>,
    outcomes: BufReader<ChildStdout>,
    world: World,
}

impl Lab {
    /// Makes one.
    ///
    /// # Errors
    /// The host refuses namespaces, or the world could not be made.
    pub fn open(programs: &Programs) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lab{}n{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.arg(&programs.lab).arg("host").arg(&name).arg(serde_json::to_string(programs)?);
        command.env_clear();
        for name in KEPT_VARIABLES {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare(1), which util-linux has")?;
        let jobs = process.stdin.take();
        let mut outcomes = BufReader::new(process.stdout.take().context("its output")?);
        let mut line = String::new();
        outcomes.read_line(&mut line)?;
        let world = serde_json::from_str(&line).with_context(|| format!("no world was made: {line:?}"))?;
        Ok(Self { process, jobs, outcomes, world })
    }

    /// What there is in it.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Does a job.
    ///
    /// # Errors
    /// The lab itself has failed.
    pub fn run(&mut self, job: &Job) -> Result<Outcome> {
        let jobs = self.jobs.as_mut().context("the lab is open")?;
        writeln!(jobs, "{}", serde_json::to_string(job)?)?;
        let mut line = String::new();
        ensure!(self.outcomes.read_line(&mut line)? > 0, "the lab has ended amid {job:?}");
        Ok(serde_json::from_str(&line)?)
    }

    /// Ends it and what is in it.
    ///
    /// # Errors
    /// It did not end well.
    pub fn close(mut self) -> Result<()> {
        drop(self.jobs.take());
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the lab ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            // Its first process ends with its input, and the namespaces with it.
            let _ = self.process.wait();
            snapshot::remove_cgroups(&self.world.name);
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
