//! What this host can do for a sandbox, and how to fix what it cannot.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use sandbox_model::config::SandboxConfig;
use schemars::JsonSchema;
use serde::Serialize;

use crate::mode::{Facts, choose, find_program};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// There, and it works.
    Ok,
    /// Not there; something else stands in, or it is rarely needed.
    Optional,
    /// Not there, and a real VM on the real host needs it.
    Missing,
}

/// One finding.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it, if anything.
    pub(crate) fix: Option<String>,
}

/// The whole report, as `doctor --json` prints it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Report {
    /// Version of this format.
    pub(crate) v: u32,
    /// What `run` would choose here.
    pub(crate) default_mode: crate::mode::Mode,
    pub(crate) checks: Vec<Check>,
}

impl Report {
    /// Looks at this host. Changes nothing.
    pub(crate) fn new(config: &SandboxConfig) -> Self {
        let vm = &config.hypervisor;
        let checks = vec![
            root(),
            kvm(),
            program("qemu", &vm.path, State::Missing, "install QEMU, or set hypervisor.path"),
            program(
                "virtiofsd",
                &vm.virtio_fs_daemon,
                State::Missing,
                "install virtiofsd, or set hypervisor.virtio_fs_daemon",
            ),
            vhost_vsock(),
            vsock_daemon(&vm.vsock_daemon),
            file("guest kernel", Some(&vm.kernel), "hypervisor.kernel"),
            file("guest image", vm.initrd.as_deref().or(vm.image.as_deref()), "hypervisor.initrd"),
            tun(),
            cgroups(),
            user_namespaces(),
            kernel(),
        ];
        let (default_mode, _) = choose(None, None, &Facts::probe(config));
        Self { v: 1, default_mode, checks }
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, state: State::Ok, found: found.into(), fix: None }
}

fn lacks(name: &'static str, state: State, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, state, found: found.into(), fix: Some(fix.into()) }
}

fn root() -> Check {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return ok("root", "yes");
    }
    lacks("root", State::Optional, format!("user {user}"), "sudo sandboxctl …, or --host private")
}

mod kvm_ioctl {
    #![expect(unsafe_code, reason = "KVM is asked by ioctl")]
    use std::os::fd::RawFd;

    use nix::errno::Errno;

    const KVMIO: u8 = 0xAE;
    nix::ioctl_none!(get_api_version, KVMIO, 0x00);
    nix::ioctl_write_int_bad!(create_vm, nix::request_code_none!(KVMIO, 0x01));

    /// `KVM_GET_API_VERSION`.
    pub(super) fn api_version(kvm: RawFd) -> Result<i32, Errno> {
        // SAFETY: takes no argument and touches no memory of ours.
        unsafe { get_api_version(kvm) }
    }

    /// Makes a VM of the default type and drops it: only this shows that virtualisation is on.
    pub(super) fn try_vm(kvm: RawFd) -> Result<(), Errno> {
        use std::os::fd::{FromRawFd, OwnedFd};
        // SAFETY: the argument is a number (machine type 0), no pointer.
        let vm = unsafe { create_vm(kvm, 0) }?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(vm) });
        Ok(())
    }
}

fn kvm() -> Check {
    let fix = "enable virtualisation (firmware, or nested in the hypervisor), modprobe kvm_intel or kvm_amd, and let the user open /dev/kvm";
    let stands_in =
        |found: String| lacks("kvm", State::Optional, format!("{found}: TCG stands in, many times slower"), fix);
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => return stands_in(format!("/dev/kvm: {error}")),
    };
    let version = match kvm_ioctl::api_version(kvm.as_raw_fd()) {
        Ok(version) => version,
        Err(errno) => return stands_in(format!("KVM_GET_API_VERSION: {errno}")),
    };
    match kvm_ioctl::try_vm(kvm.as_raw_fd()) {
        Ok(()) => ok("kvm", format!("/dev/kvm, API {version}")),
        Err(errno) => stands_in(format!("KVM_CREATE_VM: {errno}")),
    }
}

fn program(name: &'static str, path: &Path, state: State, fix: &str) -> Check {
    match find_program(path) {
        Some(found) => ok(name, found.display().to_string()),
        None => lacks(name, state, format!("no program {}", path.display()), fix),
    }
}

