//! Signals that are the container's.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that are passed on: SIGQUIT, SIGUSR1, SIGUSR2; and SIGWINCH, which a terminal sends.
#[derive(Debug)]
pub(super) struct Forwarded {
    quit: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

/// What is to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    /// A signal by its number on Linux x86-64.
    Signal(u32),
    /// The terminal has another size.
    Resized,
}

impl Forwarded {
    /// From now on these signals no longer end the process by themselves.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Forward {
        tokio::select! {
            biased;
            _ = self.quit.recv() => Forward::Signal(3),
            _ = self.user1.recv() => Forward::Signal(10),
            _ = self.user2.recv() => Forward::Signal(12),
            _ = self.window.recv() => Forward::Resized,
        }
    }
}
