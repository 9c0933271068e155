//! The actor: its state, and how each message is served.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::{Call, Completion, Domain, LocalFuture, Plan, Serve};
use sandbox_model::ledger::{Journal, Undo, UndoItem, UndoReport};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::{ErrorKind, PassedFd, PortError, SandboxId};

use crate::set_up::{SetUp, Wish};
use crate::undo::Undoing;
use crate::{Mark, NetworkError, NetworkHost, NetworkIsUp, SetUpNetwork, UndoNetwork, endpoints, own};

/// Queue pairs that a NIC may have (behaviour A5).
const QUEUE_PAIRS_MAX: u16 = 256;

/// The network of one sandbox.
#[derive(Debug)]
pub struct NetworkActor {
    journal: Journal,
    host: Arc<dyn NetworkHost>,
    sandbox: SandboxId,
    held: Option<Held>,
}

/// What keeps a namespace within reach, and its taps alive, between messages.
#[derive(Debug, Clone)]
pub struct Held {
    /// The namespace's file.
    pub(crate) path: PathBuf,
    /// The namespace's inode.
    pub(crate) inode: u64,
    /// A netlink socket in it.
    pub(crate) socket: PassedFd,
    /// The taps' descriptors. Held until the taps are deleted: closing the last descriptor of a
    /// living tap waits for an RCU grace period (10 to 35 ms), wherever it happens to be dropped.
    pub(crate) tuns: Vec<PassedFd>,
    /// How many of them each tap has.
    pub(crate) queue_pairs: usize,
}

impl Held {
    /// The descriptors of a tap, in the order in which taps are made.
    pub(crate) fn queues(&self, tap: &str) -> Vec<PassedFd> {
        let mut taps = self.tuns.chunks(self.queue_pairs.max(1)).enumerate();
        let found = taps.find(|(index, _)| endpoints::tap_name(*index) == tap);
        found.map(|(_, queues)| queues.to_vec()).unwrap_or_default()
    }
}

/// What readers see of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NetworkSnapshot {
    /// The namespace, once the network is up.
    pub namespace: Option<PathBuf>,
    /// Open descriptors of taps.
    pub tuns: usize,
}

impl NetworkActor {
    /// The network of `sandbox`, which has none yet.
    pub fn new(journal: Journal, host: Arc<dyn NetworkHost>, sandbox: SandboxId) -> Self {
        Self { journal, host, sandbox, held: None }
    }

    /// Whether something of ours exists, or may exist.
    fn has_entries(&self) -> bool {
        self.journal.ledger().any(&|entry| entry.actor == ActorName::Network)
    }

    pub(crate) fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    pub(crate) fn host(&self) -> Arc<dyn NetworkHost> {
        self.host.clone()
    }

    /// Takes over what a message has opened.
    pub(crate) fn hold(&mut self, held: Option<Held>) {
        self.held = held;
    }

    fn wish(&self, message: SetUpNetwork) -> Result<Wish, NetworkError> {
        let SetUpNetwork { request: NetworkRequest { source, queue_pairs, .. }, own_namespace } = message;
        if queue_pairs == 0 || queue_pairs > QUEUE_PAIRS_MAX {
            let what = format!("{queue_pairs} queue pairs are not within 1..={QUEUE_PAIRS_MAX}");
            return Err(NetworkError::Invalid { what });
        }
        Ok(match source {
            NetworkSource::Namespace { path } if !path.is_absolute() => {
                return Err(NetworkError::NotANamespace { path, reason: "its path is not absolute".to_owned() });
            }
            NetworkSource::Namespace { path } => Wish::Pod { path, queue_pairs },
            NetworkSource::Own { addresses } => {
                Wish::Own { path: own_namespace, queue_pairs, plan: own::plan(&addresses, &self.sandbox)? }
            }
        })
    }
}

impl Domain for NetworkActor {
    type Snapshot = NetworkSnapshot;

