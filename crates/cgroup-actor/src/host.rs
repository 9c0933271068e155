//! What the cgroup actor asks of the host.

use std::path::PathBuf;

use cgroups_rs::fs::hierarchies::V1;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{Live, port};
use serde::{Deserialize, Serialize};

use crate::messages::Cpuset;

/// A group by its path below the root of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPath {
    /// Relative, without `..`.
    pub path: String,
    /// Whether the parent is shared by all our sandboxes: each helps to make it, the last removes it.
    pub joint_parent: bool,
}

/// The kernel's interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupMode {
    /// A hierarchy for each controller; threads are placed one by one.
    #[default]
    V1,
    /// One hierarchy; processes are placed as a whole.
    V2,
}

/// A group in all hierarchies that can be used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its path below the root of each.
    pub path: String,
    /// Its directories, one for each hierarchy.
    pub directories: Vec<PathBuf>,
    /// The kernel's interface.
    pub mode: CgroupMode,
    /// Where v1's hierarchies are mounted, read once.
    pub hierarchies: Live<V1>,
}

/// What a group would be on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// The group. No directories: the host enforces nothing.
    pub group: Group,
    /// `st_ino` of each of its directories that is there.
    pub inodes: Vec<Option<u64>>,
    /// What must be made for it, parents first; below a joint parent also what is there already.
    pub missing: Vec<PathBuf>,
    /// What cannot be enforced, each with the reason.
    pub not_enforced: Vec<String>,
}

/// Makes directories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeGroup {
    /// For which group.
    pub group: Group,
    /// What to make, parents first.
    pub missing: Vec<PathBuf>,
    /// Whether the parent, and no other, may be there already.
    pub joint_parent: bool,
}

/// Directories that were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeGroup {
    /// `st_ino` of each.
    pub inodes: Vec<u64>,
}

/// Removes directories that we made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveGroup {
    /// Parents first; removed from the end.
    pub directories: Vec<PathBuf>,
    /// `st_ino` of each, if they were recorded: another directory is left alone.
    pub inodes: Option<Vec<u64>>,
}

/// Moves a process, or some of its threads, into a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The process.
    pub process: ProcessIdentity,
    /// Its threads; `None` moves all of it.
    pub threads: Option<Vec<i32>>,
    /// Where to.
    pub group: Group,
}

/// Changes a group's cpuset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetCpuset {
    /// Which group.
    pub group: Group,
    /// Empty lists take over what the parent has.
    pub cpuset: Cpuset,
}

/// Sets on which CPUs threads may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinThreads {
    /// The process.
    pub process: ProcessIdentity,
    /// Each thread with its CPUs; none means all.
    pub threads: Vec<(i32, Vec<u32>)>,
}

port! {
    /// The host's cgroups.
    pub trait CgroupHost as "cgroup-host", proxy CgroupHostProxy {
        /// Whether systemd is the host's init.
        fn systemd_runs(()) -> bool;
        /// What a group would be. Changes nothing.
        fn survey(GroupPath) -> Survey;
        /// Makes a group's directories, all or none. `Exists`: one is there that others made.
        fn make_group(MakeGroup) -> MadeGroup;
        /// Removes directories that are empty. One that holds processes is `Busy` and names them; a
        /// parent that others use is left and no error. All gone already is `NotFound`.
        fn remove_group(RemoveGroup) -> ();
        /// Moves a process or threads of it, in one burst.
        fn place(Place) -> ();
        /// Changes a group's cpuset.
        fn set_cpuset(SetCpuset) -> ();
        /// Sets on which CPUs threads may run.
        fn pin_threads(PinThreads) -> ();
    }
}
