use std::str::FromStr;

use serde_json::{Value, json};

use super::*;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn resources_are_whole() {
    let rate = |rate: u64| json!([{"major": 8, "minor": 1, "rate": rate}]);
    let made = resources(&read(json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": -1, "minor": 5, "access": "r"}],
        "memory": {
            "limit": -1, "reservation": 2, "swap": -1, "kernel": 4, "kernelTCP": 5, "swappiness": 60, "disableOOMKiller": true
        },
        "cpu": {
            "shares": 1024, "quota": -1, "period": 100000, "realtimeRuntime": 950000, "realtimePeriod": 1000000,
            "cpus": "0-3", "mems": "0"
        },
        "pids": {"limit": -1},
        "blockIO": {
            "weight": 10, "leafWeight": 11, "weightDevice": [{"major": 8, "minor": 0, "weight": 500, "leafWeight": 300}],
            "throttleReadBpsDevice": rate(1), "throttleWriteBpsDevice": rate(2),
            "throttleReadIOPSDevice": rate(3), "throttleWriteIOPSDevice": rate(4)
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}, {"pageSize": "1GB", "limit": -1}],
        "network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 9}]}
    })))
    .unwrap();

    let rules: Vec<_> =
        made.Devices.iter().map(|d| (d.Allow, d.Type.as_str(), d.Major, d.Minor, d.Access.as_str())).collect();
    assert_eq!(rules[0], (false, "", 0, 0, "rwm"));
    assert_eq!(rules[1], (true, "c", -1, 5, "r"));
    let memory = &made.Memory;
    assert_eq!((memory.Limit, memory.Reservation, memory.Swap), (-1, 2, -1));
    assert_eq!((memory.Kernel, memory.KernelTCP, memory.Swappiness, memory.DisableOOMKiller), (4, 5, 60, true));
    let cpu = &made.CPU;
    assert_eq!((cpu.Shares, cpu.Quota, cpu.Period), (1024, -1, 100_000));
    assert_eq!((cpu.RealtimeRuntime, cpu.RealtimePeriod), (950_000, 1_000_000));
    assert_eq!((cpu.Cpus.as_str(), cpu.Mems.as_str()), ("0-3", "0"));
    assert_eq!(made.Pids.Limit, -1);
    let io = &made.BlockIO;
    assert_eq!((io.Weight, io.LeafWeight), (10, 11));
    assert_eq!((io.WeightDevice[0].Major, io.WeightDevice[0].Weight, io.WeightDevice[0].LeafWeight), (8, 500, 300));
    let rates = [
        &io.ThrottleReadBpsDevice,
        &io.ThrottleWriteBpsDevice,
        &io.ThrottleReadIOPSDevice,
        &io.ThrottleWriteIOPSDevice,
    ];
    assert_eq!(rates.map(|devices| devices[0].Rate), [1, 2, 3, 4]);
    let limits: Vec<_> = made.HugepageLimits.iter().map(|limit| (limit.Pagesize.as_str(), limit.Limit)).collect();
    assert_eq!(limits, [("2MB", 4096), ("1GB", u64::MAX)]);
    assert_eq!((made.Network.ClassID, made.Network.Priorities[0].Name.as_str()), (7, "eth0"));
    assert_eq!(made.Network.Priorities[0].Priority, 9);
}

#[test]
fn what_is_not_set_is_absent_or_zero() {
    let made = resources(&read(json!({"memory": {}, "cpu": {}}))).unwrap();
    assert_eq!(*made.Memory, wire::LinuxMemory::default());
    assert_eq!(*made.CPU, wire::LinuxCPU::default());
    assert!(made.Pids.is_none() && made.BlockIO.is_none() && made.Network.is_none());
}

#[test]
fn a_limit_below_none_is_refused() {
    let from = read(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -2}]}));
    assert!(resources(&from).is_err());
}

