//! How each message is performed.

mod adopt;
mod cpuset;
mod create;
mod place;
mod undo;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Completion, Domain};
use sandbox_model::ledger::{Journal, ProcessIdentity};
use sandbox_model::{Instant, PortResult, SandboxId};

use crate::cpuset::{CpusetTable, NumberList};
use crate::host::{CgroupHost, Group, PinThreads};
use crate::messages::{CgroupError, CgroupsInBrief, Cpuset};

/// How long past its deadline a message may go on, so that the host's own account of the delay
/// arrives instead of a bare "deadline passed".
const GRACE: Duration = Duration::from_millis(250);
/// How long past its deadline what was half done may be taken back; within [`GRACE`].
const SECOND_CHANCE: Duration = Duration::from_millis(200);

/// The actor's state: the groups, who is in them and what the containers ask for.
#[derive(Debug)]
pub struct CgroupActor {
    groups: Groups,
    vm: Option<PlacedVm>,
    table: CpusetTable,
    /// The cpuset that was written last, nothing being "as it was made"; `None` after a failure, when
    /// only another write makes it certain.
    written: Option<Cpuset>,
    clients: Clients,
}

/// The ways to reach the world; cheap to clone.
#[derive(Debug, Clone)]
struct Clients {
    journal: Journal,
    host: Arc<dyn CgroupHost>,
    sandbox: SandboxId,
}

/// Whether there are groups.
#[derive(Debug, Clone, PartialEq)]
pub enum Groups {
    /// Not asked for yet.
    None,
    /// This host enforces nothing: later messages have nothing to do.
    NotEnforced,
    /// They are made.
    Up(Rc<Up>),
}

/// The groups of the sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Up {
    sandbox: Group,
    /// `None`: the whole VMM is in the sandbox's.
    overhead: Option<Group>,
    pin_vcpus: bool,
}

/// The VMM, in its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlacedVm {
    process: ProcessIdentity,
    /// In the order of vCPUs.
    vcpu_threads: Vec<i32>,
}

impl CgroupActor {
    /// An actor without groups.
    pub fn new(journal: Journal, host: Arc<dyn CgroupHost>, sandbox: SandboxId) -> Self {
        let clients = Clients { journal, host, sandbox };
        let written = Some(Cpuset::default());
        Self { groups: Groups::None, vm: None, table: CpusetTable::default(), written, clients }
    }

    /// The groups, if there are any; `Ok(None)` if this host enforces nothing.
    fn up(&self) -> Result<Option<&Rc<Up>>, CgroupError> {
        match &self.groups {
            Groups::None => Err(CgroupError::NotUp),
            Groups::NotEnforced => {
                tracing::debug!(sandbox = %self.clients.sandbox, "no cgroups on this host: nothing to do");
                Ok(None)
            }
            Groups::Up(up) => Ok(Some(up)),
        }
    }
}

impl Domain for CgroupActor {
    type Snapshot = CgroupsInBrief;

    fn publish(&mut self, snapshot: &mut CgroupsInBrief) {
        let (sandbox, overhead) = match &self.groups {
            Groups::Up(up) => {
                (&*up.sandbox.directories, up.overhead.as_ref().map_or(&[][..], |group| &group.directories))
            }
            Groups::None | Groups::NotEnforced => (&[][..], &[][..]),
        };
        // Into the memory that is there: few messages change them.
        sandbox.clone_into(&mut snapshot.sandbox);
        overhead.clone_into(&mut snapshot.overhead);
        let vm = self.vm.as_ref();
        snapshot.vm = vm.map(|vm| vm.process);
        vm.map_or(&[][..], |vm| &vm.vcpu_threads).clone_into(&mut snapshot.vcpu_threads);
        snapshot.cpuset = self.table.cpuset();
        snapshot.doubtful_cpuset = self.written.is_none();
    }

    fn grace(&self) -> Duration {
        GRACE
    }
}

/// Where each vCPU runs: one CPU each if there are exactly as many, else all on all (behaviour A10).
fn pins(vcpu_threads: &[i32], cpus: &NumberList) -> Vec<(i32, Vec<u32>)> {
    if cpus.len() == vcpu_threads.len() {
        return vcpu_threads.iter().copied().zip(cpus.numbers().map(|cpu| vec![cpu])).collect();
    }
    let all: Vec<u32> = cpus.numbers().collect();
    vcpu_threads.iter().map(|thread| (*thread, all.clone())).collect()
}

impl Clients {
    /// Pins the vCPUs if that is wished; when one cannot be pinned, none is.
    async fn pin(&self, up: &Up, vm: Option<&PlacedVm>, cpus: &NumberList, deadline: Instant) -> PortResult<()> {
        let Some(vm) = vm.filter(|vm| up.pin_vcpus && !vm.vcpu_threads.is_empty()) else { return Ok(()) };
        let pin = PinThreads { process: vm.process, threads: pins(&vm.vcpu_threads, cpus) };
        let Err(error) = self.host.pin_threads(pin, deadline).await else { return Ok(()) };
        let everywhere = vm.vcpu_threads.iter().map(|thread| (*thread, Vec::new())).collect();
        let reset = PinThreads { process: vm.process, threads: everywhere };
        if let Err(reset) = self.host.pin_threads(reset, deadline + SECOND_CHANCE).await {
            tracing::warn!(sandbox = %self.sandbox, %reset, "vCPU threads stay pinned in part");
        }
        Err(error)
    }
}

/// The reply to a message that changes something.
fn settled<T>(done: Completion<Result<T, CgroupError>>) -> Result<T, CgroupError> {
    match done {
        Completion::Finished(result) => result,
        Completion::DeadlinePassed => Err(CgroupError::DeadlinePassed),
        Completion::Interrupted => Err(CgroupError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_pinned_only_when_there_is_one_cpu_for_each() {
        let cpus = |text: &str| text.parse::<NumberList>().unwrap();
        assert_eq!(pins(&[11, 12], &cpus("2,5")), [(11, vec![2]), (12, vec![5])]);
        assert_eq!(pins(&[11, 12], &cpus("0-2")), [(11, vec![0, 1, 2]), (12, vec![0, 1, 2])]);
        assert_eq!(pins(&[11], &cpus("")), [(11, vec![])]);
    }
}
