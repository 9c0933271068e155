//! The port to a virtual machine monitor, and QEMU behind it.
//!
//! A [`Hypervisor`] is one VM. Where devices sit is decided by the device actor, when things happen
//! by the supervisor; the VMM only does what it is told and reports what is true.
#![forbid(unsafe_code)]

mod qemu;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_model::config::{Accelerator, SandboxConfig};
use sandbox_model::device::{PciPath, PlacedDevice};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{DeviceId, PortError, SandboxId, port};
use serde::{Deserialize, Serialize};

pub use helper_process::SocketFile;
#[doc(hidden)]
pub use qemu::probe;
pub use qemu::{Qemu, QemuFactory};

/// What a VM is started with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The VMM's program.
    pub program: PathBuf,
    /// Machine type (`q35`).
    pub machine: String,
    /// How instructions are executed.
    pub accelerator: Accelerator,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub kernel_params: String,
    /// vCPUs at boot, at least 1.
    pub vcpus: u32,
    /// vCPUs after all hotplug.
    pub vcpus_max: u32,
    /// Memory at boot, in MiB.
    pub memory_mib: u64,
    /// Memory after all hotplug, in MiB.
    pub memory_max_mib: u64,
    /// DIMM slots for hotplug.
    pub memory_slots: u32,
    /// Whether memory is shared with vhost-user daemons.
    pub shared_memory: bool,
    /// PCI bridges with 30 hotplug slots each.
    pub bridges: u8,
}

/// Makes one of the sockets that [`Capabilities::sockets`] names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindSocket {
    /// Its path.
    pub path: PathBuf,
}

/// Removes one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveSocket {
    /// Its path.
    pub path: PathBuf,
    /// Its identity, if it was recorded: another file is left alone.
    pub file: Option<SocketFile>,
}

/// Starts the VM, its vCPUs paused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartVm {
    /// With what.
    pub spec: VmSpec,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV) for the process.
    pub tag: String,
}

/// A VM that has started and does not run yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartedVm {
    /// The VMM's process; `None` if it has none of its own.
    pub process: Option<ProcessIdentity>,
    /// Its vCPU threads, in the order of vCPUs.
    pub vcpu_threads: Vec<i32>,
    /// What executes the guest in fact (`kvm`, `tcg`, `simulated`).
    pub accelerator: String,
}

/// Takes over a VM that an earlier process of ours started. Nothing about the VM changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptVm {
    /// Its process, as the ledger has it; without one it is sought by its tag.
    pub process: Option<ProcessIdentity>,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV) in its environment.
    pub tag: String,
}

/// How far a VM has come, and whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmCondition {
    /// It waits for its first instruction. Its start was never finished: devices may be missing.
    NotYetRun,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs have run and were halted from outside; `resume_vm` lets them go on.
    Paused,
    /// The guest has ended or crashed, or its disk failed. It does not go on by itself.
    Halted,
}

/// A VM that was taken over, as the VMM reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedVm {
    /// Its process, its vCPU threads and what executes them.
    pub vm: StartedVm,
    /// Whether it runs.
    pub condition: VmCondition,
    /// vCPUs in total.
    pub vcpus: u32,
    /// Memory in total, in MiB.
    pub memory_mib: u64,
}

/// A device as the VM has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedDevice {
    /// Where the guest finds it; `None` for what is not on PCI.
    pub pci_path: Option<PciPath>,
}

/// A device that the VM has in truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentDevice {
    /// Which.
    pub id: DeviceId,
    /// Where the guest finds it; `None` for what is not on PCI.
    pub pci_path: Option<PciPath>,
}

/// Asks the guest to let a device go and waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveDevice {
    /// Which.
    pub id: DeviceId,
}

/// Ends the VM: politely at first, then by SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopVm {
    /// Milliseconds for each polite step.
    pub term_ms: u64,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmExit {
    /// Exit status of the VMM's process, if it exited.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// Its last lines on stderr.
    pub last_words: String,
}

/// Ends a VMM process that an earlier process of ours started, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillVm {
    /// Its identity, if it was recorded; otherwise it is sought by its tag.
    pub process: Option<ProcessIdentity>,
    /// Value of [`ENTRY_ENV`](sandbox_model::ledger::ENTRY_ENV) in its environment.
    pub tag: String,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub term_ms: u64,
}

/// Asks for a number of vCPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeVcpus {
    /// In total. A VMM that cannot take vCPUs away keeps them.
    pub target: u32,
}

/// vCPUs as the VM has them now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizedVcpus {
    /// In total, as the VMM reports it.
    pub vcpus: u32,
    /// All vCPU threads, in the order of vCPUs.
    pub vcpu_threads: Vec<i32>,
}