#[test]
fn the_linux_part_is_whole() {
    let made = linux(&read(json!({
        "uidMappings": [{"hostID": 1000, "containerID": 0, "size": 10}],
        "gidMappings": [{"hostID": 2000, "containerID": 1, "size": 20}],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "resources": {"pids": {"limit": 5}},
        "cgroupsPath": "/cg",
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 1, "gid": 2}],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{
                "names": ["clone"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1,
                "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]
            }]
        },
        "rootfsPropagation": "rslave",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "label",
        "intelRdt": {"l3CacheSchema": "L3:0=f"}
    })))
    .unwrap();

    let (uid, gid) = (&made.UIDMappings[0], &made.GIDMappings[0]);
    assert_eq!((uid.HostID, uid.ContainerID, uid.Size), (1000, 0, 10));
    assert_eq!((gid.HostID, gid.ContainerID, gid.Size), (2000, 1, 20));
    assert_eq!(made.Sysctl["net.ipv4.ip_forward"], "1");
    assert_eq!((made.Resources.Pids.Limit, made.CgroupsPath.as_str()), (5, "/cg"));
    let namespaces: Vec<_> = made.Namespaces.iter().map(|ns| (ns.Type.as_str(), ns.Path.as_str())).collect();
    assert_eq!(namespaces, [("pid", ""), ("network", "/run/netns/x"), ("mount", "")]);
    let device = &made.Devices[0];
    assert_eq!((device.Path.as_str(), device.Type.as_str()), ("/dev/fuse", "c"));
    assert_eq!((device.Major, device.Minor, device.FileMode, device.UID, device.GID), (10, 229, 0o666, 1, 2));
    let filter = &made.Seccomp;
    assert_eq!(
        (filter.DefaultAction.as_str(), filter.Architectures[0].as_str()),
        ("SCMP_ACT_ERRNO", "SCMP_ARCH_X86_64")
    );
    assert_eq!(filter.Flags, ["SECCOMP_FILTER_FLAG_LOG"]);
    let call = &filter.Syscalls[0];
    assert_eq!((call.Names[0].as_str(), call.Action.as_str(), call.errnoret), ("clone", "SCMP_ACT_ALLOW", 1));
    let arg = &call.Args[0];
    assert_eq!((arg.Index, arg.Value, arg.ValueTwo, arg.Op.as_str()), (1, 2, 3, "SCMP_CMP_MASKED_EQ"));
    assert_eq!((made.RootfsPropagation.as_str(), made.MountLabel.as_str()), ("rslave", "label"));
    assert_eq!((made.MaskedPaths[0].as_str(), made.ReadonlyPaths[0].as_str()), ("/proc/kcore", "/proc/sys"));
    assert_eq!(made.IntelRdt.L3CacheSchema, "L3:0=f");
}

/// The Kata agent parses these names with the same library and panics at one it does not know.
#[test]
fn the_agent_knows_our_names() {
    use oci::{Arch, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, PosixRlimitType};
    fn holds<T: FromStr + PartialEq + std::fmt::Debug + serde::Serialize>(value: T) {
        let name = name("test", &value).unwrap();
        assert!(T::from_str(&name).is_ok_and(|read| read == value), "{name}");
    }
    for arch in
        [Arch::ScmpArchNative, Arch::ScmpArchX86, Arch::ScmpArchX86_64, Arch::ScmpArchX32, Arch::ScmpArchAarch64]
    {
        holds(arch);
    }
    holds(Arch::ScmpArchMips64n32);
    holds(Arch::ScmpArchPpc64le);
    for action in [
        LinuxSeccompAction::ScmpActKill,
        LinuxSeccompAction::ScmpActKillProcess,
        LinuxSeccompAction::ScmpActErrno,
        LinuxSeccompAction::ScmpActNotify,
        LinuxSeccompAction::ScmpActAllow,
    ] {
        holds(action);
    }
    holds(LinuxSeccompFilterFlag::SeccompFilterFlagTsync);
    holds(LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv);
    holds(LinuxSeccompOperator::ScmpCmpNe);
    holds(LinuxSeccompOperator::ScmpCmpMaskedEq);
    holds(PosixRlimitType::RlimitNofile);
    holds(PosixRlimitType::RlimitRttime);
}
