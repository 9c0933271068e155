//! Mounts, made and taken away by descriptor.
//!
//! A mount is cloned, shut off and made read-only while nobody can see it, and attached in one step;
//! it is taken away only if it is the very one that was attached.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use sandbox_model::device::Access;
use sandbox_model::{ErrorKind, Live, PortError, PortResult};

use super::attributes::{self, Depth, NODEV, NOSUID, Propagation, RDONLY};
use super::tree::{facts, open, refused};
use crate::host::{Attach, Base, Below, Detach, Export, Look, Mounted, Seen, SetId, Source, SourceKind};

pub(super) fn look_at(request: &Look) -> PortResult<Vec<Option<Seen>>> {
    let base = Base::default();
    let seen = |path: &PathBuf| {
        let at = Below { dir: request.dir.clone(), path: path.clone(), base: base.clone() };
        let place = match open(&at) {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let found = facts(&place).map_err(refused("statx", &at))?;
        Ok(Some(Seen { inode: found.inode, mount_id: found.mount_id }))
    };
    request.paths.iter().map(seen).collect()
}

/// Opens what shall be shared. Its path is the host's own and may lead through symlinks; from here
/// on only the descriptor counts.
pub(super) fn open_source(path: &Path) -> PortResult<Source> {
    let object = || path.display().to_string();
    let invalid = |cause: String| PortError::new(ErrorKind::Invalid, "open", object(), cause);
    if !path.is_absolute() {
        return Err(invalid("the path is not absolute".into()));
    }
    let handle = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| PortError::os("open", object(), errno))?;
    let found = facts(&handle).map_err(|errno| PortError::os("statx", object(), errno))?;
    let kind = match found.kind {
        FileType::Directory => SourceKind::Directory,
        FileType::RegularFile => SourceKind::File,
        other => {
            return Err(invalid(format!("it is {}; only directories and regular files can be", name(other))));
        }
    };
    let (inode, mount_id) = (found.inode, found.mount_id);
    Ok(Source { path: path.to_owned(), inode, mount_id, kind, handle: Live::new(handle) })
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "of an unknown kind",
    }
}

pub(super) fn export(request: &Export) -> PortResult<Mounted> {
    let at = &request.to;
    let target = free_place(at)?;
    let from = open(&request.from)?;
    let tree = clone_tree(&from, Depth::Single).map_err(refused("open_tree", &request.from))?;
    // Out of the peer group of whatever holds the state directory, then into one of its own: the
    // daemon's mount namespace is a slave of that and sees what is mounted here later.
    for propagation in [Propagation::Private, Propagation::Shared] {
        attributes::set(tree.as_fd(), RDONLY | NOSUID | NODEV, propagation, Depth::Single)
            .map_err(|error| PortError::os("mount_setattr", at.absolute().display().to_string(), error))?;
    }
    place(&tree, &target, at)
}

pub(super) fn attach(request: &Attach) -> PortResult<Mounted> {
    let (at, source) = (&request.at, &request.source);
    let object = || source.path.display().to_string();
    let handle = source
        .handle
        .get()
        .ok_or_else(|| PortError::new(ErrorKind::Invalid, "open_tree", object(), "the source is not open"))?;
    let target = free_place(at)?;
    let tree = clone_tree(handle, Depth::Recursive).map_err(|errno| PortError::os("open_tree", object(), errno))?;
    let read_only = if request.access == Access::ReadOnly { RDONLY } else { 0 };
    let set_id = if request.set_id == SetId::Ignored { NOSUID } else { 0 };
    // Private: what the guest's side unmounts must not vanish from the source as well.
    attributes::set(tree.as_fd(), NODEV | read_only | set_id, Propagation::Private, Depth::Recursive)
        .map_err(|error| PortError::os("mount_setattr", object(), error))?;
    place(&tree, &target, at)
}

/// An existing name on which nothing is mounted.
fn free_place(at: &Below) -> PortResult<OwnedFd> {
    let target = open(at)?;
    if facts(&target).map_err(refused("statx", at))?.is_mount_root {
        let object = at.absolute().display().to_string();
        return Err(PortError::new(ErrorKind::Exists, "move_mount", object, "something is mounted there already"));
    }
    Ok(target)
}

fn clone_tree(of: &OwnedFd, depth: Depth) -> rustix::io::Result<OwnedFd> {
    let recursive = match depth {
        Depth::Single => OpenTreeFlags::empty(),
        Depth::Recursive => OpenTreeFlags::AT_RECURSIVE,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(of, "", flags | recursive)
}

/// Attaches a detached mount. The last step: what fails before or in it has changed nothing.
fn place(tree: &OwnedFd, target: &OwnedFd, at: &Below) -> PortResult<Mounted> {
    let mount_id = facts(tree).map_err(refused("statx", at))?.mount_id;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).map_err(refused("move_mount", at))?;
    Ok(Mounted { mount_id })
}

pub(super) fn detach(request: &Detach) -> PortResult<()> {
    let at = &request.at;
    let object = || at.absolute().display().to_string();
    let gone = || PortError::new(ErrorKind::NotFound, "umount2", object(), "nothing is mounted there");
    let target = open(at)?;
    let found = facts(&target).map_err(refused("statx", at))?;
    if !found.is_mount_root {
        return Err(gone());
    }
    let foreign = |cause: String| PortError::new(ErrorKind::Foreign, "umount2", object(), cause);
    match request.mount_id {
        Some(ours) if ours != found.mount_id => {
            return Err(foreign(format!("mount {} is there, ours was {ours}", found.mount_id)));
        }
        Some(_) => {}
        // Nobody noted its id: it is ours if it shows the object that we were about to mount.
        None => {
            let wanted = openat(CWD, &request.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let wanted = wanted.and_then(facts).ok().map(|source| source.inode);
            if wanted != Some(found.inode) {
                let (mounted, source) = (found.inode.inode, request.source.display());
                return Err(foreign(format!("inode {mounted} is mounted there, not {source}")));
            }
        }
    }
    // Through the descriptor that was looked at, so it is this mount and no other. Detached, since
    // the daemon holds descriptors on whatever the guest has looked up.
    unmount(format!("/proc/self/fd/{}", target.as_raw_fd()), UnmountFlags::DETACH).map_err(refused("umount2", at))?;
    drop(target);
    let left = open(at).and_then(|place| facts(place).map_err(refused("statx", at)))?;
    if left.is_mount_root {
        return Err(foreign(format!("mount {} appeared below ours", left.mount_id)));
    }
    Ok(())
}
