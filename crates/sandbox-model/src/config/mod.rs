//! Kata's `configuration.toml`, as far as we support it (behaviour A16).
//!
//! * This file: the effective configuration, as the supervisor reads it.
//! * [`keys`]: one table of every key: kind, range, documentation, annotation.
//! * [`layers`]: texts of files, environment and flags become a configuration, with the origin of
//!   each value and one warning about what was not used.
//! * [`annotations`]: what a pod may change, if the administrator lets it.
//! * [`sizing`]: how big a VM is at boot.

pub mod annotations;
mod kernel_params;
pub mod keys;
pub mod layers;
pub mod sizing;
mod value;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::InterworkingModel;
use crate::request::SandboxBindMount;

/// The effective configuration of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// `[hypervisor.qemu]`.
    pub hypervisor: HypervisorConfig,
    /// `[agent.kata]`.
    pub agent: AgentConfig,
    /// `[runtime]`.
    pub runtime: RuntimeConfig,
}

/// The VM and the programs around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HypervisorConfig {
    /// `path`: the VMM's program.
    pub path: PathBuf,
    /// `kernel`: an uncompressed ELF with a PVH note boots fastest.
    pub kernel: PathBuf,
    /// `initrd`, if there is one.
    pub initrd: Option<PathBuf>,
    /// `image`: the guest's root disk, if there is one.
    pub image: Option<PathBuf>,
    /// `rootfs_type`: file system of `image`.
    pub rootfs_type: String,
    /// `kernel_params`: appended to the kernel's command line.
    pub kernel_params: String,
    /// `machine_type`.
    pub machine_type: String,
    /// `default_vcpus`: at boot.
    pub default_vcpus: f32,
    /// `overhead_vcpus`: for the VM itself, when the sandbox is sized statically.
    pub overhead_vcpus: f32,
    /// `default_maxvcpus`: 0 means as many as the host has.
    pub default_maxvcpus: u32,
    /// `default_memory`: at boot, in MiB.
    pub default_memory: u32,
    /// `overhead_memory`: for the VM itself, when the sandbox is sized statically, in MiB.
    pub overhead_memory: u32,
    /// `default_maxmemory`: in MiB; 0 means as much as the host has.
    pub default_maxmemory: u32,
    /// `memory_slots`: for hotplugged DIMMs.
    pub memory_slots: u32,
    /// `default_bridges`: PCI bridges for hotplug, 1 to 5.
    pub default_bridges: u8,
    /// `block_device_driver`.
    pub block_device_driver: String,
    /// `block_device_cache_direct`: bypass the host's page cache.
    pub block_device_cache_direct: bool,
    /// `network_queues`: queue pairs of a NIC, 1 to 256.
    pub network_queues: u16,
    /// `shared_fs`: `virtio-fs` or `none`.
    pub shared_fs: SharedFs,
    /// `virtio_fs_daemon`: its program.
    pub virtio_fs_daemon: PathBuf,
    /// `virtio_fs_cache`.
    pub virtio_fs_cache: VirtioFsCache,
    /// `virtio_fs_queue_size`.
    pub virtio_fs_queue_size: u16,
    /// Ours, `vsock_daemon`: serves vsock in user space where the host has no vhost-vsock.
    pub vsock_daemon: PathBuf,
    /// Ours, `accelerator`: `kvm`, `tcg`, or whichever works.
    pub accelerator: Accelerator,
    /// `cold_plug_vfio` is not `no-port`.
    pub cold_plug_vfio: bool,
    /// Ours, `vfio_devices`: the PCI functions that a sandbox may be given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vfio_devices: Vec<String>,
    /// `enable_annotations`: last path parts of the annotations that are honoured, exactly.
    pub enable_annotations: Vec<String>,
}

/// How the guest's instructions are executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// Hardware.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Whether and how files are shared with the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedFs {
    /// A virtiofsd beside the VMM.
    #[default]
    VirtioFs,
    /// Not at all.
    None,
}

