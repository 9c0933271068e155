//! One table of every key: what it accepts, what it means, who may change it.
//!
//! Loading, `config show`, `config explain`, `config check`, environment variables, `--set` and
//! annotations all read this table; nothing about a key is written twice.

use serde_json::Value;

use super::SandboxConfig;
use super::value::Checked;
pub use super::value::{Kind, Refusal};

/// A key that we honour.
#[derive(Debug)]
pub struct Key {
    /// `hypervisor`, `agent`, `runtime` or `runtime.deadlines`.
    pub section: &'static str,
    /// Its name within the section, which is Kata's.
    pub name: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// What it means, for people.
    pub doc: &'static str,
    /// Last part of the annotation by which a pod may set it, if it may at all.
    pub annotation: Option<&'static str>,
    load: fn(&mut SandboxConfig, Value) -> Result<(), serde_json::Error>,
    read: fn(&SandboxConfig) -> Value,
}

impl Key {
    /// `section.name`, as `--set`, `config show` and messages name it.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The table in a file to which it belongs.
    pub fn table(&self) -> &'static str {
        match self.section {
            "hypervisor" => "hypervisor.qemu",
            "agent" => "agent.kata",
            other => other,
        }
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("SANDBOXCTL_{}", self.path().replace('.', "_").to_uppercase())
    }

    /// The value in `config`, as it would be written in a file.
    pub fn value(&self, config: &SandboxConfig) -> toml::Value {
        self.kind.write(&(self.read)(config))
    }

    /// Stores a value that has been checked against [`Key::kind`].
    pub(super) fn store(&self, config: &mut SandboxConfig, checked: Value) -> Result<(), Refusal> {
        // The kinds of this table fit their fields, which a test holds them to; a refusal here would
        // be a mistake in the table, and is reported rather than hidden.
        (self.load)(config, checked)
            .map_err(|error| Refusal { expected: self.kind.to_string(), fix: format!("report this: {error}") })
    }

    /// Checks and stores a value that came as text.
    pub(super) fn set_text(&self, config: &mut SandboxConfig, text: &str) -> Result<(), Refusal> {
        match self.kind.check(&self.kind.read(text)?)? {
            Checked::Default => Ok(()),
            Checked::Store(value) | Checked::Replaced(value) => self.store(config, value),
        }
    }
}

/// The key of a path: `hypervisor.default_memory` or `hypervisor.qemu.default_memory`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path() == path || format!("{}.{}", key.table(), key.name) == path)
}

/// A key of Kata's that we know and do not honour.
#[derive(Debug)]
pub struct UnsupportedKey {
    /// `hypervisor`, `agent` or `runtime`.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Whether a configuration that turns it on is refused: without it the sandbox would be weaker
    /// than its owner believes.
    pub protects: bool,
}

const fn int(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max, zero_is_default: false }
}

const fn int_or_default(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max, zero_is_default: true }
}

const fn choice(words: &'static [&'static str]) -> Kind {
    Kind::Choice { words, replaced: &[] }
}

macro_rules! keys {
    ($([$($section:ident).+] $name:ident $(@ $annotation:literal)?: $kind:expr, $doc:literal;)*) => {
        &[$(Key {
            section: keys!(@path $($section).+),
            name: stringify!($name),
            kind: $kind,
            doc: $doc,
            annotation: keys!(@annotation $($annotation)?),
            load: |config, value| {
                config.$($section).+.$name = serde_json::from_value(value)?;
                Ok(())
            },
            read: |config| serde_json::to_value(&config.$($section).+.$name).unwrap_or_default(),
        }),*]
    };
    (@path $one:ident) => { stringify!($one) };
    (@path $one:ident.$two:ident) => { concat!(stringify!($one), ".", stringify!($two)) };
    (@annotation) => { None };
    (@annotation $name:literal) => { Some($name) };
}