    fn publish(&mut self, snapshot: &mut NetworkSnapshot) {
        snapshot.namespace = self.held.as_ref().map(|held| held.path.clone());
        snapshot.tuns = self.held.as_ref().map_or(0, |held| held.tuns.len());
    }
}

impl Serve<SetUpNetwork> for NetworkActor {
    type Ticket = Wish;
    type Outcome = (Result<NetworkIsUp, NetworkError>, Option<Held>);

    fn plan(&mut self, message: SetUpNetwork, _: &Call) -> Plan<Self::Ticket, Result<NetworkIsUp, NetworkError>> {
        // What a failed or interrupted set-up left is undone before there is another.
        if self.held.is_some() || self.has_entries() {
            return Plan::Answer(Err(NetworkError::AlreadyUp));
        }
        if message.request.model == InterworkingModel::None {
            return Plan::Answer(Ok(NetworkIsUp::default()));
        }
        match self.wish(message) {
            Ok(wish) => Plan::Perform(wish),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, wish: &mut Wish, call: &Call) -> LocalFuture<Self::Outcome> {
        let set_up = SetUp {
            journal: self.journal.clone(),
            host: self.host.clone(),
            mark: Mark::of(&self.sandbox),
            deadline: call.deadline,
        };
        let wish = wish.clone();
        Box::pin(async move {
            let mut held = None;
            let result = set_up.run(wish, &mut held).await;
            (result, held)
        })
    }

    fn settle(&mut self, _: Wish, done: Completion<Self::Outcome>) -> Result<NetworkIsUp, NetworkError> {
        match done {
            Completion::Finished((result, held)) => {
                // After a failure as well: the undo that follows need not enter again. Unless a
                // call got no answer: it may still be using the socket.
                let is_silent = matches!(&result, Err(NetworkError::Host(e)) if e.kind == ErrorKind::TimedOut);
                if !is_silent && (result.is_ok() || self.has_entries()) {
                    self.held = held;
                }
                result
            }
            // The handles went with the future; the undo enters by path.
            Completion::DeadlinePassed => Err(NetworkError::DeadlinePassed),
            Completion::Interrupted => Err(NetworkError::Interrupted),
        }
    }
}

impl Serve<UndoNetwork> for NetworkActor {
    type Ticket = Undo;
    type Outcome = UndoReport;

    fn plan(&mut self, message: UndoNetwork, _: &Call) -> Plan<Undo, UndoReport> {
        Plan::Perform(message.0)
    }

    fn perform(&self, undo: &mut Undo, call: &Call) -> LocalFuture<UndoReport> {
        let undoing = Undoing {
            journal: self.journal.clone(),
            host: self.host.clone(),
            mark: Mark::of(&self.sandbox),
            deadline: call.deadline,
            within_reach: self.held.clone().into_iter().collect(),
        };
        Box::pin(undoing.run(undo.entries.clone()))
    }

    fn settle(&mut self, undo: Undo, done: Completion<UndoReport>) -> UndoReport {
        let report = match done {
            Completion::Finished(report) => report,
            Completion::DeadlinePassed => unanswered(&undo, "its deadline passed"),
            Completion::Interrupted => unanswered(&undo, "it was interrupted"),
        };
        // A call without an answer may still be using the socket, so the next undo enters anew.
        let is_silent = report.failed().any(|(_, error)| error.kind == ErrorKind::TimedOut);
        if is_silent || !self.has_entries() {
            self.held = None;
        }
        report
    }
}

/// The report of an undo that was dropped in the middle: the ledger knows which entries are gone,
/// and undoing one of those again does no harm.
fn unanswered(undo: &Undo, why: &str) -> UndoReport {
    let items = undo.entries.iter().map(|entry| {
        let error = PortError::timed_out("undo", entry.object.to_text(), why);
        UndoItem::of(entry, Err(error))
    });
    UndoReport { items: items.collect() }
}
