//! What comes from the distribution: each package is known by a file that it brings.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tool;

/// A package, and the files any one of which says that it is there.
type Package = (&'static str, &'static [&'static str]);

/// To build the guest and to run a sandbox.
const RUN: &[Package] = &[
    ("qemu-system-x86", &["/usr/bin/qemu-system-x86_64"]),
    ("qemu-system-common", &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]),
    ("kmod", &["/usr/sbin/depmod", "/sbin/depmod"]),
    ("lz4", &["/usr/bin/lz4"]),
    ("zstd", &["/usr/bin/zstd"]),
    ("xz-utils", &["/usr/bin/xz"]),
    ("gcc", &["/usr/bin/cc"]),
    ("binutils", &["/usr/bin/strip"]),
    ("libc6-dev", &["/usr/lib/x86_64-linux-gnu/libc.a"]),
];

/// What the tests need on top.
const TEST: &[Package] = &[
    ("e2fsprogs", &["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"]),
    ("iputils-ping", &["/usr/bin/ping", "/bin/ping"]),
    ("mount", &["/usr/sbin/losetup", "/sbin/losetup"]),
    ("strace", &["/usr/bin/strace"]),
];

/// Installs what a sandbox needs and this machine lacks.
pub(crate) fn for_run() -> Result<()> {
    install(&missing(RUN))
}

/// Installs what the tests need and this machine lacks.
pub(crate) fn for_tests() -> Result<()> {
    install(&[missing(RUN), missing(TEST)].concat())
}

/// Reads the lists of packages, if none has been read: a fresh container brings none.
pub(crate) fn ensure_lists(package: &str) -> Result<()> {
    let known = tool::output(Command::new("apt-cache").args(["madison", package]))?;
    if known.is_empty() { update() } else { Ok(()) }
}

fn missing(packages: &[Package]) -> Vec<&'static str> {
    let absent = packages.iter().filter(|(_, files)| !files.iter().any(|file| Path::new(file).exists()));
    absent.map(|(name, _)| *name).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(tool::is_root(), "missing here: {list}\nas root: apt-get install {list}");
    eprintln!("installing {list}");
    update()?;
    if apt_install(packages, None).is_ok() {
        return Ok(());
    }
    // A qemu-utils from backports conflicts with the qemu-system-common that brings virtiofsd.
    let utils = format!("qemu-utils/{}", suite()?);
    eprintln!("apt refused; once more with {utils} and leave to go back to that version");
    apt_install(packages, Some(&utils)).with_context(|| format!("install {list}"))
}

fn apt_install(packages: &[&str], downgraded: Option<&str>) -> Result<()> {
    let mut command = apt(&["install", "--yes", "--no-install-recommends"]);
    command.args(downgraded.map(|_| "--allow-downgrades")).args(packages).args(downgraded);
    tool::run(&mut command)
}

fn update() -> Result<()> {
    tool::run(&mut apt(&["update"])).context("read the lists of packages")
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The distribution's release, as `bookworm`.
fn suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    codename(&text).context("/etc/os-release names no VERSION_CODENAME")
}

fn codename(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_with_and_without_quotes() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n").as_deref(), Some("noble"));
        assert_eq!(codename("ID=debian\n"), None);
    }

    #[test]
    fn one_file_of_several_is_enough() {
        assert_eq!(missing(&[("here", &["/no/such", "/proc"]), ("absent", &["/no/such"])]), ["absent"]);
    }
}
