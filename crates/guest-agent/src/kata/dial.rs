//! How a connection to an agent comes about.
//!
//! Until the agent listens, the vsock daemon ends the connection without `OK`: everything short
//! of a clear no is tried again until the deadline. A socket at which nobody listens is a clear no: the
//! daemon is gone.

use std::io;
use std::path::Path;
use std::time::Duration;

use sandbox_model::{ErrorKind, Instant, PortError, PortResult};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep_until, timeout_at};
use ttrpc::asynchronous::transport::Socket;

use super::connection::Connection;
use super::failure::{Subject, first_line};
use crate::AgentAddress;

/// Pauses between attempts grow from here …
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// … to here.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How long one attempt may take: a guest that was reset never answers on an old connection.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// How long a socket may stay without a listener: a daemon binds its sockets anew when its VMM has left it,
/// and one that has died never does.
const UNSERVED_MAX: Duration = Duration::from_secs(2);
/// The longest line that answers `CONNECT`, in bytes.
const OK_LINE_MAX: usize = 64;

/// Why an attempt came to nothing.
enum Miss {
    /// Not yet: the last sign of life.
    NotYet(String),
    /// Not yet, and no sign either.
    Silence,
    /// Nobody listens at the socket.
    Unserved(io::Error),
    /// It never will.
    Never(PortError),
}

/// Connects to the agent at `address`, and has a health check answered.
pub(super) async fn connect(address: &AgentAddress, deadline: Instant) -> PortResult<Connection> {
    let started = Instant::now();
    let subject = Subject::new("connect", address);
    let mut last_sign = "none".to_owned();
    let mut pause = PAUSE_MIN;
    let mut attempts = 0_u32;
    let mut unserved_since = None;
    loop {
        attempts += 1;
        let until = deadline.min(Instant::now() + ATTEMPT_MAX);
        let missed = match attempt(address, &subject, until).await {
            Ok(connection) => return Ok(connection),
            Err(missed) => missed,
        };
        if !matches!(missed, Miss::Unserved(_)) {
            unserved_since = None;
        }
        match missed {
            Miss::Never(error) => return Err(error),
            Miss::NotYet(sign) => last_sign = sign,
            Miss::Silence => {}
            Miss::Unserved(error) => {
                if unserved_since.get_or_insert_with(Instant::now).elapsed() >= UNSERVED_MAX {
                    let cause = "nobody listens at the socket: the vsock daemon has ended";
                    return Err(PortError { errno: error.raw_os_error(), ..subject.error(ErrorKind::PeerGone, cause) });
                }
                last_sign = format!("connect: {error}");
            }
        }
        tracing::debug!(%address, attempts, last_sign, "the agent is not there yet");
        sleep_until(deadline.min(Instant::now() + pause)).await;
        if Instant::now() >= deadline {
            let waited = started.elapsed().as_secs_f64();
            let cause = format!("no agent after {waited:.1} s and {attempts} attempts; last sign of life: {last_sign}");
            return Err(PortError::timed_out(subject.method, subject.object, cause));
        }
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}

async fn attempt(address: &AgentAddress, subject: &Subject, deadline: Instant) -> Result<Connection, Miss> {
    let opened = timeout_at(deadline, open(address, subject)).await;
    let connection = opened.unwrap_or(Err(Miss::Silence))?;
    // A refusal of the check is a sign of life, too: the agent is still starting.
    let checked = connection.check(subject, deadline).await;
    checked.map_err(|error| Miss::NotYet(format!("health check: {}", error.cause)))?;
    Ok(connection)
}

async fn open(address: &AgentAddress, subject: &Subject) -> Result<Connection, Miss> {
    match address {
        AgentAddress::Vsock { cid, port } => {
            let connected = Socket::connect(format!("vsock://{cid}:{port}")).await;
            Ok(Connection::new(connected.map_err(|error| miss(subject, error))?))
        }
        AgentAddress::Hybrid { socket, port } => Ok(Connection::new(handshake(socket, *port, subject).await?)),
    }
}

/// Asks the vsock daemon behind `socket` for the guest's `port`.
async fn handshake(socket: &Path, port: u32, subject: &Subject) -> Result<UnixStream, Miss> {
    let mut stream = UnixStream::connect(socket).await.map_err(|error| miss(subject, error))?;
    let peer = stream.peer_cred().map_err(|error| miss(subject, error))?.uid();
    let own = rustix::process::geteuid().as_raw();
    if !is_trusted(peer, own) {
        let cause = format!("the socket is served by uid {peer}; only {own} and root are trusted");
        return Err(Miss::Never(subject.error(ErrorKind::Denied, cause)));
    }
    let asked = stream.write_all(format!("CONNECT {port}\n").as_bytes()).await;
    asked.map_err(|error| Miss::NotYet(format!("CONNECT was not taken: {error}")))?;
    match line(&mut stream).await {
        Ok(line) if is_ok(&line) => Ok(stream),
        Ok(line) => {
            let said = first_line(&String::from_utf8_lossy(&line));
            Err(Miss::NotYet(format!("CONNECT was answered by {said:?}")))
        }
        Err(error) => Err(Miss::NotYet(format!("CONNECT was not answered: {error}"))),
    }
}

/// Whether who serves a socket may see what we send to a guest.
fn is_trusted(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Whether `line` is `OK`, alone or with the port on the other side.
fn is_ok(line: &[u8]) -> bool {
    line.strip_prefix(b"OK").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

/// Reads a line and not one byte more: what follows it is ttrpc's.
async fn line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(OK_LINE_MAX);
    while line.len() < OK_LINE_MAX {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(line),
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(error.kind(), "the connection ended, so no agent listens"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {OK_LINE_MAX} bytes without an end of line")))
}

/// Whether what the kernel says is final.
fn miss(subject: &Subject, error: io::Error) -> Miss {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        io::ErrorKind::ConnectionRefused => return Miss::Unserved(error),
        _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => ErrorKind::Unsupported,
        _ => return Miss::NotYet(format!("connect: {error}")),
    };
    let mut never = subject.error(kind, error.to_string());
    never.errno = error.raw_os_error();
    Miss::Never(never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_ourselves_are_trusted() {
        assert!(is_trusted(0, 1000) && is_trusted(1000, 1000) && is_trusted(0, 0));
        assert!(!is_trusted(1001, 1000) && !is_trusted(1000, 0));
    }

    #[tokio::test]
    async fn a_line_ends_where_it_ends() {
        let mut bytes: &[u8] = b"OK 1073741824\n\0\0\0\x01rest";
        let read = line(&mut bytes).await.unwrap();
        assert!(is_ok(&read));
        assert_eq!(bytes, b"\0\0\0\x01rest");
        assert!(is_ok(b"OK") && is_ok(b"OK\r") && !is_ok(b"OKAY") && !is_ok(b"ERR") && !is_ok(b""));
        for bad in [&b""[..], b"OK", &[b'x'; 1000]] {
            assert!(line(&mut &*bad).await.is_err());
        }
    }
}
