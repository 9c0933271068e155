//! `mount_setattr(2)`, which neither rustix nor nix has.
#![expect(unsafe_code, reason = "a system call without a safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

pub(crate) use libc::{MOUNT_ATTR_NODEV as NODEV, MOUNT_ATTR_NOSUID as NOSUID, MOUNT_ATTR_RDONLY as RDONLY};

/// Where later mounts and unmounts are passed on to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Propagation {
    /// Nowhere and from nowhere.
    Private,
    /// To all copies of this mount (mount_namespaces(7)).
    Shared,
}

/// How much of the tree.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Depth {
    /// The mount alone.
    Single,
    /// It and all mounts below.
    Recursive,
}

/// Sets attributes and propagation of `mount`, which may be detached.
pub(crate) fn set(mount: BorrowedFd<'_>, attributes: u64, propagation: Propagation, depth: Depth) -> io::Result<()> {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
    };
    let request = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    let recursive = match depth {
        Depth::Single => 0,
        Depth::Recursive => libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a C string, `request` lives across the call, its size is passed, and the
    // kernel only reads from both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
