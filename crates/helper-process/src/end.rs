//! Ending a process that an earlier run of ours started, and no other.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use sandbox_model::ledger::{ENTRY_ENV, ProcessIdentity};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};
use tokio::time::timeout_at;

use crate::process::{ended, hold, reap};

/// What `/proc/PID/stat` says of a process.
struct Stat {
    state: char,
    start_ticks: u64,
}

fn stat(pid: i32) -> std::io::Result<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| std::io::Error::other("unreadable /proc/PID/stat"))
}

/// Fields 3 (state) and 22 (start time) of proc_pid_stat(5). Field 2 is the program's name in
/// parentheses and may contain anything, so counting starts behind the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let behind_name = text.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&text[behind_name..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_ticks })
}

/// The identity of the process that has `pid` now.
///
/// # Errors
/// `NotFound` if there is none.
pub fn identify(pid: i32) -> PortResult<ProcessIdentity> {
    match stat(pid) {
        Ok(stat) => Ok(ProcessIdentity { pid, start_ticks: stat.start_ticks }),
        // The process may go while its file is read (ESRCH).
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Err(absent(format!("pid {pid}"))),
        Err(error) => Err(PortError::os("read /proc/PID/stat", format!("pid {pid}"), error)),
    }
}

/// Whether that very process still runs. A zombie does not.
pub fn is_alive(process: ProcessIdentity) -> bool {
    stat(process.pid).is_ok_and(|stat| stat.start_ticks == process.start_ticks && !matches!(stat.state, 'Z' | 'X'))
}

/// Ends a process that carries `tag` in its environment: SIGTERM, after `term` SIGKILL. Returns when
/// it is gone.
///
/// With an identity, that process and no other; without one, whatever carries the tag. A process
/// that happens to be our own child is reaped.
///
/// # Errors
/// `NotFound` if it is gone already (or its pid is somebody else's now), `Foreign` if the process
/// does not carry the tag, `TimedOut` if it is still there at `deadline`.
pub async fn end_process(
    process: Option<ProcessIdentity>,
    tag: &str,
    term: Duration,
    deadline: Instant,
) -> PortResult<()> {
    let found = search(process, tag).await?;
    if found.is_empty() {
        return Err(absent(format!("a process tagged {tag}")));
    }
    let mut rest = found;
    while !rest.is_empty() {
        for (process, pidfd) in rest {
            end(process, &pidfd, term, deadline).await?;
        }
        // Whatever it had started carries the tag too, and may have started more meanwhile.
        rest = if process.is_none() { search(None, tag).await? } else { Vec::new() };
    }
    Ok(())
}

/// A hand on a process that runs and is the one meant.
pub(crate) async fn find(process: ProcessIdentity, tag: &str) -> PortResult<OwnedFd> {
    let found = search(Some(process), tag).await?;
    // It ran when it was held, or it did not: what ended before is not to be taken over.
    match found.into_iter().next() {
        Some((found, pidfd)) if is_alive(found) => Ok(pidfd),
        _ => Err(absent(object(process))),
    }
}

type Held = (ProcessIdentity, OwnedFd);

async fn search(process: Option<ProcessIdentity>, tag: &str) -> PortResult<Vec<Held>> {
    let wanted = format!("{ENTRY_ENV}={tag}").into_bytes();
    let sought = tokio::task::spawn_blocking(move || match process {
        Some(process) => find_identified(process, &wanted).map(|found| vec![found]),
        None => find_tagged(&wanted),
    });
    sought.await.map_err(|error| PortError::new(ErrorKind::Refused, "search processes", tag, error.to_string()))?
}

async fn end(process: ProcessIdentity, pidfd: &OwnedFd, term: Duration, deadline: Instant) -> PortResult<()> {
    let kill_at = deadline.min(Instant::now() + term);
    for (signal, until) in [(Signal::TERM, kill_at), (Signal::KILL, deadline)] {
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(PortError::os("pidfd_send_signal", object(process), error)),
        }
        if let Ok(waited) = timeout_at(until, ended(pidfd)).await {
            waited.map_err(|error| PortError::os("poll pidfd", object(process), error))?;
            reap(pidfd);
            return Ok(());
        }
    }
    Err(PortError::timed_out("SIGKILL", object(process), "still there at the deadline"))
}

/// The process, if it is the one meant.
fn find_identified(process: ProcessIdentity, wanted: &[u8]) -> PortResult<Held> {
    // Held before it is looked at: what is checked is what will be signalled.
    let (found, pidfd) = hold(process.pid)?;
    if found != process {
        return Err(absent(object(process)));
    }
    if is_strange(process.pid, wanted) {
        return Err(PortError::new(ErrorKind::Foreign, "take hold of", object(process), "it does not carry our tag"));
    }
    Ok((found, pidfd))
}

/// Whether a process surely does not carry the tag.
///
/// The environment of a zombie is gone, and that of a process amid its exec not there yet; the start
/// time has been compared all the same. A process that ends while it is read shows a part of it: asked
/// again it shows nothing.
fn is_strange(pid: i32, wanted: &[u8]) -> bool {
    (0..2).all(|_| {
        let environment = environment(pid);
        !environment.is_empty() && !carries(&environment, wanted)
    })
}

/// Every process that carries the tag.
fn find_tagged(wanted: &[u8]) -> PortResult<Vec<Held>> {
    let listed = std::fs::read_dir("/proc").map_err(|error| PortError::os("read", "/proc", error))?;
    let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let tagged = pids.filter(|&pid| carries(&environment(pid), wanted));
    // Asked again once it is held: the pid may have changed hands in between.
    Ok(tagged.filter_map(|pid| hold(pid).ok()).filter(|(held, _)| carries(&environment(held.pid), wanted)).collect())
}

/// The environment that the process was started with; empty if it cannot be read.
fn environment(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

fn carries(environment: &[u8], wanted: &[u8]) -> bool {
    environment.split(|&byte| byte == 0).any(|variable| variable == wanted)
}

fn object(process: ProcessIdentity) -> String {
    format!("pid {} started at tick {}", process.pid, process.start_ticks)
}

fn absent(object: String) -> PortError {
    PortError::new(ErrorKind::NotFound, "take hold of", object, "no such process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = b"12 (a) S 9 (b)) Z 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.start_ticks), ('Z', 987_654));
        assert!(parse_stat(b"12 a S").is_none());
    }
}
