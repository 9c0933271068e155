//! What the CPU actor can be asked.

use std::sync::Arc;

use actor_shell::Request;
use oci_spec::runtime::LinuxResources;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, Undo, UndoReport};
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, PortError};
use serde::{Deserialize, Serialize};

use super::{Base, Shares};

/// Tells what the VM was started with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseIs {
    /// Its size at boot and the limits of its growth.
    pub base: Base,
}

/// Sizes the VM for a container that joins, changes or leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResizeFor {
    /// Which container.
    pub container: ContainerId,
    /// Its `linux.resources`.
    pub resources: Option<LinuxResources>,
    /// Join, change or leave.
    pub update: ResourceUpdate,
}

/// The VM's size, as the VMM reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sized {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// All vCPU threads, if their number has changed.
    pub new_threads: Option<Vec<i32>>,
}

/// Why the VM could not be sized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum CpuError {
    /// The VM has not started.
    #[error("the VM has no size yet")]
    NotStarted,
    /// The container has a share already.
    #[error("container {container} has its share already; update it")]
    Joined {
        /// Which.
        container: ContainerId,
    },
    /// The container has no share.
    #[error("container {container} has no share; add it first")]
    NotJoined {
        /// Which.
        container: ContainerId,
    },
    /// A number in the resources is wrong.
    #[error("{what}")]
    Invalid {
        /// Which, and what would be right.
        what: String,
    },
    /// All containers together need more memory than the VM may have.
    #[error(
        "the containers need {needed_mib} MiB and the VM may have {max_mib}; raise default_maxmemory or lower a limit"
    )]
    TooMuchMemory {
        /// MiB.
        needed_mib: u64,
        /// MiB.
        max_mib: u64,
    },
    /// The VMM or the agent refused.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Time ran out; the VM's size is what the VMM says at the next request.
    #[error("sizing did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("sizing was interrupted")]
    Interrupted,
}

impl Request for BaseIs {
    type Reply = ();
    const NAME: &'static str = "BaseIs";
}

impl Request for ResizeFor {
    type Reply = Result<Sized, CpuError>;
    const NAME: &'static str = "ResizeFor";
}

/// Takes over the sizing of a VM that an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptCpu {
    /// The actor's live entries, oldest first.
    pub entries: Vec<Arc<Entry>>,
    /// The VM's size at boot and the limits of its growth.
    pub base: Base,
    /// The containers' shares.
    pub shares: Shares,
    /// The VM's size now, as the VMM reports it.
    pub now: Sized,
}

impl Request for AdoptCpu {
    type Reply = Result<Confirmed, AdoptError>;
    const NAME: &'static str = "AdoptCpu";
}

/// Undoes what the ledger says this actor made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UndoCpu(pub Undo);

impl Request for UndoCpu {
    type Reply = UndoReport;
    const NAME: &'static str = "UndoCpu";
}