/// Every key that we honour, in the order of `config show`.
pub static KEYS: &[Key] = keys! {
    [hypervisor] path: Kind::Program, "The VMM's program.";
    [hypervisor] kernel: Kind::File,
        "The guest's kernel. An uncompressed ELF with a PVH note (vmlinux) boots fastest.";
    [hypervisor] initrd: Kind::OptionalFile, "The guest's initial RAM disk. Either this or image.";
    [hypervisor] image: Kind::OptionalFile, "The guest's root disk, attached read-only. Either this or initrd.";
    [hypervisor] rootfs_type: choice(&["ext4", "xfs", "erofs"]), "File system of image.";
    [hypervisor] kernel_params @ "kernel_params": Kind::KernelParams, "Appended to the kernel's command line.";
    [hypervisor] machine_type @ "machine_type": Kind::Word, "QEMU's machine, as q35.";
    [hypervisor] default_vcpus @ "default_vcpus": Kind::Fraction { min: 0.01, max: 256.0 },
        "vCPUs at boot; rounded up when the VM is started. 0 asks for the default.";
    [hypervisor] overhead_vcpus: Kind::Fraction { min: 0.0, max: 256.0 },
        "vCPUs for the VM itself, added when the sandbox is sized statically.";
    [hypervisor] default_maxvcpus @ "default_max_vcpus": int(0, 256),
        "vCPUs that the VM may have after hotplug; 0 means as many as the host has.";
    [hypervisor] default_memory @ "default_memory": int_or_default(64, 16_777_216),
        "Memory at boot in MiB. 0 asks for the default.";
    [hypervisor] overhead_memory: int(0, 1_048_576),
        "Memory for the VM itself in MiB, added when the sandbox is sized statically.";
    [hypervisor] default_maxmemory: int(0, 16_777_216),
        "Memory in MiB that the VM may have after hotplug; 0 means as much as the host has.";
    [hypervisor] memory_slots @ "memory_slots": int_or_default(1, 256), "Slots for hotplugged DIMMs.";
    [hypervisor] default_bridges: int_or_default(1, 5), "PCI bridges for hotplug, 30 devices each.";
    [hypervisor] block_device_driver: Kind::Choice {
            words: &["virtio-blk-pci"],
            replaced: &[("virtio-scsi", "virtio-blk-pci"), ("virtio-blk", "virtio-blk-pci")],
        },
        "How disks are attached.";
    [hypervisor] block_device_cache_direct @ "block_device_cache_direct": Kind::Flag,
        "Whether disks bypass the host's page cache.";
    [hypervisor] network_queues @ "network_queues": int(1, 256), "Queue pairs of each NIC.";
    [hypervisor] shared_fs @ "shared_fs": choice(&["virtio-fs", "none"]),
        "How directories are shared with the guest: by a virtiofsd beside the VMM, or not at all.";
    [hypervisor] virtio_fs_daemon: Kind::Program, "The virtiofsd program.";
    [hypervisor] virtio_fs_cache @ "virtio_fs_cache": Kind::Choice {
            words: &["auto", "never", "always"],
            replaced: &[("none", "never"), ("metadata", "auto")],
        },
        "What the guest may cache of the shared directory: always only if nobody else changes it.";
    [hypervisor] virtio_fs_queue_size: Kind::PowerOfTwo { min: 2, max: 1024 },
        "Descriptors of a virtio-fs queue.";
    [hypervisor] vsock_daemon: Kind::Program,
        "Ours, not Kata's: the program that serves vsock where the host has no /dev/vhost-vsock.";
    [hypervisor] accelerator: choice(&["auto", "kvm", "tcg"]),
        "Ours, not Kata's: how the guest's instructions are executed. auto is KVM where it works, else TCG (emulation, slow).";
    [hypervisor] cold_plug_vfio: Kind::ColdPlug,
        "Where a PCI function of the host is plugged before the VM starts.";
    [hypervisor] vfio_devices: Kind::PciAddresses,
        "Ours, not Kata's: the PCI functions that a sandbox may be given, each with all of its IOMMU group. None by default.";
    [hypervisor] enable_annotations: Kind::Words,
        "Last parts of the annotations that a pod may use, exactly as they are spelt (no patterns).";

    [agent] server_port: int(1, 4_294_967_294), "vsock port of the guest's agent.";
    [agent] reconnect_timeout_ms: int(1, 86_400_000),
        "How long to wait for the agent after the VM has started, in milliseconds.";
    [agent] create_container_timeout @ "create_container_timeout": int(1, 86_400),
        "Deadline of every agent call that ends by itself, in seconds.";
    [agent] health_check_request_timeout_ms: int(1, 86_400_000),
        "Deadline of the agent's health check, in milliseconds.";
    [agent] kernel_modules @ "kernel_modules": Kind::Modules,
        "Kernel modules that the agent loads, each NAME PARAMETERS.";

    [runtime] internetworking_model @ "internetworking_model": choice(&["tcfilter", "none"]),
        "How frames get from the pod's interface to the guest's NIC.";
    [runtime] disable_new_netns @ "disable_new_netns": Kind::Flag,
        "Whether the sandbox goes without a network namespace of its own, and so without a network.";
    [runtime] sandbox_bind_mounts: Kind::BindMounts,
        "Host directories or files that every container of the sandbox may see.";
    [runtime] sandbox_cgroup_only @ "sandbox_cgroup_only": Kind::Flag,
        "Whether all of the VMM runs in the sandbox's cgroup; if not, what is not a vCPU runs in an overhead cgroup.";
    [runtime] enable_vcpus_pinning @ "enable_vcpus_pinning": Kind::Flag,
        "Whether each vCPU is bound to one CPU of the sandbox's cpuset if their numbers match.";
    [runtime] static_sandbox_resource_mgmt: Kind::Flag,
        "Whether the VM gets its final size at boot and is never resized.";
    [runtime] disable_guest_seccomp @ "disable_guest_seccomp": Kind::Flag,
        "Whether the container's seccomp filter is left out inside the guest.";
    [runtime] vfio_mode @ "vfio_mode": choice(&["guest-kernel", "vfio"]),
        "Who drives a PCI function in the guest: its kernel, or the container by /dev/vfio/N.";

    [runtime.deadlines] step_ms: int(1, 86_400_000), "Ours: a whole step, as starting the VM, in milliseconds.";
    [runtime.deadlines] undo_ms: int(1, 86_400_000), "Ours: undoing a step, and each clean-up, in milliseconds.";
    [runtime.deadlines] term_ms: int(1, 86_400_000), "Ours: between SIGTERM and SIGKILL, in milliseconds.";
};

