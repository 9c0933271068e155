//! What a runtime asks of a sandbox: the payloads of the supervisor's messages.

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxResources, Mount};
use serde::{Deserialize, Serialize};

use crate::device::{AgentDevice, BlockDevice, VsockBackend};
use crate::network::NetworkRequest;
use crate::storage::{GuestMount, Storage};
use crate::{ContainerId, secret};

/// One resource to be prepared before the VM starts (behaviour A0, A1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceConfig {
    /// The guest's vsock, by which its agent is reached.
    Vsock(VsockRequest),
    /// The network.
    Network(NetworkRequest),
    /// The shared directory.
    ShareFs(ShareFsRequest),
    /// The guest's own root disk, read-only.
    VmRootfs(BlockDevice),
    /// A PCI function given to the VM before it starts.
    Vfio(VfioRequest),
}

/// How the agent is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockRequest {
    /// Guest context id; `None` lets the device actor choose.
    pub cid: Option<u32>,
    /// `None`: the kernel's if the host has it, else the daemon in user space.
    pub backend: Option<VsockBackend>,
}

/// A wish for a shared directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareFsRequest {
    /// Directories of the host that every container may see below `sandbox-mounts`.
    pub sandbox_bind_mounts: Vec<SandboxBindMount>,
}

/// A host directory or file that is shared with the whole sandbox (behaviour A4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxBindMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Whether the guest may write.
    pub access: crate::device::Access,
}

/// A PCI function by its host address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioRequest {
    /// `DDDD:BB:DD.F`.
    pub bdf: String,
}

/// What `update_linux_resources` does with a container's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceUpdate {
    /// A container joins.
    Add,
    /// Its limits change.
    Update,
    /// It leaves.
    Remove,
}

/// Asks for a container's root file system in the guest (behaviour A6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootfsRequest {
    /// Whose.
    pub container: ContainerId,
    /// Where it comes from.
    pub source: RootfsSource,
    /// `root.readonly` of the spec.
    pub read_only: bool,
}

/// Where a root file system comes from.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum RootfsSource {
    /// A directory of the host, shared with the guest.
    Directory {
        /// Absolute path.
        path: PathBuf,
    },
    /// A block device or image file, plugged into the VM.
    Block {
        /// Absolute path of the device or of a regular file.
        path: PathBuf,
        /// File system on it.
        fstype: String,
        /// Mount options.
        #[serde(serialize_with = "secret::options")]
        options: Vec<String>,
    },
}

impl fmt::Debug for RootfsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

/// A root file system as the guest will find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRootfs {
    /// Path in the guest, for `root.path`.
    pub path: String,
    /// What the agent must mount first.
    pub storages: Vec<Storage>,
}

/// Asks for a container's volumes (behaviour A7).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumesRequest {
    /// Whose.
    pub container: ContainerId,
    /// `mounts` of the spec, in its order.
    #[serde(serialize_with = "secret::mounts")]
    pub mounts: Vec<Mount>,
}

impl fmt::Debug for VolumesRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

/// Volumes as the guest will find them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestVolumes {
    /// `mounts` for the container's spec.
    pub mounts: Vec<GuestMount>,
    /// What the agent must mount first, in order.
    pub storages: Vec<Storage>,
}

/// Asks for a container's devices (behaviour A8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DevicesRequest {
    /// Whose.
    pub container: ContainerId,
    /// `linux.devices` of the spec.
    pub devices: Vec<LinuxDevice>,
    /// `linux.resources`, whose device rules may make a device read-only.
    pub resources: Option<LinuxResources>,
}

/// Devices as the agent must be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDevices {
    /// One for each device that the guest gets.
    pub devices: Vec<AgentDevice>,
}

/// Asks that a container's limits be applied (behaviour A11).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinuxResourcesRequest {
    /// Whose.
    pub container: ContainerId,
    /// `linux.resources` of the spec.
    pub resources: Option<LinuxResources>,
    /// Join, change or leave.
    pub update: ResourceUpdate,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppliedResources {
    /// vCPUs that the VM has now.
    pub vcpus: u32,
    /// MiB that the VM has now.
    pub memory_mib: u64,
    /// What the agent shall apply: host cpusets mean nothing in the guest, so they are cleared.
    pub for_agent: Option<LinuxResources>,
}
