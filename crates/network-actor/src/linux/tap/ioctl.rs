//! `/dev/net/tun`: the one part of a tap that netlink does not offer.
#![expect(unsafe_code, reason = "TUNSETIFF and waiting for a descriptor have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use rustix::fs::{Mode, OFlags};
use sandbox_model::{ErrorKind, PortError, PortResult};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `IFF_TUN_EXCL` of `linux/if_tun.h`: refuse a link that exists instead of joining it.
const IFF_TUN_EXCL: i32 = 0x8000;

nix::ioctl_readwrite_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

/// A descriptor bound to the namespace of this thread, and to no link yet.
pub(in crate::linux) fn open_tun() -> PortResult<OwnedFd> {
    rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| PortError::os("open", "/dev/net/tun", errno))
}

/// Makes a tap that is gone with its last descriptor (never `TUNSETPERSIST`), with this as its
/// first queue.
///
/// # Errors
/// `Exists`: there is a link of that name.
pub(super) fn create(queue: &OwnedFd, name: &str, is_multi_queue: bool) -> PortResult<()> {
    let multi_queue = if is_multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    set_iff(queue, name, multi_queue | IFF_TUN_EXCL).map_err(|errno| match errno {
        Errno::EBUSY => PortError::new(ErrorKind::Exists, "TUNSETIFF", name, "a link of that name is there"),
        _ => PortError::os("TUNSETIFF", name, errno),
    })
}

/// Adds a queue to a tap.
pub(super) fn join(queue: &OwnedFd, name: &str) -> PortResult<()> {
    set_iff(queue, name, libc::IFF_MULTI_QUEUE).map_err(|errno| PortError::os("TUNSETIFF (another queue)", name, errno))
}

/// Lets frames and the end of a queue's tap wake whoever waits for them.
///
/// # Errors
/// This thread has no runtime with I/O, or watches the queue already.
pub(super) fn watch(queue: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `Arc` owns the descriptor and stays in the returned value, so it is open, and the
    // same, until it is deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE | Interest::ERROR) }?)
}

fn set_iff(queue: &OwnedFd, name: &str, flags: i32) -> Result<(), Errno> {
    if name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(Errno::ENAMETOOLONG);
    }
    let flags = flags | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: `ifreq` is plain old data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The field is 16 bits wide and IFF_TUN_EXCL is the highest of them.
    request.ifr_ifru.ifru_flags = (flags as u16).cast_signed();
    // SAFETY: the descriptor is open for the duration of the call, and `request` is a whole `ifreq`
    // that the kernel reads and writes back in place.
    unsafe { tunsetiff(queue.as_raw_fd(), &raw mut request) }.map(drop)
}
