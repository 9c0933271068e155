//! Descriptors on the event loop.

#![expect(unsafe_code, reason = "the event loop takes any descriptor on trust")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Puts a descriptor, which must not block, on the event loop.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always answers the same open descriptor, and nobody else closes it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
