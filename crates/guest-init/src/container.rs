//! One container: its cgroup, its storages and its processes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::oci::{self, Spec};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use tokio::time::{sleep, timeout};

use crate::cgroup::Cgroup;
use crate::child::Job;
use crate::console::say;
use crate::process::Process;
use crate::reaper::Reaper;

/// The execution id of a container's first process.
pub(crate) const FIRST: &str = "";
/// How long a killed container may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// A container that was created and not yet removed.
pub(crate) struct Container {
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Mount points of the storages it uses.
    pub(crate) storages: Vec<String>,
    processes: Mutex<HashMap<String, Arc<Process>>>,
}

impl Container {
    /// Prepares a container whose storages are there; its program does not run yet.
    pub(crate) async fn create(id: &str, spec: Spec, storages: Vec<String>, reaper: &Reaper) -> Result<Self> {
        let cgroup = Cgroup::create(id)?;
        let prepared = async {
            if let Some(resources) = spec.Linux.Resources.as_ref() {
                cgroup.apply(resources)?;
            }
            Process::prepare(&Job::Create(Box::new(spec)), &cgroup, reaper).await
        };
        match prepared.await {
            Ok(first) => Ok(Self {
                cgroup,
                storages,
                processes: Mutex::new(HashMap::from([(FIRST.to_owned(), Arc::new(first))])),
            }),
            Err(error) => {
                remove_cgroup(&cgroup).await;
                Err(error)
            }
        }
    }

    /// The process of an execution id.
    pub(crate) fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        self.processes().get(exec_id).cloned()
    }

    /// Runs one more process in the container.
    pub(crate) async fn exec(&self, exec_id: &str, process: oci::Process, reaper: &Reaper) -> Result<()> {
        ensure!(!exec_id.is_empty(), "an execution needs an id");
        let taken = self.process(exec_id).is_some_and(|process| !process.has_ended());
        ensure!(!taken, "execution `{exec_id}` is still running");
        let first = self.process(FIRST).context("the container has no first process")?;
        ensure!(!first.has_ended(), "the container is not running");
        let job = Job::Exec { target: first.pid, process: Box::new(process) };
        let process = Process::prepare(&job, &self.cgroup, reaper).await?;
        process.start().await?;
        self.processes().insert(exec_id.to_owned(), Arc::new(process));
        Ok(())
    }

    /// Signals a process; SIGKILL to the first one means the whole container.
    pub(crate) fn signal(&self, exec_id: &str, process: &Process, signal: u32) -> Result<()> {
        if exec_id != FIRST {
            return process.signal(signal);
        }
        match signal {
            SIGKILL => {
                self.cgroup.kill();
                process.signal(SIGKILL)
            }
            // The first process of a PID namespace is deaf to what it has no handler for.
            SIGTERM if !handles(process, SIGTERM) => process.signal(SIGKILL),
            _ => process.signal(signal),
        }
    }

    /// Ends what still runs and removes the cgroup.
    pub(crate) async fn destroy(&self) {
        // A frozen process dies only when it thaws.
        let _ = self.cgroup.freeze(false);
        self.cgroup.kill();
        let processes: Vec<_> = self.processes().values().cloned().collect();
        for process in processes {
            let _ = process.signal(SIGKILL);
            if timeout(KILL_TIMEOUT, process.wait()).await.is_err() {
                say(format_args!("process {} does not die", process.pid));
            }
        }
        remove_cgroup(&self.cgroup).await;
    }

    fn processes(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the process has a handler of its own for a signal.
fn handles(process: &Process, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid));
    let status = status.unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// The last processes may take a moment to leave the group after they were killed.
async fn remove_cgroup(cgroup: &Cgroup) {
    for _ in 0..100 {
        match cgroup.remove() {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                cgroup.kill();
                sleep(Duration::from_millis(10)).await;
            }
            _ => return,
        }
    }
    say(format_args!("a cgroup could not be removed"));
}
