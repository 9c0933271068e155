//! The Linux part of a specification, in the agent's words.
//!
//! The protocol has no field for: RDMA, `unified`, CPU idle and burst, time offsets, personality,
//! memory policy, network devices, a seccomp listener or default errno, and of Intel RDT all but
//! the L3 schema.

use agent_protocol::oci as wire;
use oci_spec::runtime as oci;

use super::oci::{Sent, Unsendable, each, list, maybe_path, name, part, path, text};

pub(super) fn linux(from: &oci::Linux) -> Sent<wire::Linux> {
    Ok(wire::Linux {
        UIDMappings: each(from.uid_mappings(), mapping)?,
        GIDMappings: each(from.gid_mappings(), mapping)?,
        Sysctl: from.sysctl().clone().unwrap_or_default(),
        Resources: part(from.resources(), resources)?,
        CgroupsPath: maybe_path("linux.cgroupsPath", from.cgroups_path())?,
        Namespaces: each(from.namespaces(), namespace)?,
        Devices: each(from.devices(), device)?,
        Seccomp: part(from.seccomp(), seccomp)?,
        RootfsPropagation: text(from.rootfs_propagation()),
        MaskedPaths: list(from.masked_paths()),
        ReadonlyPaths: list(from.readonly_paths()),
        MountLabel: text(from.mount_label()),
        IntelRdt: part(from.intel_rdt(), |rdt| {
            Ok(wire::LinuxIntelRdt { L3CacheSchema: text(rdt.l3_cache_schema()), ..Default::default() })
        })?,
        ..Default::default()
    })
}

fn mapping(from: &oci::LinuxIdMapping) -> Sent<wire::LinuxIDMapping> {
    Ok(wire::LinuxIDMapping {
        HostID: from.host_id(),
        ContainerID: from.container_id(),
        Size: from.size(),
        ..Default::default()
    })
}

fn namespace(from: &oci::LinuxNamespace) -> Sent<wire::LinuxNamespace> {
    Ok(wire::LinuxNamespace {
        Type: name("linux.namespaces.type", &from.typ())?,
        Path: maybe_path("linux.namespaces.path", from.path())?,
        ..Default::default()
    })
}

fn device(from: &oci::LinuxDevice) -> Sent<wire::LinuxDevice> {
    Ok(wire::LinuxDevice {
        Path: path("linux.devices.path", from.path())?,
        Type: from.typ().as_str().to_owned(),
        Major: from.major(),
        Minor: from.minor(),
        FileMode: from.file_mode().unwrap_or_default(),
        UID: from.uid().unwrap_or_default(),
        GID: from.gid().unwrap_or_default(),
        ..Default::default()
    })
}

fn seccomp(from: &oci::LinuxSeccomp) -> Sent<wire::LinuxSeccomp> {
    Ok(wire::LinuxSeccomp {
        DefaultAction: name("linux.seccomp.defaultAction", &from.default_action())?,
        Architectures: each(from.architectures(), |arch| name("linux.seccomp.architectures", arch))?,
        Flags: each(from.flags(), |flag| name("linux.seccomp.flags", flag))?,
        Syscalls: each(from.syscalls(), syscall)?,
        ..Default::default()
    })
}

fn syscall(from: &oci::LinuxSyscall) -> Sent<wire::LinuxSyscall> {
    Ok(wire::LinuxSyscall {
        Names: from.names().clone(),
        Action: name("linux.seccomp.syscalls.action", &from.action())?,
        errnoret: from.errno_ret().unwrap_or_default(),
        Args: each(from.args(), argument)?,
        ..Default::default()
    })
}

fn argument(from: &oci::LinuxSeccompArg) -> Sent<wire::LinuxSeccompArg> {
    let index = from.index();
    Ok(wire::LinuxSeccompArg {
        Index: u64::try_from(index).map_err(|_| Unsendable::new("linux.seccomp.syscalls.args.index", index))?,
        Value: from.value(),
        ValueTwo: from.value_two().unwrap_or_default(),
        Op: name("linux.seccomp.syscalls.args.op", &from.op())?,
        ..Default::default()
    })
}

