//! From `Failed` back to where an earlier process left a sandbox whose VM still runs.
//!
//! The files are a hint. Each actor rebuilds its state from them and has kernel and VMM confirm it;
//! what cannot be confirmed is not taken over, and clean-up releases it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use actor_shell::Call;
use cgroup_actor::{AdoptCgroups, CpusetOf, PlaceVm};
use device_actor::AdoptDevices;
use hypervisor::{AdoptVm, AdoptedVm, VmCondition};
use network_actor::AdoptNetwork;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, EntryId, Identity, Scope, UndoReport, VmFate};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use serde::{Deserialize, Serialize};
use sharefs_actor::AdoptShares;

use super::crew::{Crew, StepError};
use super::stop::is_vmm;
use super::{Adopt, CpusetWish, Facts, OpenStep, Progress, Step, StepKind, Stepped};
use crate::cpu::{AdoptCpu, Sized};
use crate::error::Cause;

/// A sandbox that has been taken over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// Where it stands.
    pub state: LifecycleState,
    /// Objects that kernel and VMM have confirmed.
    pub confirmed: usize,
    /// What became of the step that was cut off, if one was.
    pub undone: UndoReport,
}

impl Progress {
    /// Why the sandbox can only be released, if that is so.
    pub(crate) fn only_release(&self) -> Option<String> {
        match (self.state, &self.open) {
            (_, Some(OpenStep::Cleanup)) => Some("its clean-up had begun".to_owned()),
            (LifecycleState::Started | LifecycleState::Running, _) => None,
            (
                LifecycleState::Created
                | LifecycleState::Prepared
                | LifecycleState::Stopped
                | LifecycleState::Released
                | LifecycleState::Failed,
                _,
            ) => Some(format!("it was {} and has no running VM", self.state)),
        }
    }
}

impl Step for Adopt {
    type Done = Adopted;
    const KIND: StepKind = StepKind::Adopt;

    fn next(_: LifecycleState, adopted: &Adopted) -> LifecycleState {
        adopted.state
    }

    fn run(self, crew: Rc<Crew>, _: Arc<Facts>, call: Call) -> Stepped<Adopted> {
        const STEP: &str = "Adopt";
        Box::pin(async move {
            let Progress { state, committed, open, mut facts, .. } = self.progress;
            crew.waits_for(STEP, "the VMM");
            let vm = crew.adopt_vm(&call).await?;
            crew.watch_vm();
            crew.waits_for(STEP, "what its actors find");
            let leaving = Leaving::new(committed, open.as_ref());
            let found = crew.adopt_resources(&facts, &vm, &leaving, &call).await?;
            crew.daemons_are_known.send_replace(true);
            Arc::make_mut(&mut facts).vm = Some(vm.vm);
            crew.waits_for(STEP, "the undo of the step that was cut off");
            let undone = crew.undo_unfinished(&leaving, &found.orphans).await;
            if let Some((item, error)) = undone.failed().next() {
                let what = format!("undo {}", item.object);
                return Err(StepError::own(what, error.clone()));
            }
            if let Some(OpenStep::Release(container)) = &open {
                Arc::make_mut(&mut facts).remove_container(container);
            }
            if state == LifecycleState::Running {
                crew.reach_agent(STEP, &facts, &call).await?;
            }
            // The VMM itself is one more than its actors have found.
            Ok((Adopted { state, confirmed: found.objects + 1, undone }, facts))
        })
    }
}

impl Crew {
    /// The VM that the ledger names, if it goes on.
    async fn adopt_vm(&self, call: &Call) -> Result<AdoptedVm, StepError> {
        let entries = self.ledger.live();
        let contradiction = |what: &str| AdoptError::Contradiction { what: what.to_owned() };
        let vmm = entries.iter().rev().find(|entry| is_vmm(entry));
        let vmm = vmm.ok_or_else(|| StepError::own("find the VMM", contradiction("the ledger names no VMM")))?;
        let process = match vmm.identity {
            Some(Identity::Process(process)) => Some(process),
            _ => None,
        };
        let adopt = AdoptVm { process, tag: self.tag(vmm.id) };
        let adopted = self.vmm.adopt_vm(adopt, call.deadline).await;
        let adopted = adopted.map_err(|error| StepError::own("take the VM over", error))?;
        match adopted.condition {
            VmCondition::Running => {}
            VmCondition::Paused => {
                let resumed = self.vmm.resume_vm((), call.deadline).await;
                resumed.map_err(|error| StepError::own("let the vCPUs run", error))?;
            }
            VmCondition::NotYetRun => {
                return Err(StepError::own("take the VM over", contradiction("its start was never finished")));
            }
            VmCondition::Halted => {
                return Err(StepError::own("take the VM over", contradiction("its guest has ended")));
            }
        }
        Ok(adopted)
    }

