//! The actor's state.

use std::collections::BTreeSet;
use std::sync::Arc;

use actor_shell::{Completion, Domain};
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{EntryId, Journal};
use sandbox_model::{ContainerId, ErrorKind, Outcome, PortError, SandboxId};

use crate::hand::Hand;
use crate::host::{Base, Daemon, ShareFsHost};
use crate::messages::ShareFsError;
use crate::shares::Shares;

/// Owns the shared directory of one sandbox.
#[derive(Debug)]
pub struct ShareFsActor {
    pub(crate) hand: Hand,
    pub(crate) set_up: Option<SetUp>,
    pub(crate) shares: Shares,
    /// Containers whose root file system is shared, or may be.
    pub(crate) rootfs: BTreeSet<ContainerId>,
    /// Numbers the names of volumes. Starts above all that the ledger knows and only grows.
    pub(crate) serial: u32,
}

/// A shared directory whose daemon has been started.
#[derive(Debug)]
pub(crate) struct SetUp {
    pub(crate) entries: Vec<EntryId>,
    pub(crate) daemon: Daemon,
}

/// What everybody may know.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct ShareFsSnapshot {
    /// The daemon, once it listens. Its `handle` can be waited on by whoever wants to hear of its end.
    pub daemon: Option<Daemon>,
    /// Containers with a shared root file system.
    pub root_file_systems: usize,
    /// Shared volumes.
    pub shares: usize,
    /// Containers' holds on them.
    pub holds: usize,
}

impl ShareFsActor {
    /// The actor of `sandbox`, whose directory `dir` exists with mode 0700.
    pub fn new(journal: Journal, host: Arc<dyn ShareFsHost>, dir: SandboxDir, sandbox: SandboxId) -> Self {
        // A serial is never above the number of its own entry, so no live name can be met again.
        let newest = journal.ledger().newest().0;
        Self {
            hand: Hand { journal, host, dir, base: Base::default(), sandbox },
            set_up: None,
            shares: Shares::default(),
            rootfs: BTreeSet::new(),
            serial: u32::try_from(newest).unwrap_or(u32::MAX),
        }
    }
}

impl Domain for ShareFsActor {
    type Snapshot = ShareFsSnapshot;

    fn publish(&mut self, snapshot: &mut ShareFsSnapshot) {
        let (shares, holds) = self.shares.count();
        let daemon = self.set_up.as_ref().map(|set_up| set_up.daemon.clone());
        *snapshot = ShareFsSnapshot { daemon, root_file_systems: self.rootfs.len(), shares, holds };
    }
}

/// What a message came to, if it did not fail.
pub(crate) fn finished<T>(done: Completion<Result<T, ShareFsError>>) -> Result<T, ShareFsError> {
    match done {
        Completion::Finished(result) => result,
        Completion::DeadlinePassed => Err(ShareFsError::DeadlinePassed),
        Completion::Interrupted => Err(ShareFsError::Interrupted),
    }
}

/// Whether something may have been made although the message failed.
pub(crate) fn is_doubtful(error: &ShareFsError) -> bool {
    match error {
        ShareFsError::DeadlinePassed | ShareFsError::Interrupted => true,
        ShareFsError::Host(error) => error.outcome == Outcome::Doubtful,
        _ => false,
    }
}

/// The refusal of a source, in the words of the one who named it.
pub(crate) fn bad_source(path: &std::path::Path, error: PortError) -> ShareFsError {
    match error.kind {
        ErrorKind::TimedOut | ErrorKind::Protocol => ShareFsError::Host(error),
        _ => ShareFsError::BadSource { path: path.to_owned(), reason: error.cause },
    }
}
