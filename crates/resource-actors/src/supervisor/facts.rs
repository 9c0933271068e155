//! What is known of a sandbox beside its ledger, and kept for a later process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;

use guest_agent::AgentAddress;
use hypervisor::StartedVm;
use network_actor::NetworkIsUp;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::EntryId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::LinuxResourcesRequest;
use sandbox_model::{ContainerId, ErrorKind, PortError, PortResult};
use serde::{Deserialize, Serialize};

use crate::cpu::{Base, CpuError, Share, Shares};
use crate::system::SandboxSpec;

/// What a sandbox has, as far as later steps must know. Changed by steps that succeed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Where the agent listens.
    pub agent: Option<AgentAddress>,
    /// Whether the guest has the shared directory.
    pub has_share: bool,
    /// The network, if there is one.
    pub network: Option<NetworkIsUp>,
    /// The VM, while it lives.
    pub vm: Option<StartedVm>,
    /// The VM's size at boot and the limits of its growth, once it has started.
    pub base: Option<Base>,
    /// Containers that hold something.
    pub containers: BTreeSet<ContainerId>,
    /// Their parts in the VM's size.
    pub shares: Shares,
    /// Their parts in the cpuset.
    pub cpusets: BTreeMap<ContainerId, CpusetWish>,
}

/// A container's part in the cpuset, in the words of its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpusetWish {
    /// `cpu.cpus`.
    pub cpus: Option<String>,
    /// `cpu.mems`.
    pub mems: Option<String>,
}

impl CpusetWish {
    /// Of a container's resources.
    pub(super) fn of(resources: Option<&oci_spec::runtime::LinuxResources>) -> Self {
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let part = |part: fn(&oci_spec::runtime::LinuxCpu) -> &Option<String>| cpu.and_then(|cpu| part(cpu).clone());
        Self { cpus: part(|cpu| cpu.cpus()), mems: part(|cpu| cpu.mems()) }
    }
}

impl Facts {
    /// Notes a container's limits, which have been applied.
    pub(super) fn limit(&mut self, applied: &LinuxResourcesRequest) -> Result<(), CpuError> {
        let LinuxResourcesRequest { container, resources, update } = applied;
        if *update == sandbox_model::request::ResourceUpdate::Remove {
            self.unlimit(container);
            return Ok(());
        }
        let share = Share::from_resources(resources.as_ref())?;
        self.shares = self.shares.with(container, share);
        self.cpusets.insert(container.clone(), CpusetWish::of(resources.as_ref()));
        Ok(())
    }

    /// Notes that a container holds something. Facts that say so are not copied.
    pub(super) fn add_container(facts: &mut Arc<Self>, container: &ContainerId) {
        if !facts.containers.contains(container) {
            Arc::make_mut(facts).containers.insert(container.clone());
        }
    }

    /// Forgets a container that holds nothing any more.
    pub(super) fn remove_container(&mut self, container: &ContainerId) {
        self.containers.remove(container);
        self.unlimit(container);
    }

    /// Forgets a container's limits.
    fn unlimit(&mut self, container: &ContainerId) {
        self.shares = self.shares.without(container);
        self.cpusets.remove(container);
    }
}

/// The version of [`Progress`] and [`SavedSandbox`].
pub const SAVED_VERSION: u32 = 1;

/// Where a sandbox stands. Kept whenever a step has been committed, so that a later process finds
/// what this one knew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// [`SAVED_VERSION`].
    pub version: u32,
    /// Where it stood.
    pub state: LifecycleState,
    /// No entry of the ledger up to this one belongs to a step that was cut off. Newer ones do.
    pub committed: EntryId,
    /// A step that takes away what others made, and has begun.
    pub open: Option<OpenStep>,
    /// What it had.
    pub facts: Arc<Facts>,
}

/// A step that makes nothing, so that its beginning does not show in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum OpenStep {
    /// `ReleaseContainer`.
    Release(ContainerId),
    /// `Cleanup`.
    Cleanup,
}

/// What is kept of a sandbox. What exists of it on the host is in its ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSandbox {
    /// What it was created with.
    pub spec: SandboxSpec,
    /// Where it stood.
    pub progress: Progress,
}

impl SavedSandbox {
    /// Holds it to what a sandbox below `state_dir` can have: the files are a hint, not an authority.
    ///
    /// # Errors
    /// `Invalid`: it names a socket of the agent that is not the sandbox's own.
    pub fn check(&self, state_dir: &Path) -> PortResult<()> {
        let dir = SandboxDir::new(state_dir, &self.spec.id);
        let is_own = |socket: &Path| {
            let below = socket.strip_prefix(dir.root()).ok();
            below.is_some_and(|path| path.components().all(|part| matches!(part, Component::Normal(_))))
        };
        match &self.progress.facts.agent {
            Some(AgentAddress::Hybrid { socket, .. }) if !is_own(socket) => {
                let cause = format!("the agent's socket {} is not the sandbox's own", socket.display());
                Err(PortError::new(ErrorKind::Invalid, "restore", self.spec.id.as_str(), cause))
            }
            _ => Ok(()),
        }
    }
}
