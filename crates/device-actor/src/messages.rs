//! What the device actor can be asked.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::Request;
use oci_spec::runtime::{LinuxDevice, LinuxResources};
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::config::VfioMode;
use sandbox_model::device::{AgentDevice, DeviceConfig, PciPath, VsockDevice};
use sandbox_model::ledger::{Entry, Scope, Undo, UndoReport};
use sandbox_model::request::VsockRequest;
use sandbox_model::{ContainerId, DeviceId, PortError};
use serde::{Deserialize, Serialize};

/// Plugs a device, or shares one that is plugged already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachDevice {
    /// What.
    pub config: DeviceConfig,
    /// Who holds it: it is unplugged when its last holder lets go.
    pub holder: Scope,
}

/// A device that the VM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedDevice {
    /// The VMM's name of it.
    pub device: DeviceId,
    /// Where the guest finds it.
    pub pci_path: Option<PciPath>,
}

/// Starts what serves the guest's vsock, if anything must be started, and plugs the vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVsock {
    /// The wish.
    pub request: VsockRequest,
    /// The daemon's program, for a vsock in user space.
    pub daemon: PathBuf,
    /// Between VMM and daemon.
    pub socket: PathBuf,
    /// Between us and daemon.
    pub hybrid_socket: PathBuf,
}

/// Plugs the devices of a container's spec that a guest can have (behaviour A8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachOciDevices {
    /// Whose.
    pub container: ContainerId,
    /// `linux.devices`.
    pub devices: Vec<LinuxDevice>,
    /// `linux.resources`: a device rule without `w` makes its device read-only.
    pub resources: Option<LinuxResources>,
    /// Who drives VFIO devices in the guest.
    pub vfio_mode: VfioMode,
    /// Whether O_DIRECT is used for block devices.
    pub direct: bool,
}

/// Binds a PCI function to vfio-pci and plugs it, for the whole sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVfio {
    /// `DDDD:BB:DD.F`.
    pub bdf: String,
}

/// Why a device could not be plugged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum DeviceError {
    /// Every hotplug slot is taken or doubtful.
    #[error("no free PCI slot: all {slots} slots of {bridges} bridge(s) are taken; raise default_bridges")]
    NoFreeSlot {
        /// Slots in all.
        slots: usize,
        /// Bridges.
        bridges: u8,
    },
    /// The same disk is plugged in a way that does not fit.
    #[error("{path} is plugged {present} already and cannot be plugged {wanted} beside that")]
    ConflictingAccess {
        /// The disk.
        path: PathBuf,
        /// How it is plugged.
        present: String,
        /// How it was wished.
        wanted: String,
    },
    /// What shall be plugged is not there, in use by the host, or of the wrong kind.
    #[error("cannot plug {path}: {reason}", path = path.display())]
    BadSource {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A value in the request is wrong.
    #[error("{what}")]
    Invalid {
        /// Which, and what would be right.
        what: String,
    },
    /// The VMM cannot do it.
    #[error("the VMM cannot plug a {kind} device while it runs")]
    Unsupported {
        /// Kind of device.
        kind: String,
    },
    /// The host or the VMM refused.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Time ran out: whether the VM has it is doubtful, and its slot stays reserved.
    #[error("plugging did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("plugging was interrupted")]
    Interrupted,
}

impl Request for AttachDevice {
    type Reply = Result<AttachedDevice, DeviceError>;
    const NAME: &'static str = "AttachDevice";
}

impl Request for AttachVsock {
    type Reply = Result<VsockDevice, DeviceError>;
    const NAME: &'static str = "AttachVsock";
}

impl Request for AttachOciDevices {
    type Reply = Result<Vec<AgentDevice>, DeviceError>;
    const NAME: &'static str = "AttachOciDevices";
}

impl Request for AttachVfio {
    type Reply = Result<AttachedDevice, DeviceError>;
    const NAME: &'static str = "AttachVfio";
}

/// Takes over the devices of a VM that an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptDevices {
    /// The actor's live entries, oldest first.
    pub entries: Vec<Arc<Entry>>,
}

impl Request for AdoptDevices {
    type Reply = Result<Confirmed, AdoptError>;
    const NAME: &'static str = "AdoptDevices";
}

/// Undoes what the ledger says this actor made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UndoDevices(pub Undo);

impl Request for UndoDevices {
    type Reply = UndoReport;
    const NAME: &'static str = "UndoDevices";
}
