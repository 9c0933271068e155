//! What a supervisor can be asked: the steps of a sandbox's life.

use actor_shell::Request;
use hypervisor::VmExit;
use sandbox_model::ContainerId;
use sandbox_model::ledger::UndoReport;
use sandbox_model::network::NetworkRequest;
use sandbox_model::request::{
    AppliedResources, DevicesRequest, GuestDevices, GuestRootfs, GuestVolumes, LinuxResourcesRequest, ResourceConfig,
    RootfsRequest, VolumesRequest,
};
use sandbox_model::storage::Storage;
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::supervisor::{Adopted, Progress, SavedSandbox};

/// Makes cgroups, network and shared directory side by side, then plugs the devices in list order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareBeforeStartVm {
    /// What the sandbox shall have.
    pub resources: Vec<ResourceConfig>,
}

/// Starts the VM inside its cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartVm {}

/// Waits for the guest's agent and tells it its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupAfterStartVm {}

/// Makes the network of a sandbox that was prepared without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUpNetwork {
    /// The wish.
    pub network: NetworkRequest,
}

/// Asks what the agent must mount for the sandbox itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragesForSandbox {
    /// Size of the sandbox's `/dev/shm` in bytes.
    pub shm_bytes: u64,
}

/// Makes a container's root file system visible in the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetUpRootfs(pub RootfsRequest);

/// Makes a container's volumes visible in the guest, all or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetUpVolumes(pub VolumesRequest);

/// Plugs a container's devices, all or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetUpDevices(pub DevicesRequest);

/// Applies a container's limits to the VM and its cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UpdateLinuxResources(pub LinuxResourcesRequest);

/// Gives back all that a container holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseContainer {
    /// Which.
    pub container: ContainerId,
}

/// Ends the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {}

/// Gives everything back and reports what became of each object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cleanup {
    /// Whether nobody is asked to end before being ended, and little time is given to each.
    pub at_once: bool,
}

/// Keeps what a later process needs to know of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Save {}

/// Takes over a sandbox whose VM an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adopt {
    /// Where the sandbox stood.
    pub progress: Progress,
}

/// Tells that the VM has ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExited {
    /// How.
    pub exit: VmExit,
}

/// Tells that a daemon that the VM needs has ended by itself: that of its shared directory, or of its
/// vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonEnded {
    /// Which.
    pub program: String,
    /// How, in words.
    pub exit: String,
}

macro_rules! replies {
    ($($request:ident => $reply:ty;)*) => {
        $(
            impl Request for $request {
                type Reply = Result<$reply, SandboxError>;
                const NAME: &'static str = stringify!($request);
            }
        )*
    };
}

replies! {
    PrepareBeforeStartVm => ();
    StartVm => ();
    SetupAfterStartVm => ();
    SetUpNetwork => ();
    StoragesForSandbox => Vec<Storage>;
    SetUpRootfs => GuestRootfs;
    SetUpVolumes => GuestVolumes;
    SetUpDevices => GuestDevices;
    UpdateLinuxResources => AppliedResources;
    ReleaseContainer => UndoReport;
    Stop => ();
    Cleanup => UndoReport;
    Save => SavedSandbox;
    Adopt => Adopted;
}

impl Request for VmExited {
    type Reply = ();
    const NAME: &'static str = "VmExited";
}

impl Request for DaemonEnded {
    type Reply = ();
    const NAME: &'static str = "DaemonEnded";
}
