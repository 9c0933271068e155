//! The host as Linux shows it.
//!
//! Finding v1's hierarchies and placing threads in them is `cgroups-rs`' work. It is not used where it
//! harms, or asks the kernel more than once:
//!
//! * Its `destroy` moves whoever is left in a group to the root group and calls that success; we
//!   remove empty directories only.
//! * Its `create` does not say which directories it made; the ledger must know, so we make them.
//! * On v2 it looks for the hierarchy at `/sys/fs/cgroup` only, and switches all controllers on in
//!   every ancestor up to the root; there we write to the files of our own group.
//! * A new cpuset it fills from its parent in thirty reads; two are enough.

mod attach;
mod directories;
mod survey;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use actor_shell::blocking;
use async_trait::async_trait;
use sandbox_model::{Instant, PortError, PortResult};
use tokio::time::timeout_at;

use self::survey::Hierarchies;
use crate::host::{CgroupHost, GroupPath, MadeGroup, MakeGroup, PinThreads, Place, RemoveGroup, SetCpuset, Survey};

/// This host. Where its hierarchies are is found out once.
#[derive(Debug, Clone, Default)]
pub struct LinuxCgroupHost {
    hierarchies: Arc<OnceLock<Hierarchies>>,
}

impl LinuxCgroupHost {
    /// The host's hierarchies: v1 if any controller is mounted there, else v2.
    pub fn new() -> Self {
        Self::default()
    }

    /// The v2 hierarchy mounted at `root` and no other, whatever else the host has.
    pub fn unified_at(root: impl Into<PathBuf>) -> Self {
        Self { hierarchies: Arc::new(Hierarchies::unified_at(root.into()).into()) }
    }
}

/// Runs a system call beside the arbiter, no longer than until `deadline`. The call itself goes on
/// to its end, so what it does is doubtful then.
async fn within<T: Send + 'static>(
    operation: &'static str,
    object: String,
    deadline: Instant,
    call: impl FnOnce() -> PortResult<T> + Send + 'static,
) -> PortResult<T> {
    let answer = timeout_at(deadline, blocking(call)).await;
    answer.unwrap_or_else(|_| Err(PortError::timed_out(operation, object, "the kernel did not answer in time")))
}

#[async_trait]
impl CgroupHost for LinuxCgroupHost {
    async fn systemd_runs(&self, (): (), deadline: Instant) -> PortResult<bool> {
        // sd_booted(3).
        let test = || Ok(std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|facts| facts.is_dir()));
        within("stat", "/run/systemd/system".into(), deadline, test).await
    }

    async fn survey(&self, request: GroupPath, deadline: Instant) -> PortResult<Survey> {
        let object = request.path.clone();
        let hierarchies = self.hierarchies.clone();
        let call = move || Ok(survey::survey(hierarchies.get_or_init(Hierarchies::find), &request));
        within("survey cgroups", object, deadline, call).await
    }

    async fn make_group(&self, request: MakeGroup, deadline: Instant) -> PortResult<MadeGroup> {
        let object = request.group.path.clone();
        within("make cgroup", object, deadline, move || directories::make(&request)).await
    }

    async fn remove_group(&self, request: RemoveGroup, deadline: Instant) -> PortResult<()> {
        directories::remove(self.hierarchies.clone(), request, deadline).await
    }

    async fn place(&self, request: Place, deadline: Instant) -> PortResult<()> {
        let object = format!("pid {}", request.process.pid);
        within("place in cgroup", object, deadline, move || attach::place(&request)).await
    }

    async fn set_cpuset(&self, request: SetCpuset, deadline: Instant) -> PortResult<()> {
        let object = request.group.path.clone();
        within("set cpuset", object, deadline, move || attach::set_cpuset(&request)).await
    }

    async fn pin_threads(&self, request: PinThreads, deadline: Instant) -> PortResult<()> {
        let object = format!("pid {}", request.process.pid);
        within("sched_setaffinity", object, deadline, move || attach::pin(&request)).await
    }
}
