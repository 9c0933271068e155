//! A container's view of the file system.
//!
//! Runs in a mount namespace of its own. Mount points are looked up inside the container's root
//! (`RESOLVE_IN_ROOT`), so no link in an image leads out of it; mounting goes through the
//! descriptor that was found. After `pivot_root` plain paths are safe and are used.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use agent_protocol::oci::{Mount, Spec};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::devices;
use crate::mount::Options;

const NONE: Option<&str> = None;

/// Makes the container's root the root of this process.
pub(super) fn enter(spec: &Spec) -> Result<()> {
    let root = bind_root(Path::new(&spec.Root.Path)).with_context(|| format!("prepare root {}", spec.Root.Path))?;
    if !spec.Mounts.iter().any(|entry| entry.destination == "/dev") {
        // Device nodes must not end up in the image.
        mount_entry(&root, &devices::default_mount()).context("mount /dev")?;
    }
    for entry in &spec.Mounts {
        mount_entry(&root, entry)
            .with_context(|| format!("mount {} ({}) at {}", entry.source, entry.type_, entry.destination))?;
    }
    pivot(&root).context("change the root")?;
    devices::make_all(&spec.Linux.Devices)?;
    set_sysctls(spec)?;
    for path in &spec.Linux.ReadonlyPaths {
        make_readonly(path).with_context(|| format!("make {path} read-only"))?;
    }
    for path in &spec.Linux.MaskedPaths {
        mask(path).with_context(|| format!("mask {path}"))?;
    }
    if spec.Root.Readonly {
        remount("/", MsFlags::MS_RDONLY).context("make the root read-only")?;
    }
    Ok(())
}

fn bind_root(root: &Path) -> Result<OwnedFd> {
    // Nothing mounted here may show in the guest.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    mount(Some(root), root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    mount(NONE, root, NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    Ok(open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn pivot(root: &OwnedFd) -> Result<()> {
    fchdir(root)?;
    // The old root ends up on top of the new one, from where it is taken away with all below it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}

fn mount_entry(root: &OwnedFd, entry: &Mount) -> Result<()> {
    let extended = |option: &&String| *option != "tmpcopyup" && !option.starts_with("X-");
    let options: Vec<&String> = entry.options.iter().filter(extended).collect();
    let options = Options::parse(&options);
    // What the host calls ephemeral or local is a storage by now, mounted in the guest.
    let bind = options.is_bind() || matches!(entry.type_.as_str(), "bind" | "local" | "ephemeral");
    let directory = !bind || fs::metadata(&entry.source).context("source")?.is_dir();
    let target = make_target(root, Path::new(&entry.destination), directory)?;
    if bind {
        let flags = MsFlags::MS_BIND | (options.flags & MsFlags::MS_REC);
        mount(Some(entry.source.as_str()), &proc_path(&target), NONE, flags, NONE)?;
    } else {
        let (kind, data) = match entry.type_.as_str() {
            "cgroup" => ("cgroup2", None),
            kind => (kind, options.data()),
        };
        mount(Some(entry.source.as_str()), &proc_path(&target), Some(kind), options.flags, data)?;
    }
    // The descriptor still names what is below the mount: look it up again.
    let mounted = look_up(root, Path::new(&entry.destination), OFlag::empty())?;
    if bind && !options.remount_flags().is_empty() {
        remount(&proc_path(&mounted), options.remount_flags()).context("apply options")?;
    }
    if !options.propagation.is_empty() {
        mount(NONE, &proc_path(&mounted), NONE, options.propagation, NONE).context("propagation")?;
    }
    Ok(())
}

fn remount(path: &(impl nix::NixPath + ?Sized), flags: MsFlags) -> nix::Result<()> {
    mount(NONE, path, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, NONE)
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn look_up(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// The mount point inside the root; what is missing is made.
fn make_target(root: &OwnedFd, path: &Path, directory: bool) -> Result<OwnedFd> {
    let mut names: Vec<_> = path.components().filter_map(normal).collect();
    let last = if directory { None } else { names.pop() };
    let mut prefix = PathBuf::from("/");
    let mut parent = look_up(root, &prefix, OFlag::O_DIRECTORY)?;
    for name in names {
        prefix.push(name);
        parent = match look_up(root, &prefix, OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => {
                mkdirat(&parent, name, Mode::from_bits_truncate(0o755))
                    .with_context(|| format!("create {}", prefix.display()))?;
                look_up(root, &prefix, OFlag::O_DIRECTORY)?
            }
            found => found.with_context(|| prefix.display().to_string())?,
        };
    }
    let Some(name) = last else { return Ok(parent) };
    prefix.push(name);
    match look_up(root, &prefix, OFlag::empty()) {
        Err(Errno::ENOENT) => {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            openat(&parent, name, create, Mode::from_bits_truncate(0o644))
                .with_context(|| format!("create {}", prefix.display()))?;
            Ok(look_up(root, &prefix, OFlag::empty())?)
        }
        found => found.with_context(|| prefix.display().to_string()),
    }
}

fn normal(component: Component<'_>) -> Option<&Path> {
    match component {
        Component::Normal(name) => Some(Path::new(name)),
        _ => None,
    }
}

fn set_sysctls(spec: &Spec) -> Result<()> {
    for (key, value) in &spec.Linux.Sysctl {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(&path, value).with_context(|| format!("set {key} to {value}"))?;
    }
    Ok(())
}

fn make_readonly(path: &str) -> Result<()> {
    if !Path::new(path).exists() {
        return Ok(());
    }
    mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    // Mounting again replaces the flags: those that are there must be said again.
    let has = statvfs(path)?.flags();
    let mut flags = MsFlags::MS_RDONLY;
    for (is, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        flags.set(keep, has.contains(is));
    }
    Ok(remount(path, flags)?)
}

fn mask(path: &str) -> Result<()> {
    match fs::metadata(path) {
        Err(_) => {}
        Ok(found) if found.is_dir() => {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, NONE)?;
        }
        Ok(_) => mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE)?,
    }
    Ok(())
}
