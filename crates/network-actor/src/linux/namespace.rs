//! Namespaces: entered on threads that do nothing else, named by device and inode.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;
use sandbox_model::{ErrorKind, PassedFd, PortError, PortResult};

use super::netlink::{self, Request};
use super::{dump, shown, tap};
use crate::endpoints;
use crate::host::{CreateNamespace, Inode, OpenNamespace, OpenedNamespace, RemoveFile, RemoveNamespace, Want};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Queues of all NICs of a sandbox: each is a descriptor, here and in the VMM.
const QUEUES_MAX: usize = 512;
/// Loopback is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// See [`NetworkHost::open_namespace`](crate::NetworkHost::open_namespace). Only on one of the
/// [threads](super::threads) for it.
pub(super) fn open(request: &OpenNamespace) -> PortResult<OpenedNamespace> {
    let path = &request.path;
    // What is no namespace may be anything, so opening it must neither block nor touch a terminal.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| PortError::os("open", shown(path), e))?;
    let identity = namespace_identity(&fd, path)?;
    refuse_ours(identity, path)?;
    setns(&fd, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        nix::errno::Errno::EINVAL => refused(path, "it is a namespace of another kind"),
        _ => PortError::os("setns", shown(path), errno),
    })?;
    let socket = netlink::open()?;
    let mut opened = OpenedNamespace { identity, ..OpenedNamespace::default() };
    if request.want != Want::Socket {
        opened.view = dump::view(&socket)?;
    }
    if let Want::Endpoints { queue_pairs } = request.want {
        let taps = endpoints::usable(&opened.view, &mut Vec::new()).len();
        opened.tuns = open_tuns(taps * usize::from(queue_pairs))?;
    }
    opened.socket = PassedFd::new(socket);
    Ok(opened)
}

fn open_tuns(count: usize) -> PortResult<Vec<PassedFd>> {
    if count > QUEUES_MAX {
        let cause = format!("a sandbox has at most {QUEUES_MAX} queues of its NICs together; lower network_queues");
        return Err(PortError::new(ErrorKind::Invalid, "open", format!("{count} queues"), cause));
    }
    (0..count).map(|_| tap::open_tun().map(PassedFd::new)).collect()
}

/// Device and inode of an open namespace file.
fn namespace_identity(fd: &OwnedFd, path: &Path) -> PortResult<Inode> {
    let kind = rustix::fs::fstatfs(fd).map_err(|e| PortError::os("fstatfs", shown(path), e))?;
    if kind.f_type as i64 != NSFS_MAGIC {
        return Err(refused(path, "it is no namespace"));
    }
    let stat = rustix::fs::fstat(fd).map_err(|e| PortError::os("fstat", shown(path), e))?;
    Ok(Inode { device: stat.st_dev, inode: stat.st_ino })
}

/// A sandbox in the host's namespace would redirect the host's own traffic.
fn refuse_ours(identity: Inode, path: &Path) -> PortResult<()> {
    for (theirs, whose) in [("/proc/self/ns/net", "ours"), ("/proc/1/ns/net", "the host's")] {
        // Without the right to look at process 1 there is also none to enter its namespace.
        if let Ok(stat) = rustix::fs::stat(theirs)
            && (Inode { device: stat.st_dev, inode: stat.st_ino }) == identity
        {
            return Err(refused(path, &format!("it is {whose}, which a sandbox must not touch")));
        }
    }
    Ok(())
}

fn refused(path: &Path, why: &str) -> PortError {
    PortError::new(ErrorKind::Invalid, "setns", shown(path), why)
}

/// See [`NetworkHost::create_file`](crate::NetworkHost::create_file).
pub(super) fn create_file(path: &Path) -> PortResult<Inode> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let (holder, name) = holder(path)?;
    let fd = rustix::fs::openat(holder, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| PortError::os("open(O_CREAT|O_EXCL)", shown(path), errno))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| PortError::os("fstat", shown(path), e).doubtful())?;
    Ok(Inode { device: stat.st_dev, inode: stat.st_ino })
}

