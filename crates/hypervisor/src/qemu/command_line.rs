//! QEMU's command line, as a pure function of what is asked.
//!
//! Devices are not on it: all of them are plugged by QMP while the VM is paused, so that cold and
//! hot plugging are one path.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use crate::{FIRST_BRIDGE_SLOT, VmSpec};

/// Number of the control channel's listening socket in QEMU.
pub(super) const QMP_FD: RawFd = 3;
/// Number of the serial console's listening socket in QEMU.
pub(super) const CONSOLE_FD: RawFd = 4;
/// The memory backend's name.
pub(super) const MEMORY: &str = "mem0";
/// What the names of bridges begin with.
const BRIDGE: &str = "pci-bridge-";
/// What a taken-over QEMU may not do: start programs, change its user or its scheduling.
const SECCOMP: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// How instructions are executed, once decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Executor {
    Kvm,
    Tcg,
}

impl Executor {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The CPU model: all that the executor has.
    pub(super) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// The arguments for `spec`. The VM waits, paused, for QMP's `cont`.
pub(super) fn arguments(spec: &VmSpec, name: &str, executor: Executor) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.option("-name", format!("{name},debug-threads=on"));
    args.option("-machine", machine(spec, executor));
    args.option("-cpu", executor.cpu());
    args.option("-smp", vcpus(spec));
    args.option("-m", memory(spec));
    if spec.shared_memory {
        let size = spec.memory_mib;
        args.option("-object", format!("memory-backend-memfd,id={MEMORY},size={size}M,share=on"));
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
        args.flag(flag);
    }
    args.option("-display", "none");
    args.option("-sandbox", SECCOMP);
    args.option("-chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    args.option("-mon", "chardev=qmp,mode=control");
    args.option("-chardev", format!("socket,id=console,fd={CONSOLE_FD},server=on,wait=off"));
    args.option("-serial", "chardev:console");
    for bridge in 0..spec.bridges {
        args.option("-device", pci_bridge(bridge));
    }
    args.option("-kernel", absolute(&spec.kernel));
    if let Some(initrd) = &spec.initrd {
        args.option("-initrd", absolute(initrd));
    }
    args.option("-append", &spec.kernel_params);
    args.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }
}

fn machine(spec: &VmSpec, executor: Executor) -> String {
    let backend = if spec.shared_memory { format!(",memory-backend={MEMORY}") } else { String::new() };
    format!("{},accel={}{backend}", spec.machine, executor.name())
}

/// A socket for each vCPU: that is what can be plugged one by one.
fn vcpus(spec: &VmSpec) -> String {
    let max = spec.vcpus_max.max(spec.vcpus);
    format!("{},maxcpus={max},sockets={max},cores=1,threads=1", spec.vcpus)
}

fn memory(spec: &VmSpec) -> String {
    if spec.memory_slots == 0 || spec.memory_max_mib <= spec.memory_mib {
        return format!("{}M", spec.memory_mib);
    }
    format!("{}M,slots={},maxmem={}M", spec.memory_mib, spec.memory_slots, spec.memory_max_mib)
}

/// The bridge of that name, if it is one.
pub(super) fn bridge_of(name: &str) -> Option<u8> {
    let number = name.strip_prefix(BRIDGE)?.parse().ok()?;
    (bridge_name(number) == name).then_some(number)
}

/// Name of a bridge, which is also that of the bus behind it.
pub(super) fn bridge_name(bridge: u8) -> String {
    format!("{BRIDGE}{bridge}")
}

/// The reserves are what a device plugged later finds room in: without them it has no BARs. QEMU
/// reads `addr` as hexadecimal.
fn pci_bridge(bridge: u8) -> String {
    format!(
        "pci-bridge,id={},bus=pcie.0,chassis_nr={},addr={:x},shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m",
        bridge_name(bridge),
        bridge + 1,
        FIRST_BRIDGE_SLOT + bridge,
    )
}

/// QEMU runs in `/`. A path that cannot be made absolute is left for QEMU to complain about.
fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use sandbox_model::config::Accelerator;

    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            program: "/usr/bin/qemu-system-x86_64".into(),
            machine: "q35".into(),
            accelerator: Accelerator::Auto,
            kernel: "/k/vmlinux".into(),
            initrd: None,
            kernel_params: "console=ttyS0 quiet".into(),
            vcpus: 1,
            vcpus_max: 4,
            memory_mib: 512,
            memory_max_mib: 2048,
            memory_slots: 10,
            shared_memory: true,
            bridges: 1,
        }
    }

    /// The values of one option, in order.
    fn values(spec: &VmSpec, executor: Executor, option: &str) -> Vec<String> {
        let args = arguments(spec, "pod-1", executor);
        let pairs = args.iter().zip(args.iter().skip(1));
        pairs.filter(|(name, _)| *name == option).map(|(_, value)| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_wish_becomes_its_option() {
        type Change = fn(&mut VmSpec);
        let table: [(&str, Change, &[&str]); 12] = [
            ("-machine", |_| {}, &["q35,accel=tcg,memory-backend=mem0"]),
            ("-machine", |s| s.shared_memory = false, &["q35,accel=tcg"]),
            ("-object", |_| {}, &["memory-backend-memfd,id=mem0,size=512M,share=on"]),
            ("-object", |s| s.shared_memory = false, &[]),
            ("-smp", |_| {}, &["1,maxcpus=4,sockets=4,cores=1,threads=1"]),
            ("-smp", |s| s.vcpus_max = 0, &["1,maxcpus=1,sockets=1,cores=1,threads=1"]),
            ("-m", |_| {}, &["512M,slots=10,maxmem=2048M"]),
            ("-m", |s| s.memory_slots = 0, &["512M"]),
            ("-m", |s| s.memory_max_mib = 512, &["512M"]),
            ("-initrd", |s| s.initrd = Some("/k/initrd".into()), &["/k/initrd"]),
            ("-append", |_| {}, &["console=ttyS0 quiet"]),
            ("-device", |s| s.bridges = 0, &[]),
        ];
        for (option, change, wanted) in table {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(values(&spec, Executor::Tcg, option), wanted, "{option}");
        }
        assert_eq!(values(&spec(), Executor::Kvm, "-machine"), ["q35,accel=kvm,memory-backend=mem0"]);
        assert_eq!(values(&spec(), Executor::Kvm, "-cpu"), ["host"]);
        assert_eq!(values(&spec(), Executor::Tcg, "-cpu"), ["max"]);
    }

    #[test]
    fn bridges_sit_side_by_side_and_reserve_room() {
        let bridges = values(&VmSpec { bridges: 2, ..spec() }, Executor::Tcg, "-device");
        let reserves = "shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m";
        assert_eq!(
            bridges,
            [
                format!("pci-bridge,id=pci-bridge-0,bus=pcie.0,chassis_nr=1,addr=2,{reserves}"),
                format!("pci-bridge,id=pci-bridge-1,bus=pcie.0,chassis_nr=2,addr=3,{reserves}"),
            ]
        );
    }
}
