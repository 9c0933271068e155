//! A tap for a test: gone with its last descriptor.
#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use nix::libc;
use sandbox_model::PassedFd;

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// The queues of a new tap; `None` where none can be made.
pub(crate) fn queues(count: usize) -> Option<Vec<PassedFd>> {
    let multi = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi) as libc::c_short;
    (0..count)
        .map(|_| {
            let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok()?;
            // SAFETY: TUNSETIFF reads and writes one ifreq; the name that it writes joins the
            // next queue to the same tap.
            let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &mut request) };
            (done == 0).then(|| PassedFd::new(file.into()))
        })
        .collect()
}
