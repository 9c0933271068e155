//! The two sockets by which a VM is reached.
//!
//! We bind them and listen before QEMU exists, and QEMU inherits the listening descriptors. So the
//! first connection is made before there is anybody else, without waiting for a file to appear; and
//! a later process of ours can connect again when the first has gone. QEMU serves one connection at
//! a time: whoever comes while another is served hears nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use helper_process::SocketFile;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use sandbox_model::layout::SandboxDir;
use sandbox_model::{ErrorKind, Instant, PassedFd, PortError, PortResult};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout_at};

/// Connections that may wait until QEMU serves them.
const BACKLOG: i32 = 4;
/// QEMU's own queue has room for two; it empties when QEMU comes to it.
const QUEUE_RETRY: Duration = Duration::from_millis(5);

/// Where the sockets are.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) qmp: PathBuf,
    pub(super) console: PathBuf,
}

impl Paths {
    pub(super) fn of(dir: &Path) -> Self {
        let dir = SandboxDir::at(dir);
        Self { qmp: dir.qmp_socket(), console: dir.console_socket() }
    }
}

/// Binds `path` and listens on it. Nobody but our user may connect, from the first instant.
pub(super) fn bind_at(path: &Path) -> PortResult<(OwnedFd, SocketFile)> {
    let refused = |error: Errno| {
        let mut refused = PortError::os("bind", path.display().to_string(), error);
        match error {
            Errno::ADDRINUSE => refused.kind = ErrorKind::Exists,
            // 107 bytes are all that the kernel takes.
            Errno::NAMETOOLONG => refused.kind = ErrorKind::Invalid,
            _ => {}
        }
        refused
    };
    let address = SocketAddrUnix::new(path).map_err(refused)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(refused)?;
    // The file takes the mode of the socket (bind(2) on Linux), so the umask need not be touched.
    fchmod(&socket, Mode::from_raw_mode(0o600)).map_err(refused)?;
    bind(&socket, &address).map_err(refused)?;
    let listening = listen(&socket, BACKLOG).map_err(refused).and_then(|()| SocketFile::at(path));
    listening.map(|file| (socket, file)).map_err(PortError::doubtful)
}

/// The descriptors for QEMU, and our end of each.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) ours: UnixStream,
    pub(super) theirs: PassedFd,
}

/// Connects to a socket of ours that QEMU shall inherit.
pub(super) async fn connect_first(path: &Path, listener: OwnedFd, deadline: Instant) -> PortResult<Ends> {
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let ours = connect(path, deadline).await?;
    check_peer(path, &ours, own)?;
    Ok(Ends { ours, theirs: PassedFd::new(listener) })
}

/// Connects to a socket on which somebody listens. While its queue is full (connect(2) says EAGAIN),
/// as it is with those who came before and left again, it is tried anew.
pub(super) async fn connect(path: &Path, deadline: Instant) -> PortResult<UnixStream> {
    let name = || path.display().to_string();
    loop {
        let error = match timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => std::io::ErrorKind::WouldBlock.into(),
        };
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Err(PortError::new(ErrorKind::PeerGone, "connect", name(), error.to_string()));
        }
        if timeout_at(deadline, sleep(QUEUE_RETRY)).await.is_err() {
            let cause = "nobody accepts within the deadline";
            return Err(PortError::new(ErrorKind::TimedOut, "connect", name(), cause));
        }
    }
}

/// Whether the process that listens is `pid`, of our own user. The kernel notes who called
/// listen(2) last: we, until QEMU runs, and then QEMU.
pub(super) fn check_peer(path: &Path, stream: &UnixStream, pid: i32) -> PortResult<()> {
    let name = || path.display().to_string();
    let peer = stream.peer_cred().map_err(|error| PortError::os("SO_PEERCRED", name(), error))?;
    let user = rustix::process::geteuid().as_raw();
    if peer.pid() == Some(pid) && peer.uid() == user {
        return Ok(());
    }
    let cause = format!("pid {:?} of user {} listens, not pid {pid} of user {user}", peer.pid(), peer.uid());
    Err(PortError::new(ErrorKind::Foreign, "connect", name(), cause))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn a_socket_is_ours_alone_and_its_listener_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = Paths::of(dir.path()).qmp;
        let (listener, file) = bind_at(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.ino()), (0o600, file.inode));
        assert_eq!(bind_at(&path).unwrap_err().kind, ErrorKind::Exists);
        let ends = connect_first(&path, listener, soon()).await.unwrap();
        assert_eq!(check_peer(&path, &ends.ours, 1).unwrap_err().kind, ErrorKind::Foreign);
        drop(ends);
        assert_eq!(connect(&path, soon()).await.unwrap_err().kind, ErrorKind::PeerGone);
        assert_eq!(bind_at(&dir.path().join("x".repeat(200))).unwrap_err().kind, ErrorKind::Invalid);
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_no_longer_than_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = Paths::of(dir.path()).qmp;
        let (listener, _) = bind_at(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, Instant::now() + Duration::from_millis(50)).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind, waiting.is_empty()), (ErrorKind::TimedOut, false), "{error}");
        // Those who left are still in the queue, until they are accepted.
        waiting.clear();
        let (connected, accepted) = tokio::join!(connect(&path, soon()), async { rustix::net::accept(&listener) });
        connected.unwrap();
        accepted.unwrap();
    }
}