fn vhost_vsock() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(_) => ok("vhost-vsock", "/dev/vhost-vsock"),
        Err(error) => lacks(
            "vhost-vsock",
            State::Optional,
            format!("/dev/vhost-vsock: {error}: the vsock daemon stands in"),
            "modprobe vhost_vsock",
        ),
    }
}

/// Needed only where the kernel's vsock is not there.
fn vsock_daemon(path: &Path) -> Check {
    let state = if Path::new("/dev/vhost-vsock").exists() { State::Optional } else { State::Missing };
    program(
        "vsock daemon",
        path,
        state,
        "cargo install vhost-device-vsock, or set hypervisor.vsock_daemon, or modprobe vhost_vsock",
    )
}

fn file(name: &'static str, path: Option<&Path>, key: &str) -> Check {
    let fix = format!("cargo xtask guest-image   # builds target/guest, or set {key}");
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) if path.exists() => ok(name, path.display().to_string()),
        Some(path) => lacks(name, State::Missing, format!("no {}", path.display()), fix),
        None => lacks(name, State::Missing, format!("{key} is not set"), fix),
    }
}

fn tun() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => ok("tun", "/dev/net/tun"),
        Err(error) => lacks("tun", State::Missing, format!("/dev/net/tun: {error}"), "modprobe tun"),
    }
}

fn cgroups() -> Check {
    let root = Path::new("/sys/fs/cgroup");
    let v2_at = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.controllers")).ok();
    let writable = |dir: &Path| nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok();
    let (mode, dir, controllers) = match (v2_at(root.to_owned()), v2_at(root.join("unified"))) {
        (Some(controllers), _) => ("v2", root.to_owned(), controllers.trim().to_owned()),
        (None, Some(_)) => ("hybrid", root.join("cpuset"), v1_controllers(root)),
        (None, None) => ("v1", root.join("cpuset"), v1_controllers(root)),
    };
    if controllers.is_empty() {
        return lacks(
            "cgroups",
            State::Missing,
            format!("{mode}: no controllers at {}", root.display()),
            "mount -t cgroup2 none /sys/fs/cgroup",
        );
    }
    let lacking: Vec<&str> = ["cpuset", "cpu", "memory"]
        .into_iter()
        .filter(|name| !controllers.split(' ').any(|have| have == *name))
        .collect();
    if !lacking.is_empty() {
        let found = format!("{mode}: {controllers}; no {}: such limits are not enforced", lacking.join(", "));
        return lacks(
            "cgroups",
            State::Optional,
            found,
            "enable the controllers in cgroup.subtree_control, or on the kernel's command line",
        );
    }
    if !writable(&dir) {
        let found = format!("{mode}: {} is not writable: limits are not enforced", dir.display());
        return lacks(
            "cgroups",
            State::Optional,
            found,
            "run as root, or have a subtree delegated (systemd: Delegate=yes)",
        );
    }
    ok("cgroups", format!("{mode}: {controllers}"))
}

fn v1_controllers(root: &Path) -> String {
    let known = ["cpuset", "cpu", "memory", "pids", "devices", "freezer", "hugetlb"];
    known.into_iter().filter(|name| root.join(name).join("cgroup.procs").exists()).collect::<Vec<_>>().join(" ")
}

fn user_namespaces() -> Check {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let blocked = [
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    for (file, value, fix) in blocked {
        if read(file).as_deref() == Some(value) {
            return lacks("user namespaces", State::Optional, format!("{file} is {value}"), fix);
        }
    }
    match read("/proc/sys/user/max_user_namespaces") {
        Some(max) => ok("user namespaces", format!("at most {max}")),
        None => {
            lacks("user namespaces", State::Optional, "the kernel has none", "a kernel with CONFIG_USER_NS, or root")
        }
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (5, 8) {
        return ok("host kernel", release);
    }
    lacks("host kernel", State::Missing, release, "Linux 5.8 or newer (openat2, pidfd, mount ids)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Report>("doctor.v1.json");
    }

    #[test]
    fn every_finding_that_is_not_ok_has_a_fix() {
        let mut config = SandboxConfig::default();
        config.hypervisor.path = "/no/such/qemu".into();
        let report = Report::new(&config);
        assert!(report.checks.iter().all(|check| (check.state == State::Ok) == check.fix.is_none()));
        let qemu = report.checks.iter().find(|check| check.name == "qemu").unwrap();
        assert_eq!((qemu.state, qemu.found.as_str()), (State::Missing, "no program /no/such/qemu"));
    }
}
