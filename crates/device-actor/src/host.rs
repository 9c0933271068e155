//! What the device actor asks of the host.

use std::path::PathBuf;

use helper_process::HelperProcess;
use sandbox_model::device::Access;
pub use sandbox_model::device::DiskIdentity;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{Live, PassedFd, port};
use serde::{Deserialize, Serialize};

pub use helper_process::SocketFile;

/// Asks whether a path can be plugged as a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectDisk {
    /// The path.
    pub path: PathBuf,
    /// How the guest will use it.
    pub access: Access,
}

/// A disk that can be plugged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Which.
    pub identity: DiskIdentity,
    /// Its size in bytes, never 0.
    pub bytes: u64,
    /// The disk, open as the guest will use it.
    #[serde(skip)]
    pub file: PassedFd,
}

/// Asks for the node of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindBlockNode {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The node of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockNode {
    /// Below `/dev`.
    pub path: PathBuf,
    /// Whether the host's driver refuses writes.
    pub read_only: bool,
}

/// What the host has for vsock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSupport {
    /// Whether `/dev/vhost-vsock` is there.
    pub kernel: bool,
}

/// Starts `vhost-device-vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartVsockDaemon {
    /// The program.
    pub program: PathBuf,
    /// Guest context id.
    pub cid: u32,
    /// Between VMM and daemon.
    pub socket: PathBuf,
    /// Between us and daemon.
    pub hybrid_socket: PathBuf,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV).
    pub tag: String,
}

/// A daemon that runs and may not be ready yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartedDaemon {
    /// Its process.
    pub process: ProcessIdentity,
    /// Its handle.
    pub handle: Live<HelperProcess>,
}

/// Takes hold of a daemon that an earlier process of ours started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptDaemon {
    /// Its identity, as it was recorded.
    pub process: ProcessIdentity,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV) in its environment.
    pub tag: String,
}

/// Waits until a daemon listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AwaitVsockDaemon {
    /// The daemon.
    pub daemon: StartedDaemon,
    /// Between VMM and daemon.
    pub socket: PathBuf,
    /// Between us and daemon.
    pub hybrid_socket: PathBuf,
}

/// A daemon that listens. A daemon makes its hybrid socket with the guest's device, so both exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyDaemon {
    /// Between VMM and daemon.
    pub socket: SocketFile,
    /// Between us and daemon.
    pub hybrid_socket: SocketFile,
}

/// Ends a daemon, if it is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndDaemon {
    /// Its identity, if it was recorded.
    pub process: Option<ProcessIdentity>,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV) in its environment.
    pub tag: String,
}

/// Removes a socket below the sandbox's own directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveSocket {
    /// The path.
    pub path: PathBuf,
    /// Its identity, if it was recorded: another file is left alone.
    pub file: Option<SocketFile>,
}

/// How PCI functions of the host are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfioName {
    /// All of an IOMMU group (`/dev/vfio/N`).
    Group(u32),
    /// One by its address `DDDD:BB:DD.F`, with the group it is in.
    Function(String),
    /// One by its character device (`/dev/vfio/devices/NAME`), with the group it is in.
    CharacterDevice(String),
}

/// A PCI function of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// `DDDD:BB:DD.F`.
    pub bdf: String,
    /// Class and subclass (0x0604: PCI bridge).
    pub class: u16,
    /// The driver that has it.
    pub driver: Option<String>,
}

/// An IOMMU group: what can only be handed over as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioGroup {
    /// Its number.
    pub group: u32,
    /// Its functions, by address.
    pub functions: Vec<PciFunction>,
}

/// Gives a function to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindVfio {
    /// `DDDD:BB:DD.F`.
    pub bdf: String,
}

/// Gives a function back to the driver that had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBackVfio {
    /// `DDDD:BB:DD.F`.
    pub bdf: String,
    /// `None`: it had none.
    pub original_driver: Option<String>,
}

port! {
    /// The host's disks, vsock and PCI functions.
    pub trait DeviceHost as "device-host", proxy DeviceHostProxy {
        /// Checks by opening it that a path is a regular file or block device that can be plugged.
        /// A block device that the host itself uses is `Busy` unless it is only read.
        fn inspect_disk(InspectDisk) -> DiskFacts;
        /// The node below `/dev` of a block device, its numbers verified.
        fn find_block_node(FindBlockNode) -> BlockNode;
        /// What the host has for vsock.
        fn vsock_support(()) -> VsockSupport;
        /// A context id that no other guest of this host uses.
        fn choose_cid(()) -> u32;
        /// Starts the daemon. It need not be ready.
        fn start_vsock_daemon(StartVsockDaemon) -> StartedDaemon;
        /// Returns when the daemon listens; its last words are in the error otherwise.
        fn await_vsock_daemon(AwaitVsockDaemon) -> ReadyDaemon;
        /// Takes hold of the daemon after a crash of ours. Ended already, or its pid somebody
        /// else's, is `NotFound`; without our tag it is `Foreign`.
        fn adopt_daemon(AdoptDaemon) -> StartedDaemon;
        /// Ends the daemon. Gone already is `NotFound`, somebody else's is `Foreign`.
        fn end_daemon(EndDaemon) -> ();
        /// Removes a socket. Gone already is `NotFound`, another file is `Foreign`.
        fn remove_socket(RemoveSocket) -> ();
        /// An IOMMU group and its functions.
        fn vfio_group(VfioName) -> VfioGroup;
        /// Gives a function to vfio-pci and returns when that driver has it.
        fn bind_vfio(BindVfio) -> ();
        /// Gives a function back. With its own driver already is `NotFound`.
        fn give_back_vfio(GiveBackVfio) -> ();
    }
}
