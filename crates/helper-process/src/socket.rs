//! When a daemon listens.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sandbox_model::{PortError, PortResult};
use tokio::io::unix::AsyncFd;

use crate::ready::readable;

/// Between bind(2), which makes the file, and listen(2), which nobody announces.
const BOUND_TO_LISTENING: Duration = Duration::from_millis(1);
/// `SO_ACCEPTCON` in the flags column of `/proc/net/unix`.
const LISTENING_FLAG: u32 = 0x1_0000;

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
