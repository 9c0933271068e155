//! A helper that this process started, or that an earlier one did.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};

use crate::end::find;
use crate::ready::readable;
use crate::spawn::{HelperSpec, spawn};
use crate::words::LastWords;
use crate::{identify, socket};

/// How long a process that got SIGKILL may take: longer than any exit, shorter than for ever (a
/// process in an uninterruptible system call does not die).
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How a helper ended. Both fields are `None` when somebody else collected the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelperExit {
    /// Exit status, if it exited.
    pub code: Option<i32>,
    /// Signal number, if one ended it.
    pub signal: Option<i32>,
}

impl fmt::Display for HelperExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("unknown exit status"),
        }
    }
}

/// A helper that this process started or adopted. Clones share it; dropping all of them does not end
/// it.
#[derive(Clone, Debug)]
pub struct HelperProcess(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: String,
    identity: ProcessIdentity,
    pidfd: OwnedFd,
    words: LastWords,
    /// Set by whoever reaps it.
    exit: OnceLock<HelperExit>,
}

impl HelperProcess {
    /// Starts a helper. Returns when its program runs; whether it is ready is another question
    /// ([`wait_for_socket`](Self::wait_for_socket)).
    ///
    /// A task of the current runtime reaps the process when it ends, so that none stays a zombie
    /// that nobody waits for; waiting works from any runtime.
    ///
    /// # Cancel safety
    /// None: dropped before it has returned, the process may begin after whoever looks for it has
    /// looked. A caller that may be dropped waits for it `actor_shell::to_its_end`.
    ///
    /// # Errors
    /// `exec PROGRAM: CAUSE`. Nothing runs then. Doubtful if it has run for a moment.
    pub async fn spawn(spec: HelperSpec) -> PortResult<Self> {
        let program = spec.program.display().to_string();
        let lost = |cause: String| PortError::new(ErrorKind::Refused, "exec", program.clone(), cause);
        // Fork and exec take milliseconds, and more from a large process.
        let started = tokio::task::spawn_blocking(move || {
            let mut child = spawn(&spec)?;
            // The child is not reaped before its pidfd exists, so its pid is its own.
            match hold(child.id() as i32) {
                Ok(held) => Ok((child.stderr.take(), held)),
                Err(error) => {
                    // Nothing runs, but it has run: what it has made by now, an undo must look for.
                    let _ = child.kill();
                    let _ = child.wait();
                    Err(error.doubtful())
                }
            }
        });
        let (stderr, (identity, pidfd)) = started.await.map_err(|error| lost(error.to_string()).doubtful())??;
        let stderr = stderr.ok_or_else(|| lost("stderr is not piped".into()).doubtful())?;
        let words = LastWords::collect(stderr).map_err(|error| PortError::os("pipe", &program, error).doubtful())?;
        let helper = Self(Arc::new(Inner { program, identity, pidfd, words, exit: OnceLock::new() }));
        let reaper = helper.clone();
        tokio::spawn(async move {
            let exit = reaper.wait().await;
            tracing::debug!(program = reaper.0.program, pid = reaper.0.identity.pid, %exit, "helper ended");
        });
        Ok(helper)
    }

    /// Takes hold of a helper that an earlier process of ours started. It is watched, heard and
    /// signalled as a child is; only its status, when it ends, is not ours to know.
    ///
    /// # Errors
    /// `NotFound` if it has ended or its pid is somebody else's now, `Foreign` if it does not carry
    /// the tag, `TimedOut` if the kernel does not answer.
    pub async fn adopt(program: &str, process: ProcessIdentity, tag: &str, deadline: Instant) -> PortResult<Self> {
        let found = tokio::time::timeout_at(deadline, find(process, tag)).await;
        let overdue = |_| PortError::new(ErrorKind::TimedOut, "take hold of", program, "not found within the deadline");
        let pidfd = found.map_err(overdue)??;
        let (program, words) = (program.to_owned(), LastWords::of_adopted(&pidfd));
        Ok(Self(Arc::new(Inner { program, identity: process, pidfd, words, exit: OnceLock::new() })))
    }

    /// Its pid and start time.
    pub fn identity(&self) -> ProcessIdentity {
        self.0.identity
    }

    /// The tail of its stderr: at most 64 lines of at most 512 bytes, without control characters.
    pub fn last_words(&self) -> String {
        self.0.words.text()
    }