/// What the guest may cache of the shared directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirtioFsCache {
    /// Nothing.
    Never,
    /// About a second.
    #[default]
    Auto,
    /// Everything: only for directories that nobody else changes.
    Always,
}

/// The guest's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// `server_port`.
    pub server_port: u32,
    /// `reconnect_timeout_ms`: how long to wait for the agent after the VM has started.
    pub reconnect_timeout_ms: u64,
    /// `create_container_timeout`, in seconds: deadline of every agent call that ends by itself.
    pub create_container_timeout: u64,
    /// `health_check_request_timeout_ms`.
    pub health_check_request_timeout_ms: u64,
    /// `kernel_modules`: loaded by the agent, each `NAME PARAMETERS`.
    pub kernel_modules: Vec<String>,
}

/// The sandbox around the VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// `internetworking_model`.
    pub internetworking_model: InterworkingModel,
    /// `disable_new_netns`.
    pub disable_new_netns: bool,
    /// `sandbox_bind_mounts`.
    pub sandbox_bind_mounts: Vec<SandboxBindMount>,
    /// `sandbox_cgroup_only`: the whole VMM in the sandbox's cgroup, no overhead cgroup.
    pub sandbox_cgroup_only: bool,
    /// `enable_vcpus_pinning`.
    pub enable_vcpus_pinning: bool,
    /// `static_sandbox_resource_mgmt`: size once, never hotplug.
    pub static_sandbox_resource_mgmt: bool,
    /// `disable_guest_seccomp`.
    pub disable_guest_seccomp: bool,
    /// `vfio_mode`.
    pub vfio_mode: VfioMode,
    /// Ours, `deadlines`.
    pub deadlines: Deadlines,
}

/// Who drives a VFIO device in the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfioMode {
    /// The guest's kernel (`vfio-pci-gk`).
    #[default]
    GuestKernel,
    /// The container, by `/dev/vfio/N` (`vfio-pci`).
    Vfio,
}

/// How long to wait for what, in milliseconds. Every wait has one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// A whole step, as `StartVm`.
    pub step_ms: u64,
    /// The undo of a failed step, and each `cleanup`.
    pub undo_ms: u64,
    /// Between SIGTERM and SIGKILL.
    pub term_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { step_ms: 60_000, undo_ms: 30_000, term_ms: 2_000 }
    }
}

impl Default for HypervisorConfig {
    fn default() -> Self {
        Self {
            path: "/usr/bin/qemu-system-x86_64".into(),
            kernel: PathBuf::new(),
            initrd: None,
            image: None,
            rootfs_type: "ext4".into(),
            kernel_params: String::new(),
            machine_type: "q35".into(),
            default_vcpus: 1.0,
            overhead_vcpus: 0.2,
            default_maxvcpus: 0,
            default_memory: 2048,
            overhead_memory: 32,
            default_maxmemory: 0,
            memory_slots: 10,
            default_bridges: 1,
            block_device_driver: "virtio-blk-pci".into(),
            block_device_cache_direct: false,
            network_queues: 1,
            shared_fs: SharedFs::default(),
            virtio_fs_daemon: "/usr/lib/qemu/virtiofsd".into(),
            virtio_fs_cache: VirtioFsCache::default(),
            virtio_fs_queue_size: 1024,
            vsock_daemon: "vhost-device-vsock".into(),
            accelerator: Accelerator::default(),
            cold_plug_vfio: false,
            vfio_devices: Vec::new(),
            enable_annotations: Vec::new(),
        }
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            server_port: crate::layout::AGENT_PORT,
            reconnect_timeout_ms: 30_000,
            create_container_timeout: 30,
            health_check_request_timeout_ms: 90_000,
            kernel_modules: Vec::new(),
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            internetworking_model: InterworkingModel::default(),
            disable_new_netns: false,
            sandbox_bind_mounts: Vec::new(),
            sandbox_cgroup_only: false,
            enable_vcpus_pinning: false,
            static_sandbox_resource_mgmt: false,
            disable_guest_seccomp: true,
            vfio_mode: VfioMode::default(),
            deadlines: Deadlines::default(),
        }
    }
}