/// See [`NetworkHost::create_namespace`](crate::NetworkHost::create_namespace). Only on one of
/// the [threads](super::threads) for it.
pub(super) fn create(request: &CreateNamespace) -> PortResult<OpenedNamespace> {
    let path = &request.path;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| PortError::os("unshare(CLONE_NEWNET)", shown(path), errno))?;
    let socket = netlink::open()?;
    let tuns = open_tuns(usize::from(request.tuns))?;
    bring_loopback_up(&socket)?;
    let place = place(path)?;
    // Through the descriptor, so it is this file and not what has taken its name meanwhile.
    rustix::mount::mount_bind("/proc/thread-self/ns/net", by_descriptor(&place))
        .map_err(|errno| PortError::os("mount --bind /proc/thread-self/ns/net", shown(path), errno))?;
    let bound = self::place(path).and_then(|fd| namespace_identity(&fd, path));
    Ok(OpenedNamespace {
        identity: bound.map_err(PortError::doubtful)?,
        socket: PassedFd::new(socket),
        tuns,
        view: Default::default(),
    })
}

fn bring_loopback_up(socket: &OwnedFd) -> PortResult<()> {
    let mut up = LinkMessage::default();
    up.header.index = LOOPBACK;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    let request = Request { message: RouteNetlinkMessage::SetLink(up), flags: 0 };
    for answer in netlink::transact(socket, vec![request])? {
        answer.map_err(|errno| PortError::os("RTM_SETLINK", "lo", errno))?;
    }
    Ok(())
}

/// See [`NetworkHost::remove_namespace`](crate::NetworkHost::remove_namespace).
pub(super) fn remove(request: &RemoveNamespace) -> PortResult<()> {
    let path = &request.path;
    let fd = place(path)?;
    let found = namespace_identity(&fd, path).map_err(|error| match error.kind {
        ErrorKind::Invalid => {
            PortError::new(ErrorKind::NotFound, "umount2", shown(path), "no namespace is bound there")
        }
        _ => error,
    })?;
    // An intent alone is enough: nobody else binds anything to a file of ours in our directory.
    if request.identity.is_some_and(|expected| expected != found) {
        let cause = format!("another namespace is bound there (inode {})", found.inode);
        return Err(PortError::new(ErrorKind::Foreign, "umount2", shown(path), cause));
    }
    rustix::mount::unmount(by_descriptor(&fd), UnmountFlags::DETACH)
        .map_err(|errno| PortError::os("umount2", shown(path), errno))
}

/// See [`NetworkHost::remove_file`](crate::NetworkHost::remove_file).
pub(super) fn remove_file(request: &RemoveFile) -> PortResult<()> {
    let path = &request.path;
    let (holder, name) = holder(path)?;
    let stat = rustix::fs::statat(&holder, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| PortError::os("lstat", shown(path), errno))?;
    let is_ours = match request.identity {
        Some(Inode { device, inode }) => (stat.st_dev, stat.st_ino) == (device, inode),
        None => FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0,
    };
    if !is_ours {
        let cause = "it is not the file that was made";
        return Err(PortError::new(ErrorKind::Foreign, "unlink", shown(path), cause));
    }
    rustix::fs::unlinkat(&holder, name, AtFlags::empty()).map_err(|e| PortError::os("unlink", shown(path), e))
}

/// The directory that holds the name, which is a directory and no link to one, and the name.
fn holder(path: &Path) -> PortResult<(OwnedFd, &OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(PortError::new(ErrorKind::Invalid, "open", shown(path), "it names no file in a directory"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let holder = rustix::fs::open(parent, flags, Mode::empty());
    Ok((holder.map_err(|errno| PortError::os("open", shown(parent), errno))?, name))
}

/// What is at the name now: a file, or the root of what is mounted on it. Never what a link leads to.
fn place(path: &Path) -> PortResult<OwnedFd> {
    let (holder, name) = holder(path)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(holder, name, flags, Mode::empty());
    let place = place.map_err(|errno| PortError::os("open", shown(path), errno))?;
    let stat = rustix::fs::fstat(&place).map_err(|errno| PortError::os("fstat", shown(path), errno))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        return Ok(place);
    }
    Err(PortError::new(ErrorKind::Foreign, "open", shown(path), "it is neither a file nor a namespace"))
}

/// A path that leads to an open file, whatever has become of its name.
fn by_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_only_so_many_queues() {
        let error = open_tuns(QUEUES_MAX + 1).unwrap_err();
        assert!(error.cause.contains("network_queues"), "{error}");
        assert!(open_tuns(0).unwrap().is_empty());
    }
}
