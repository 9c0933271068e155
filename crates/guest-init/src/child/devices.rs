//! Device nodes of a container.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use agent_protocol::oci::{LinuxDevice, Mount};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Path, major and minor of what every container may expect.
const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// What is mounted at `/dev` when the specification says nothing.
pub(super) fn default_mount() -> Mount {
    Mount {
        destination: "/dev".to_owned(),
        source: "tmpfs".to_owned(),
        type_: "tmpfs".to_owned(),
        options: ["nosuid", "strictatime", "mode=755", "size=65536k"].map(str::to_owned).to_vec(),
        ..Mount::default()
    }
}

/// Makes the usual nodes and links, then those of the specification.
pub(super) fn make_all(devices: &[LinuxDevice]) -> Result<()> {
    for (path, major, minor) in DEFAULT {
        make(path, SFlag::S_IFCHR, (major, minor), 0o666)?;
    }
    for (target, link) in LINKS {
        unless_there(symlink(target, link)).with_context(|| format!("link {link}"))?;
    }
    for device in devices {
        make_specified(device).with_context(|| format!("device {}", device.Path))?;
    }
    Ok(())
}

fn make_specified(device: &LinuxDevice) -> Result<()> {
    ensure!(device.Path.starts_with('/'), "the path is not absolute");
    let kind = match device.Type.as_str() {
        "b" => SFlag::S_IFBLK,
        "c" | "u" => SFlag::S_IFCHR,
        "p" => SFlag::S_IFIFO,
        other => bail!("type `{other}` is not known"),
    };
    if let Some(parent) = Path::new(&device.Path).parent() {
        fs::create_dir_all(parent)?;
    }
    let number = (u64::try_from(device.Major)?, u64::try_from(device.Minor)?);
    let mode = if device.FileMode == 0 { 0o660 } else { device.FileMode };
    make(&device.Path, kind, number, mode)?;
    chown(&device.Path, Some(device.UID), Some(device.GID))?;
    Ok(())
}

fn make(path: &str, kind: SFlag, (major, minor): (u64, u64), mode: u32) -> Result<()> {
    let node = mknod(path, kind, Mode::empty(), makedev(major, minor));
    unless_there(node.map_err(std::io::Error::from)).with_context(|| format!("create {path}"))?;
    // Not by mknod: the mode given there is cut by the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777))?;
    Ok(())
}

fn unless_there(made: std::io::Result<()>) -> std::io::Result<()> {
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}
