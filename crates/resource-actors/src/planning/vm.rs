//! The VM that a configuration describes.

use hypervisor::VmSpec;
use sandbox_model::config::{SandboxConfig, SharedFs};

use crate::cpu::Base;
use crate::host::HostSize;

/// The most vCPUs of a QEMU VM that we ask for (behaviour A16).
const VCPUS_MAX: u32 = 256;
/// What our guests boot with, before the configuration's `kernel_params`. `panic=1` and
/// `-no-reboot` together turn a guest's panic into the end of the VM.
const KERNEL_PARAMS: &str = "console=ttyS0 quiet panic=1 cryptomgr.notests tsc=reliable no_timer_check \
                             memhp_default_state=offline systemd.unified_cgroup_hierarchy=1";

/// What the VM is started with.
///
/// # Errors
/// A text that names the key, its value and what would be right.
pub fn vm_spec(config: &SandboxConfig, host: HostSize, vhost_user: bool) -> Result<VmSpec, String> {
    let vm = &config.hypervisor;
    if vm.kernel.as_os_str().is_empty() {
        return Err("hypervisor.qemu.kernel is not set: name a guest kernel".to_owned());
    }
    if vm.initrd.is_none() && vm.image.is_none() {
        return Err("neither hypervisor.qemu.initrd nor image is set: the guest has no root file system".to_owned());
    }
    let base = vm_base(config, host)?;
    let root = match (&vm.image, &vm.initrd) {
        (Some(_), None) => format!(" root=/dev/vda ro rootfstype={}", vm.rootfs_type),
        _ => String::new(),
    };
    Ok(VmSpec {
        program: vm.path.clone(),
        machine: vm.machine_type.clone(),
        accelerator: vm.accelerator,
        kernel: vm.kernel.clone(),
        initrd: vm.initrd.clone(),
        kernel_params: format!("{KERNEL_PARAMS}{root} {}", vm.kernel_params).trim_end().to_owned(),
        vcpus: boot_vcpus(&base),
        vcpus_max: base.vcpus_max,
        memory_mib: base.memory_mib,
        memory_max_mib: base.memory_max_mib,
        memory_slots: vm.memory_slots,
        shared_memory: vhost_user || vm.shared_fs == SharedFs::VirtioFs,
        bridges: vm.default_bridges,
    })
}

/// The size at boot and the limits of growth (behaviour A11, A16: 0 means what the host has).
///
/// # Errors
/// As [`vm_spec`].
pub fn vm_base(config: &SandboxConfig, host: HostSize) -> Result<Base, String> {
    let (vm, is_static) = (&config.hypervisor, config.runtime.static_sandbox_resource_mgmt);
    if !vm.default_vcpus.is_finite() || vm.default_vcpus < 0.0 {
        return Err(format!("hypervisor.qemu.default_vcpus {} is no number of CPUs", vm.default_vcpus));
    }
    let vcpus = if vm.default_vcpus == 0.0 { 1.0 } else { vm.default_vcpus };
    let mut base = Base {
        vcpus,
        vcpus_max: if vm.default_maxvcpus == 0 { host.cpus } else { vm.default_maxvcpus },
        memory_mib: u64::from(vm.default_memory),
        memory_max_mib: if vm.default_maxmemory == 0 { host.memory_mib } else { u64::from(vm.default_maxmemory) },
        block_mib: 0,
        is_static,
    };
    if base.memory_mib == 0 {
        return Err("hypervisor.qemu.default_memory is 0: a VM needs some memory".to_owned());
    }
    let boot = boot_vcpus(&base);
    base.vcpus_max = if is_static { boot } else { base.vcpus_max.clamp(boot, VCPUS_MAX.max(boot)) };
    base.memory_max_mib = base.memory_max_mib.max(base.memory_mib);
    Ok(base)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "finite and at least 1, checked by vm_base"
)]
fn boot_vcpus(base: &Base) -> u32 {
    (base.vcpus.ceil() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostSize = HostSize { cpus: 4, memory_mib: 16_384 };

    fn config() -> SandboxConfig {
        let mut config = SandboxConfig::default();
        config.hypervisor.kernel = "/k".into();
        config.hypervisor.initrd = Some("/i".into());
        config
    }

    #[test]
    fn zero_means_what_the_host_has() {
        let spec = vm_spec(&config(), HOST, false).unwrap();
        assert_eq!((spec.vcpus, spec.vcpus_max, spec.memory_mib, spec.memory_max_mib), (1, 4, 2048, 16_384));
        assert!(spec.shared_memory, "virtio-fs needs it");
    }

    #[test]
    fn limits_never_lie_below_what_it_boots_with() {
        let mut config = config();
        config.hypervisor.default_vcpus = 6.5;
        config.hypervisor.default_maxvcpus = 2;
        config.hypervisor.default_maxmemory = 100;
        let spec = vm_spec(&config, HOST, false).unwrap();
        assert_eq!((spec.vcpus, spec.vcpus_max, spec.memory_max_mib), (7, 7, 2048));
        config.runtime.static_sandbox_resource_mgmt = true;
        config.hypervisor.default_maxvcpus = 64;
        assert_eq!(vm_spec(&config, HOST, false).unwrap().vcpus_max, 7);
    }

    #[test]
    fn what_is_missing_is_named_by_its_key() {
        let mut bad = config();
        bad.hypervisor.kernel = "".into();
        assert!(vm_spec(&bad, HOST, false).unwrap_err().contains("hypervisor.qemu.kernel"));
        let mut bad = config();
        bad.hypervisor.initrd = None;
        assert!(vm_spec(&bad, HOST, false).unwrap_err().contains("initrd"));
        let mut bad = config();
        bad.hypervisor.default_memory = 0;
        assert!(vm_spec(&bad, HOST, false).unwrap_err().contains("default_memory"));
        let mut bad = config();
        bad.hypervisor.default_vcpus = f32::NAN;
        assert!(vm_spec(&bad, HOST, false).unwrap_err().contains("default_vcpus"));
    }
}
