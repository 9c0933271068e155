//! Whether a connection lives, and if not, what ended it.

use std::sync::OnceLock;

use sandbox_model::ErrorKind;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// We closed it.
    Closed(&'static str),
    /// The agent, its VM or the vsock daemon went away.
    Lost(String),
    /// The agent broke the protocol, so no later byte of it can be understood.
    Broken(String),
}

impl End {
    /// What a call that was in flight shall say.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Closed(_) | Self::Lost(_) => ErrorKind::PeerGone,
            Self::Broken(_) => ErrorKind::Protocol,
        }
    }

    /// In words.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Closed(text) => text,
            Self::Lost(text) | Self::Broken(text) => text,
        }
    }
}

/// Shared by a connection and the stream beneath it. The first end counts.
#[derive(Debug, Default)]
pub(super) struct Fate {
    end: OnceLock<End>,
    ended: CancellationToken,
}

impl Fate {
    /// Ends the connection, unless it has ended.
    pub(super) fn end(&self, end: End) {
        // The end is set first: who is woken by the token finds it.
        let _ = self.end.set(end);
        self.ended.cancel();
    }

    /// What ended it, if anything has.
    pub(super) fn ended(&self) -> Option<&End> {
        self.end.get()
    }

    /// Completes when it ends.
    pub(super) fn wait(&self) -> WaitForCancellationFutureOwned {
        self.ended.clone().cancelled_owned()
    }
}