/// Where Kata's Go runtime keeps a key that its Rust runtime has elsewhere.
pub(super) static MOVED: &[(&str, &str, &str)] =
    &[("runtime", "create_container_timeout", "agent.create_container_timeout")];

/// Keys that say which implementation is meant: any other value is refused.
pub(super) static FIXED: &[(&str, &str, &[&str])] = &[
    ("runtime", "name", &["virt_container"]),
    ("runtime", "hypervisor_name", &["qemu"]),
    ("runtime", "agent_name", &["kata"]),
];

macro_rules! unsupported {
    ($($section:literal: $($name:ident)* ! $($protects:ident)*;)*) => {
        &[$(
            $(UnsupportedKey { section: $section, name: stringify!($name), protects: false },)*
            $(UnsupportedKey { section: $section, name: stringify!($protects), protects: true },)*
        )*]
    };
}

/// Keys of Kata's two runtimes that we know and do not honour.
pub static UNSUPPORTED: &[UnsupportedKey] = unsupported! {
    "hypervisor":
        valid_hypervisor_paths jailer_path valid_jailer_paths ctlpath valid_ctlpaths valid_virtio_fs_daemon_paths
        valid_entropy_sources valid_file_mem_backends valid_vhost_user_store_paths
        kernel_verity_params firmware firmware_volume vm_rootfs_driver cpu_features machine_accelerators
        disable_nested_virtualization pcie_root_port pcie_switch_port enable_iommu enable_iommu_platform
        hotplug_vfio hotplug_vfio_on_root_bus reclaim_guest_freed_memory
        disable_block_device_use block_device_aio block_device_cache_set block_device_cache_noflush
        block_device_logical_sector_size block_device_physical_sector_size disable_image_nvdimm memory_offset
        enable_vhost_user_store vhost_user_store_path vhost_user_reconnect_timeout_sec
        disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst
        disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst
        net_rate_limiter_bw_max_rate net_rate_limiter_bw_one_time_burst
        net_rate_limiter_ops_max_rate net_rate_limiter_ops_one_time_burst
        rx_rate_limiter_max_rate tx_rate_limiter_max_rate queue_size num_queues enable_iothreads indep_iothreads
        enable_mem_prealloc enable_hugepages hugepage_type enable_virtio_mem file_mem_backend
        enable_guest_swap guest_swap_path guest_swap_size_percent guest_swap_create_threshold_secs
        disable_vhost_net disable_seccomp guest_hook_path initdata qgs_port tdx_quote_generation_service_socket_port
        entropy_source use_legacy_serial enable_debug hypervisor_loglevel extra_monitor_socket dbg_monitor_socket
        msize_9p virtio_fs_extra_args virtio_fs_cache_size virtio_fs_is_dax enable_template template_path
        disable_selinux default_gpus default_gpu_model enable_numa numa_mapping
        hypervisor_socket hypervisor_timeout guest_memory_dump_path guest_memory_dump_paging
        snp_id_block snp_id_auth snp_guest_policy snp_certs_path
        ! confidential_guest sev_snp_guest rootless seccompsandbox seccomp_sandbox selinux_label;
    "agent":
        enable_debug enable_tracing debug_console_enabled log_port passfd_listener_port dial_timeout dial_timeout_ms
        cdh_api_timeout cdh_api_timeout_ms container_pipe_size launch_process_timeout mem_agent
        visible_cdi_devices image_policy_file
        ! policy;
    "runtime":
        enable_debug log_level experimental enable_tracing jaeger_endpoint jaeger_user jaeger_password enable_pprof
        emptydir_mode keep_abnormal dan_conf shared_mounts use_passfd_io passfd_listener_port pod_resource_api_sock
        disable_guest_empty_dir disable_guest_selinux guest_selinux_label kubelet_root_dir
        ! ;
};
