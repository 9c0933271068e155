//! The agent's storages: what is mounted in the guest before a container refers to it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use agent_protocol::agent::Storage;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::hotplug::Hotplug;
use crate::mount::Options;

/// The drivers this guest serves, as told to whoever asks.
pub(crate) const DRIVERS: [&str; 7] = ["blk", "bind", "ephemeral", "local", "overlayfs", "virtio-fs", "watchable-bind"];

/// Makes one storage appear at its mount point.
pub(crate) async fn add(storage: &Storage, hotplug: &Hotplug) -> Result<()> {
    let target = Path::new(&storage.mount_point);
    ensure!(target.is_absolute(), "mount point `{}` is not absolute", storage.mount_point);
    match storage.driver.as_str() {
        "virtio-fs" | "overlayfs" => mount_at(storage, &storage.source, &storage.options),
        "bind" | "watchable-bind" => bind(Path::new(&storage.source), target, &storage.options),
        "blk" | "mmioblk" => block(storage, hotplug).await,
        "ephemeral" => ephemeral(storage),
        "local" => local(storage),
        other => bail!("storage driver `{other}` is not served by this guest"),
    }
    .with_context(|| format!("storage {} at {}", storage.driver, storage.mount_point))
}

/// Takes one storage away again; what a `local` one holds is left to the guest's end.
pub(crate) fn remove(target: &Path) {
    let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    // Only an empty directory goes: never what a mount would have hidden.
    let _ = fs::remove_dir(target);
}

fn mount_at<S: AsRef<str>>(storage: &Storage, source: &str, options: &[S]) -> Result<()> {
    let options = Options::parse(options);
    fs::create_dir_all(&storage.mount_point).context("create the mount point")?;
    let (target, kind) = (storage.mount_point.as_str(), storage.fstype.as_str());
    mount(Some(source), target, Some(kind), options.flags, options.data())
        .with_context(|| format!("mount {source} as {kind}, options `{}`", options.data))
}

/// Binds a directory or a file; flags besides need a second mount.
fn bind(source: &Path, target: &Path, options: &[String]) -> Result<()> {
    let options = Options::parse(options);
    let metadata = fs::metadata(source).with_context(|| source.display().to_string())?;
    if metadata.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
        fs::OpenOptions::new().append(true).create(true).open(target)?;
    }
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, none, flags, none).context("bind")?;
    if !options.remount_flags().is_empty() {
        let flags = options.remount_flags() | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(none, target, none, flags, none).context("apply the options of a bind mount")?;
    }
    Ok(())
}

async fn block(storage: &Storage, hotplug: &Hotplug) -> Result<()> {
    let device = device_node(&storage.source, hotplug).await?;
    if storage.fstype == "bind" {
        return bind(&device, Path::new(&storage.mount_point), &storage.options);
    }
    let source = device.to_str().context("device name")?;
    mount_at(storage, source, &storage.options)?;
    set_group(storage)
}

/// The node of a disk given by its PCI path or by its name.
pub(crate) async fn device_node(source: &str, hotplug: &Hotplug) -> Result<PathBuf> {
    if source.starts_with("/dev/") {
        let node = PathBuf::from(source);
        hotplug.node(&node).await?;
        return Ok(node);
    }
    hotplug.block_device(source).await
}

fn ephemeral(storage: &Storage) -> Result<()> {
    let (own, options): (Vec<&String>, Vec<&String>) =
        storage.options.iter().partition(|option| option.starts_with("fsgid="));
    mount_at(storage, &storage.source, &options)?;
    give_to_group(Path::new(&storage.mount_point), value_of(&own, "fsgid"))?;
    set_group(storage)
}

fn local(storage: &Storage) -> Result<()> {
    let target = Path::new(&storage.mount_point);
    fs::create_dir_all(target)?;
    let options: Vec<&String> = storage.options.iter().collect();
    if let Some(mode) = value_of(&options, "mode") {
        let mode = u32::from_str_radix(mode, 8).with_context(|| format!("mode {mode}"))?;
        fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
    }
    give_to_group(target, value_of(&options, "fsgid"))
}

fn value_of<'a>(options: &[&'a String], key: &str) -> Option<&'a str> {
    options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

/// The directory belongs to the group, and so does what is made in it later.
fn give_to_group(target: &Path, group: Option<&str>) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    let group = group.parse().with_context(|| format!("group {group}"))?;
    chown(target, None, Some(group))?;
    let mode = fs::metadata(target)?.mode() | 0o2070;
    fs::set_permissions(target, fs::Permissions::from_mode(mode & 0o7777))?;
    Ok(())
}

fn set_group(storage: &Storage) -> Result<()> {
    match storage.fs_group.as_ref() {
        Some(group) => {
            let group = group.group_id.to_string();
            give_to_group(Path::new(&storage.mount_point), Some(&group))
        }
        None => Ok(()),
    }
}
