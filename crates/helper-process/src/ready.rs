//! Waiting for a descriptor that is neither file nor socket: a pidfd, an inotify instance.
#![expect(unsafe_code, reason = "tokio registers a raw descriptor and cannot know that it stays open")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the current runtime.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one descriptor for its whole life and keeps it open, and `AsyncFd`
    // owns it until it has deregistered it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}