    /// Lets every actor find its objects again, side by side: none asks another.
    async fn adopt_resources(
        &self,
        facts: &Facts,
        vm: &AdoptedVm,
        leaving: &Leaving,
        call: &Call,
    ) -> Result<Confirmed, StepError> {
        let mut of: BTreeMap<ActorName, Vec<Arc<Entry>>> = BTreeMap::new();
        for mut entry in self.ledger.live() {
            if leaving.takes(&entry) {
                // Its undo may have begun: as of an intent, nobody knows whether it is there.
                Arc::make_mut(&mut entry).identity = None;
            }
            of.entry(entry.actor).or_default().push(entry);
        }
        let mut of = |actor: ActorName| of.remove(&actor).unwrap_or_default();
        let base = facts.base.clone().ok_or_else(|| {
            let what = "the VM's size at boot was not kept".to_owned();
            StepError::own("find the VM's size", AdoptError::Contradiction { what })
        })?;
        let now = Sized { vcpus: vm.vcpus, memory_mib: vm.memory_mib, new_threads: None };
        let cpu = AdoptCpu { entries: of(ActorName::Cpu), base, shares: facts.shares.clone(), now };
        let threads = vm.vm.vcpu_threads.clone();
        let placed = vm.vm.process.map(|process| PlaceVm { process, vcpu_threads: threads });
        let cgroups = AdoptCgroups {
            entries: of(ActorName::Cgroup),
            groups: self.cgroups_wish(),
            vm: placed,
            cpusets: facts.cpusets.iter().map(cpuset_of).collect(),
        };
        let (devices, shares, network) = (of(ActorName::Device), of(ActorName::ShareFs), of(ActorName::Network));
        let found = futures::join!(
            self.device.ask("find the devices", AdoptDevices { entries: devices }, call),
            self.share.ask("find the shared directory", AdoptShares { entries: shares }, call),
            self.network.ask("find the network", AdoptNetwork { entries: network }, call),
            self.cgroup.ask("find the cgroups", cgroups, call),
            self.cpu.ask("find the VM's size", cpu, call),
        );
        let mut all = Confirmed::default();
        for part in [found.0, found.1, found.2, found.3, found.4] {
            let part = part?;
            all.objects += part.objects;
            all.orphans.extend(part.orphans);
        }
        Ok(all)
    }

    /// Takes the way of a failed step for what was made after the last one that succeeded, and brings
    /// a release that had begun to its end.
    async fn undo_unfinished(&self, leaving: &Leaving, orphans: &[Arc<Entry>]) -> UndoReport {
        let is_orphan = |entry: &Entry| orphans.iter().any(|orphan| orphan.id == entry.id);
        let live = self.ledger.live().into_iter();
        self.undo_in_order(live.filter(|entry| leaving.takes(entry) || is_orphan(entry)).collect(), VmFate::Alive).await
    }
}

/// What is not to stay.
struct Leaving {
    /// Newer entries belong to a step that was cut off.
    committed: EntryId,
    /// Its release had begun.
    scope: Option<Scope>,
}

impl Leaving {
    fn new(committed: EntryId, open: Option<&OpenStep>) -> Self {
        let scope = match open {
            Some(OpenStep::Release(container)) => Some(Scope::Container(container.clone())),
            Some(OpenStep::Cleanup) | None => None,
        };
        Self { committed, scope }
    }

    fn takes(&self, entry: &Entry) -> bool {
        entry.id > self.committed || self.scope.as_ref() == Some(&entry.scope)
    }
}

fn cpuset_of((container, wish): (&sandbox_model::ContainerId, &CpusetWish)) -> CpusetOf {
    let CpusetWish { cpus, mems } = wish.clone();
    CpusetOf { container: container.clone(), cpus, mems }
}

impl From<AdoptError> for Cause {
    fn from(error: AdoptError) -> Self {
        match error {
            // As the port told it, so that callers match it as they do elsewhere.
            AdoptError::Port(error) => Self::Port(error),
            error => Self::Adopt(error),
        }
    }
}