/// Limits.
pub(super) fn resources(from: &oci::LinuxResources) -> Sent<wire::LinuxResources> {
    Ok(wire::LinuxResources {
        Devices: each(from.devices(), device_rule)?,
        Memory: part(from.memory(), |memory| Ok(self::memory(memory)))?,
        CPU: part(from.cpu(), |cpu| Ok(self::cpu(cpu)))?,
        Pids: part(from.pids(), |pids| Ok(wire::LinuxPids { Limit: pids.limit(), ..Default::default() }))?,
        BlockIO: part(from.block_io(), block_io)?,
        HugepageLimits: each(from.hugepage_limits(), hugepages)?,
        Network: part(from.network(), network)?,
        ..Default::default()
    })
}

fn device_rule(from: &oci::LinuxDeviceCgroup) -> Sent<wire::LinuxDeviceCgroup> {
    Ok(wire::LinuxDeviceCgroup {
        Allow: from.allow(),
        Type: from.typ().map(|typ| typ.as_str().to_owned()).unwrap_or_default(),
        Major: from.major().unwrap_or_default(),
        Minor: from.minor().unwrap_or_default(),
        Access: text(from.access()),
        ..Default::default()
    })
}

fn memory(from: &oci::LinuxMemory) -> wire::LinuxMemory {
    wire::LinuxMemory {
        Limit: from.limit().unwrap_or_default(),
        Reservation: from.reservation().unwrap_or_default(),
        Swap: from.swap().unwrap_or_default(),
        Kernel: from.kernel().unwrap_or_default(),
        KernelTCP: from.kernel_tcp().unwrap_or_default(),
        Swappiness: from.swappiness().unwrap_or_default(),
        DisableOOMKiller: from.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu(from: &oci::LinuxCpu) -> wire::LinuxCPU {
    wire::LinuxCPU {
        Shares: from.shares().unwrap_or_default(),
        Quota: from.quota().unwrap_or_default(),
        Period: from.period().unwrap_or_default(),
        RealtimeRuntime: from.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: from.realtime_period().unwrap_or_default(),
        Cpus: text(from.cpus()),
        Mems: text(from.mems()),
        ..Default::default()
    }
}

fn block_io(from: &oci::LinuxBlockIo) -> Sent<wire::LinuxBlockIO> {
    Ok(wire::LinuxBlockIO {
        Weight: from.weight().unwrap_or_default().into(),
        LeafWeight: from.leaf_weight().unwrap_or_default().into(),
        WeightDevice: each(from.weight_device(), weight)?,
        ThrottleReadBpsDevice: each(from.throttle_read_bps_device(), throttle)?,
        ThrottleWriteBpsDevice: each(from.throttle_write_bps_device(), throttle)?,
        ThrottleReadIOPSDevice: each(from.throttle_read_iops_device(), throttle)?,
        ThrottleWriteIOPSDevice: each(from.throttle_write_iops_device(), throttle)?,
        ..Default::default()
    })
}

fn weight(from: &oci::LinuxWeightDevice) -> Sent<wire::LinuxWeightDevice> {
    Ok(wire::LinuxWeightDevice {
        Major: from.major(),
        Minor: from.minor(),
        Weight: from.weight().unwrap_or_default().into(),
        LeafWeight: from.leaf_weight().unwrap_or_default().into(),
        ..Default::default()
    })
}

fn throttle(from: &oci::LinuxThrottleDevice) -> Sent<wire::LinuxThrottleDevice> {
    Ok(wire::LinuxThrottleDevice { Major: from.major(), Minor: from.minor(), Rate: from.rate(), ..Default::default() })
}

fn hugepages(from: &oci::LinuxHugepageLimit) -> Sent<wire::LinuxHugepageLimit> {
    let limit = match from.limit() {
        // No limit: the agent reads the field as signed.
        -1 => u64::MAX,
        limit => u64::try_from(limit).map_err(|_| Unsendable::new("linux.resources.hugepageLimits.limit", limit))?,
    };
    Ok(wire::LinuxHugepageLimit { Pagesize: from.page_size().clone(), Limit: limit, ..Default::default() })
}

fn network(from: &oci::LinuxNetwork) -> Sent<wire::LinuxNetwork> {
    Ok(wire::LinuxNetwork {
        ClassID: from.class_id().unwrap_or_default(),
        Priorities: each(from.priorities(), |priority| {
            Ok(wire::LinuxInterfacePriority {
                Name: priority.name().clone(),
                Priority: priority.priority(),
                ..Default::default()
            })
        })?,
        ..Default::default()
    })
}

#[cfg(test)]
#[path = "oci_linux_tests.rs"]
mod tests;
