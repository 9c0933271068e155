//! What an actor and its addresses share: how many messages are on their way, interruptions, death.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use sandbox_model::Instant;
use sandbox_model::lifecycle::ActorName;
use tokio::sync::Notify;

use crate::{Board, Death, Refused};

/// Shared by one actor and all that hold its address.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) actor: ActorName,
    /// Where its mailbox shows what it is at.
    pub(crate) board: Board,
    /// Messages that may wait or be served at once.
    pub(crate) bound: usize,
    on_their_way: AtomicUsize,
    interruptions: AtomicU64,
    interrupted: Notify,
    pub(crate) death: OnceLock<Death>,
}

impl Shared {
    pub(crate) fn new(actor: ActorName, bound: usize, board: Board) -> Arc<Self> {
        Arc::new(Self {
            actor,
            board,
            bound,
            on_their_way: AtomicUsize::new(0),
            interruptions: AtomicU64::new(0),
            interrupted: Notify::new(),
            death: OnceLock::new(),
        })
    }

    /// Messages that wait or are being served.
    pub(crate) fn depth(&self) -> usize {
        self.on_their_way.load(Ordering::Acquire)
    }

    /// Lets one more message, sent at `sent`, on its way.
    pub(crate) fn admit(self: &Arc<Self>, sent: Instant) -> Result<Place, Refused> {
        let more = |count| (count < self.bound).then_some(count + 1);
        if self.on_their_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            self.board.refused(self.actor);
            return Err(Refused::Busy { actor: self.actor, bound: self.bound });
        }
        let waiting = Some(self.board.sent(self.actor, sent));
        Ok(Place { shared: self.clone(), waiting, interruptions: self.interruptions.load(Ordering::Acquire) })
    }

    pub(crate) fn interrupt(&self) {
        self.interruptions.fetch_add(1, Ordering::AcqRel);
        self.interrupted.notify_waiters();
    }
}

/// The place of one message among those that wait or are served; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    /// Its number on the board, for as long as it is shown as waiting.
    waiting: Option<u64>,
    /// How many interruptions there had been when it was sent.
    interruptions: u64,
}

impl Place {
    /// It waits no more: its actor serves it, which will take its time.
    pub(crate) fn taken(&mut self, message: &'static str, taken: Instant, deadline: Instant) {
        if let Some(number) = self.waiting.take() {
            self.shared.board.taken(self.shared.actor, number, (message, taken, deadline));
        }
    }

    /// Its message is answered, having been taken at `taken`.
    pub(crate) fn answered(&mut self, taken: Instant, was_refused: bool) {
        self.shared.board.answered(self.shared.actor, self.waiting.take(), taken, was_refused);
    }

    /// How its message learns of interruptions.
    pub(crate) fn interrupt(&self) -> Interrupt {
        Interrupt { sent_at: self.interruptions, shared: self.shared.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(number) = self.waiting.take() {
            self.shared.board.cancelled(self.shared.actor, number);
        }
        self.shared.on_their_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An interruption concerns the messages sent before it: each carries the count at which it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
    sent_at: u64,
}

impl Interrupt {
    pub(crate) fn is_raised(&self) -> bool {
        self.shared.interruptions.load(Ordering::Acquire) > self.sent_at
    }

    /// Resolves when it is raised; never otherwise.
    pub(crate) async fn raised(&self) {
        loop {
            // Made before the look: from here on no notification is missed.
            let notified = self.shared.interrupted.notified();
            if self.is_raised() {
                return;
            }
            notified.await;
        }
    }
}
