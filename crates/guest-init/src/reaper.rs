//! Every orphan of the guest becomes PID 1's child; all are reaped here, and nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The exit status of a process once it has one, as the wire wants it: code, or 128 + signal.
pub(crate) type ExitWatch = watch::Receiver<Option<i32>>;

/// Knows the processes somebody waits for.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    awaited: Arc<Mutex<HashMap<Pid, watch::Sender<Option<i32>>>>>,
}

impl Reaper {
    /// Starts reaping on the current runtime.
    pub(crate) fn start() -> Result<Self> {
        let reaper = Self::default();
        let children = signal(SignalKind::child())?;
        tokio::spawn(reaper.clone().reap(children));
        Ok(reaper)
    }

    /// Announces a process; call it before the process may exit in earnest.
    pub(crate) fn watch(&self, pid: Pid) -> ExitWatch {
        let (sender, receiver) = watch::channel(None);
        self.awaited().insert(pid, sender);
        receiver
    }

    async fn reap(self, mut children: Signal) {
        while children.recv().await.is_some() {
            // Several exits may hide behind one signal.
            while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                let Some((pid, status)) = ended(status) else {
                    break;
                };
                if let Some(sender) = self.awaited().remove(&pid) {
                    sender.send_replace(Some(status));
                }
            }
        }
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<Pid, watch::Sender<Option<i32>>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended(status: WaitStatus) -> Option<(Pid, i32)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid, code)),
        WaitStatus::Signaled(pid, signal, _) => Some((pid, 128 + signal as i32)),
        _ => None,
    }
}