/// Asks for an amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeMemory {
    /// In total, in MiB. A VMM that cannot take memory away keeps it.
    pub target_mib: u64,
    /// The guest's memory block, in MiB: what is added is a multiple of it.
    pub block_mib: u64,
}

/// Memory as the VM has it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizedMemory {
    /// In total, in MiB, as the VMM reports it.
    pub memory_mib: u64,
}

/// What a VMM can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name in reports (`qemu`, `simulated`).
    pub name: String,
    /// Whether block devices may be plugged while it runs.
    pub block_hotplug: bool,
    /// Whether NICs may be plugged while it runs.
    pub network_hotplug: bool,
    /// Whether virtio-fs works.
    pub share_fs: bool,
    /// Whether vCPUs can be added.
    pub vcpu_hotplug: bool,
    /// Whether memory can be added.
    pub memory_hotplug: bool,
    /// Sockets in the sandbox's directory by which a VM is reached, and reached again by a later
    /// process. Each is bound before the VM starts.
    #[serde(default)]
    pub sockets: Vec<PathBuf>,
}

/// Slot of the first PCI bridge on a VM's root bus; bridge N sits N slots further. Slot 0 is the host
/// bridge, 1 is where a VMM's own default devices would be. Every VMM keeps to it, so that the path
/// of a device follows from its slot.
pub const FIRST_BRIDGE_SLOT: u8 = 2;

port! {
    /// One VM.
    ///
    /// Calls come one at a time from each of its users (device actor, CPU actor, supervisor); an
    /// implementation orders them among each other.
    pub trait Hypervisor as "hypervisor", proxy HypervisorProxy {
        /// What it can do. Answers before the VM starts.
        fn capabilities(()) -> Capabilities;
        /// Plugs a device: cold before `start_vm`, hot after. Returns when the VMM has it.
        fn add_device(PlacedDevice) -> AddedDevice;
        /// Unplugs a device and returns when it is gone. One that is not there is `NotFound`.
        fn remove_device(RemoveDevice) -> ();
        /// The devices that the VMM has in truth, of those that were added by us: before an
        /// adoption or after.
        fn query_devices(()) -> Vec<PresentDevice>;
        /// Makes one of the VM's sockets, mode 0600, and listens on it for the VMM to come.
        fn bind_socket(BindSocket) -> SocketFile;
        /// Removes one. Gone already is `NotFound`, another file is `Foreign`.
        fn remove_socket(RemoveSocket) -> ();
        /// Starts the process with all cold-plugged devices, vCPUs paused.
        fn start_vm(StartVm) -> StartedVm;
        /// Takes over, with a fresh client, a VM that an earlier process of ours started. After it
        /// all other calls work as they do after `start_vm`.
        ///
        /// The process is gone, or its pid is somebody else's now: `NotFound`. It is not the one
        /// that was tagged, or another process serves its control channel: `Foreign`. It is there
        /// and does not answer: `TimedOut`; it can still be ended by `kill_vm`. It answers
        /// nonsense: `Protocol`. The VMM cannot be taken over at all: `Unsupported`. After any
        /// error the client is as fresh as before.
        fn adopt_vm(AdoptVm) -> AdoptedVm;
        /// Lets the vCPUs run.
        fn resume_vm(()) -> ();
        /// Ends the VM and returns when its process is gone.
        fn stop_vm(StopVm) -> VmExit;
        /// Returns when the VM has ended, whoever ended it.
        fn wait_exit(()) -> VmExit;
        /// Ends the process named in the request, after a crash of ours. Gone already is `NotFound`.
        fn kill_vm(KillVm) -> ();
        /// Adds or takes vCPUs.
        fn resize_vcpus(ResizeVcpus) -> ResizedVcpus;
        /// Adds or takes memory.
        fn resize_memory(ResizeMemory) -> ResizedMemory;
        /// The last lines of the VMM's stderr and of the guest's console, for an error's text.
        fn last_words(()) -> String;
    }
}

/// Makes a VM for each sandbox. An embedder with a VMM of its own implements this and [`Hypervisor`].
pub trait VmmFactory: std::fmt::Debug + Send + Sync {
    /// A VM that has not started. `dir` is the sandbox's own directory for its sockets.
    ///
    /// # Errors
    /// What the VMM needs is missing on this host.
    fn create(&self, sandbox: &SandboxId, dir: &Path, config: &SandboxConfig)
    -> Result<Arc<dyn Hypervisor>, PortError>;

    /// Name in reports and traces.
    fn name(&self) -> &'static str;
}
