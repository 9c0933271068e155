//! Sockets with a name: which file one is, and when a daemon listens on it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FileType, lstat};
use rustix::io::Errno;
use sandbox_model::ledger::Identity;
use sandbox_model::{ErrorKind, PortError, PortResult};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::ready::readable;

/// Between bind(2), which makes the file, and listen(2), which nobody announces.
const BOUND_TO_LISTENING: Duration = Duration::from_millis(1);
/// `SO_ACCEPTCON` in the flags column of `/proc/net/unix`.
const LISTENING_FLAG: u32 = 0x1_0000;

/// A socket's file, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl From<SocketFile> for Identity {
    fn from(file: SocketFile) -> Self {
        Self::Inode { device: file.device, inode: file.inode }
    }
}

impl SocketFile {
    /// That at `path`.
    ///
    /// # Errors
    /// `NotFound`; `Foreign` if it is no socket.
    pub fn at(path: &Path) -> PortResult<Self> {
        let name = || path.display().to_string();
        let facts = lstat(path).map_err(|error| PortError::os("lstat", name(), error))?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::Socket {
            return Err(PortError::new(ErrorKind::Foreign, "lstat", name(), "it is no socket"));
        }
        Ok(Self { device: facts.st_dev, inode: facts.st_ino })
    }

    /// The one that an identity names, if it names a file.
    pub fn of(identity: Option<&Identity>) -> Option<Self> {
        match identity {
            Some(Identity::Inode { device, inode }) => Some(Self { device: *device, inode: *inode }),
            _ => None,
        }
    }
}

/// Removes the socket at `path`, which lies below a sandbox's own directory: nobody else makes
/// sockets there. With `made`, that very one and no other.
///
/// # Errors
/// `NotFound`; `Foreign` if something else has taken its place.
pub fn remove_socket(path: &Path, made: Option<SocketFile>) -> PortResult<()> {
    let name = || path.display().to_string();
    let found = SocketFile::at(path)?;
    if made.is_some_and(|made| made != found) {
        return Err(PortError::new(ErrorKind::Foreign, "unlink", name(), "another socket has taken its place"));
    }
    std::fs::remove_file(path).map_err(|error| PortError::os("unlink", name(), error))
}

/// Waits until somebody listens on `path`.
pub(crate) async fn listening(path: &Path) -> PortResult<()> {
    let refused = |error: io::Error| PortError::os("inotify", path.display().to_string(), error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Watched before the first look, so that nothing is missed in between.
    let events = watch(directory).map_err(refused)?;
    loop {
        if is_socket(path) {
            if is_listening(path).map_err(refused)? {
                return Ok(());
            }
            tokio::time::sleep(BOUND_TO_LISTENING).await;
        } else {
            let mut ready = events.readable().await.map_err(refused)?;
            drain(events.get_ref());
            ready.clear_ready();
        }
    }
}

fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
    readable(events)
}

/// Throws the events away: they only say that it is time to look again.
fn drain(events: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    loop {
        match rustix::io::read(events, &mut buffer) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn is_listening(path: &Path) -> io::Result<bool> {
    Ok(listed_as_listening(&std::fs::read("/proc/self/net/unix")?, path))
}

/// Columns: `Num RefCount Protocol Flags Type St Inode Path`.
fn listed_as_listening(table: &[u8], path: &Path) -> bool {
    let wanted = path.as_os_str().as_encoded_bytes();
    table.split(|&byte| byte == b'\n').filter_map(|line| line.strip_suffix(wanted)).any(|head| {
        head.ends_with(b" ")
            && std::str::from_utf8(head)
                .ok()
                .and_then(|head| head.split_ascii_whitespace().nth(3))
                .and_then(|flags| u32::from_str_radix(flags, 16).ok())
                .is_some_and(|flags| flags & LISTENING_FLAG != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let first = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let file = Some(SocketFile::at(&path).unwrap());
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let _second = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(remove_socket(&path, file).unwrap_err().kind, ErrorKind::Foreign);
        remove_socket(&path, None).unwrap();
        assert!(remove_socket(&path, None).unwrap_err().is_absent());
        std::fs::write(&path, "data").unwrap();
        assert_eq!(remove_socket(&path, None).unwrap_err().kind, ErrorKind::Foreign);
        drop(first);
    }

    #[test]
    fn only_a_listening_socket_of_that_very_path_counts() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff: 00000002 00000000 00010000 0001 01 1 /run/a.sock\n\
            ffff: 00000002 00000000 00000000 0001 01 2 /run/b.sock\n\
            ffff: 00000002 00000000 00010000 0001 01 3 /x/run/c.sock\n";
        assert!(listed_as_listening(table, Path::new("/run/a.sock")));
        for other in ["/run/b.sock", "/run/c.sock", "/run/d.sock", "a.sock"] {
            assert!(!listed_as_listening(table, Path::new(other)), "{other}");
        }
    }
}
