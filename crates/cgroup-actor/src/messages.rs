//! What the cgroup actor can be asked.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::Request;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, ProcessIdentity, Undo, UndoReport};
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, PortError};
use serde::{Deserialize, Serialize};

/// Makes the sandbox's cgroup, and the one for what is not the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCgroups {
    /// `linux.cgroupsPath` of the spec; `None` if it has none.
    pub path: Option<String>,
    /// Whether the whole VMM goes into the sandbox's cgroup.
    pub sandbox_only: bool,
    /// Whether vCPU threads are pinned one by one.
    pub pin_vcpus: bool,
}

/// The cgroups, made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupsAreUp {
    /// The sandbox's, one path for each hierarchy.
    pub sandbox: Vec<PathBuf>,
    /// The overhead's, if there is one.
    pub overhead: Vec<PathBuf>,
    /// What this host cannot enforce, each with the reason.
    pub not_enforced: Vec<String>,
}

/// Moves the VMM into the cgroups. Its vCPUs do not run yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceVm {
    /// The VMM.
    pub process: ProcessIdentity,
    /// Its vCPU threads, in the order of vCPUs.
    pub vcpu_threads: Vec<i32>,
}

/// Places vCPU threads that were hotplugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceVcpus {
    /// All vCPU threads, in the order of vCPUs.
    pub vcpu_threads: Vec<i32>,
}

/// Changes a container's part in the sandbox's cpuset (behaviour A10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateCpuset {
    /// Whose.
    pub container: ContainerId,
    /// `cpu.cpus` of its resources.
    pub cpus: Option<String>,
    /// `cpu.mems` of its resources.
    pub mems: Option<String>,
    /// Join, change or leave.
    pub update: ResourceUpdate,
}

/// The sandbox's cpuset now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpuset {
    /// CPUs; empty means all of the parent's.
    pub cpus: String,
    /// Memory nodes; empty means all of the parent's.
    pub mems: String,
}

/// What readers see of the actor without asking it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CgroupsInBrief {
    /// The sandbox's directories, one for each hierarchy; none before they are made.
    pub sandbox: Vec<PathBuf>,
    /// The overhead's, if there is one.
    pub overhead: Vec<PathBuf>,
    /// The VMM, once it is in them.
    pub vm: Option<ProcessIdentity>,
    /// Its vCPU threads, in the order of vCPUs.
    pub vcpu_threads: Vec<i32>,
    /// The union of what the containers ask for.
    pub cpuset: Cpuset,
    /// Whether a write failed since, so that another cpuset may be in force.
    pub doubtful_cpuset: bool,
}

/// Why a cgroup operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum CgroupError {
    /// There are cgroups already.
    #[error("the sandbox has its cgroups already")]
    AlreadyUp,
    /// There are none yet.
    #[error("the sandbox has no cgroups yet")]
    NotUp,
    /// A path or list in the request is wrong.
    #[error("{what}")]
    Invalid {
        /// Which, and what would be right.
        what: String,
    },
    /// The host refused.
    #[error(transparent)]
    Host(#[from] PortError),
    /// Time ran out: what exists of it is in the ledger.
    #[error("the cgroup operation did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("the cgroup operation was interrupted")]
    Interrupted,
}

impl Request for CreateCgroups {
    type Reply = Result<CgroupsAreUp, CgroupError>;
    const NAME: &'static str = "CreateCgroups";
}

impl Request for PlaceVm {
    type Reply = Result<(), CgroupError>;
    const NAME: &'static str = "PlaceVm";
}

impl Request for PlaceVcpus {
    type Reply = Result<(), CgroupError>;
    const NAME: &'static str = "PlaceVcpus";
}

impl Request for UpdateCpuset {
    type Reply = Result<Cpuset, CgroupError>;
    const NAME: &'static str = "UpdateCpuset";
}

/// Takes over the cgroups of a VM that an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptCgroups {
    /// The actor's live entries, oldest first.
    pub entries: Vec<Arc<Entry>>,
    /// What the groups were made with.
    pub groups: CreateCgroups,
    /// The VMM, if it has a process of its own.
    pub vm: Option<PlaceVm>,
    /// The containers' parts in the cpuset.
    pub cpusets: Vec<CpusetOf>,
}

/// A container's part in the cpuset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusetOf {
    /// Whose.
    pub container: ContainerId,
    /// `cpu.cpus` of its resources.
    pub cpus: Option<String>,
    /// `cpu.mems` of its resources.
    pub mems: Option<String>,
}

impl Request for AdoptCgroups {
    type Reply = Result<Confirmed, AdoptError>;
    const NAME: &'static str = "AdoptCgroups";
}

/// Undoes what the ledger says this actor made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UndoCgroups(pub Undo);

impl Request for UndoCgroups {
    type Reply = UndoReport;
    const NAME: &'static str = "UndoCgroups";
}