    /// Waits until it has ended and all it said has been read. Any number may wait.
    pub async fn wait(&self) -> HelperExit {
        while self.try_exit().is_none() {
            if let Err(error) = ended(&self.0.pidfd).await {
                // Not even a pidfd can be watched (no descriptors left): look again later.
                tracing::warn!(program = self.0.program, %error, "cannot watch a helper");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        self.0.words.complete().await;
        self.try_exit().unwrap_or(HelperExit { code: None, signal: None })
    }

    /// How it ended, if it has; never waits.
    pub fn try_exit(&self) -> Option<HelperExit> {
        self.0.exit.get().copied().or_else(|| {
            let exit = reap(&self.0.pidfd)?;
            // Two may look at once; the one that reaped it knows more than the one that came late.
            if exit == (HelperExit { code: None, signal: None }) {
                return Some(self.0.exit.get().copied().unwrap_or(exit));
            }
            Some(*self.0.exit.get_or_init(|| exit))
        })
    }

    /// Waits until it listens on the unix socket `path`, without connecting: a vhost-user daemon
    /// serves only the first that does.
    ///
    /// # Errors
    /// The helper ended first (with its last words), or `TimedOut`.
    pub async fn wait_for_socket(&self, path: &Path, deadline: Instant) -> PortResult<()> {
        let object = || format!("{} of {}", path.display(), self.0.program);
        tokio::select! {
            biased;
            listening = socket::listening(path) => listening,
            exit = self.wait() => {
                let cause = format!("{} ended with {exit}: {}", self.0.program, self.last_words());
                Err(PortError::new(ErrorKind::PeerGone, "wait for socket", object(), cause))
            }
            () = tokio::time::sleep_until(deadline) => {
                let cause = format!("not listening within the deadline; last words: {}", self.last_words());
                Err(PortError::timed_out("wait for socket", object(), cause))
            }
        }
    }

    /// Ends it: SIGTERM, and SIGKILL if it has not ended after `term`. Ended already is success.
    ///
    /// # Errors
    /// `TimedOut` when not even SIGKILL ends it.
    pub async fn terminate(&self, term: Duration) -> PortResult<HelperExit> {
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(term, self.wait()).await {
            Ok(exit) => Ok(exit),
            Err(_) => self.kill().await,
        }
    }

    /// Ends it by SIGKILL. Ended already is success.
    ///
    /// # Errors
    /// `TimedOut` when it does not die: it hangs in the kernel.
    pub async fn kill(&self) -> PortResult<HelperExit> {
        self.signal(Signal::KILL)?;
        tokio::time::timeout(KILL_PATIENCE, self.wait()).await.map_err(|_| {
            PortError::timed_out("SIGKILL", self.object(), format!("still there after {} s", KILL_PATIENCE.as_secs()))
        })
    }

    fn signal(&self, signal: Signal) -> PortResult<()> {
        match pidfd_send_signal(&self.0.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(PortError::os("pidfd_send_signal", self.object(), error)),
        }
    }

    fn object(&self) -> String {
        format!("{} (pid {})", self.0.program, self.0.identity.pid)
    }
}

/// Takes hold of a process: what names it, and a descriptor that can name no other.
pub(crate) fn hold(pid: i32) -> PortResult<(ProcessIdentity, OwnedFd)> {
    let absent = || PortError::new(ErrorKind::NotFound, "pidfd_open", format!("pid {pid}"), "no such process");
    let raw = Pid::from_raw(pid).ok_or_else(absent)?;
    let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
        Err(Errno::SRCH | Errno::INVAL) => return Err(absent()),
        other => other.map_err(|error| PortError::os("pidfd_open", format!("pid {pid}"), error))?,
    };
    Ok((identify(pid)?, pidfd))
}

/// Waits until the process has ended, whoever is its parent. It may still be a zombie then.
pub(crate) async fn ended(pidfd: &OwnedFd) -> std::io::Result<()> {
    // A descriptor of its own: epoll knows a descriptor once only, and many may wait.
    let watched = readable(pidfd.try_clone()?)?;
    watched.readable().await.map(|_| ())
}

/// Collects the status of an ended child; `None` while it runs. For a process that is not our child
/// or that somebody else reaped the status is unknown.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<HelperExit> {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(status) => status.map(|s| HelperExit { code: s.exit_status(), signal: s.terminating_signal() }),
        // No child of ours, or none any more.
        Err(_) => has_ended(pidfd).then_some(HelperExit { code: None, signal: None }),
    }
}

/// Whether the process has ended, whoever is its parent.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}
