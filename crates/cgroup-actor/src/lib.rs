//! The cgroup actor: the sandbox's cgroup, the one for what is not the guest's, and who is in them.
//!
//! It owns the groups' paths, the [`CpusetTable`](cpuset::CpusetTable) and the list of vCPU threads.
//! The only limit it sets is the union of the containers' cpusets; CPU and memory are limited by the
//! pod's own group above (behaviour A10).
//!
//! * Messages: [`CreateCgroups`], [`PlaceVm`], [`PlaceVcpus`], [`UpdateCpuset`],
//!   [`AdoptCgroups`], [`UndoCgroups`].
//! * Host objects: `Cgroup` (the directories that we made, with their inodes), `ResourceShare` (a
//!   container's part in the cpuset).
//!
//! A group is removed when it is empty and never emptied by force: what is found in it is named in
//! the report and stays confined.
#![forbid(unsafe_code)]

pub mod cpuset;
pub mod host;
mod linux;
mod messages;
mod path;
mod rebuild;
mod serve;

pub use linux::LinuxCgroupHost;
pub use messages::*;
pub use serve::CgroupActor;
