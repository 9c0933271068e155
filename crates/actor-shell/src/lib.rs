//! The only crate that names actix: one mailbox, one message at a time, every wait bounded.
//!
//! A [`Domain`] is plain data with synchronous code. It serves each [`Request`] in three parts:
//! [`plan`](Serve::plan) decides and reserves, [`perform`](Serve::perform) acts on the world without
//! the domain's state, [`settle`](Serve::settle) commits what came of it. [`spawn`] gives the domain
//! a mailbox and returns its [`Address`].
//!
//! # Guarantees
//!
//! Each has a test of its name in `tests.rs`.
//!
//! * **Order.** Messages of one address are served in the order in which they were sent.
//! * **One at a time.** The next message is not looked at before the one before it has settled.
//! * **Deadline at dequeue.** A message whose deadline passed in the mailbox is refused
//!   ([`Refused::Expired`]) and never planned. One that is being performed is dropped at its
//!   deadline plus the domain's [grace](Domain::grace) and settles as
//!   [`DeadlinePassed`](Completion::DeadlinePassed): what it tried is then doubtful, not undone.
//! * **Cancellation beside the mailbox.** [`Address::interrupt`] reaches a message that hangs, and
//!   refuses all that wait behind it. Dropping a reply's future cancels a message that has not been
//!   taken yet, and never one that has.
//! * **Nothing runs on behind an actor's back.** A [`blocking`] call cannot be stopped. After a
//!   message that was dropped in the middle, the next one begins when the call that it left has ended.
//! * **Settled once.** Each planned message settles exactly once, whatever happened to it.
//! * **Panic.** A panic ends its actor and no other: its reason is kept, told to whoever asked and
//!   to all who ask later ([`Refused::Died`]), and published ([`Address::death`]).
//! * **Shutdown.** An actor whose last address is gone serves what it was sent, then ends.
//! * **Back-pressure.** At most `bound` messages wait or are served; one more is refused
//!   ([`Refused::Busy`]) at once. (actix's own bound is per clone of an address, so it is not used.)
//! * **Figures.** What each mailbox holds, serves and has served is on a [`Board`], for people.
//! * **Snapshot.** What a domain [publishes](Domain::publish) after each message is read without
//!   asking it.
//!
//! # What it avoids
//!
//! actix serialises only what goes through `ctx.wait`, as every message that is performed does. Nothing
//! here calls `ctx.spawn`, timers or streams, and no actor holds its own address: those interleave,
//! stand still, or deadlock.
#![forbid(unsafe_code)]

mod address;
mod arbiters;
mod figures;
mod performing;
mod published;
mod shared;
mod shell;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Told, TraceSink};
use sandbox_model::{Instant, SandboxId};
use serde::{Deserialize, Serialize};
use shared::Interrupt;

pub use address::{Address, Ask};
pub use arbiters::{Arbiters, StartError, blocking, blocking_after_effect, to_its_end};
pub use figures::{Board, Figures, InFlight};
pub use published::Published;
pub use shell::{spawn, spawn_afar};

/// A future that stays on its thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// A message: a struct with named fields, and what it is answered with.
pub trait Request: Serialize + Send + 'static {
    /// The answer.
    type Reply: Serialize + Send + 'static;
    /// Its name in records and errors.
    const NAME: &'static str;
}

/// The plain state of an actor.
pub trait Domain: Unpin + 'static {
    /// What readers may see without asking.
    type Snapshot: Default + Serialize + Send + Sync + 'static;

    /// Brings `snapshot` up to date, after each message. Only what has changed needs to be written.
    fn publish(&mut self, snapshot: &mut Self::Snapshot);

    /// How long a message may go on after its deadline or an interruption, to undo what it did.
    ///
    /// Zero for a domain whose calls do not watch their [`Call`]; they are dropped on the spot.
    fn grace(&self) -> Duration {
        Duration::ZERO
    }
}

/// How a domain serves one kind of message.
pub trait Serve<R: Request>: Domain {
    /// What was planned: a reservation, kept until `settle`.
    type Ticket: 'static;
    /// What came of it.
    type Outcome: 'static;

    /// Validates and reserves, or answers at once.
    fn plan(&mut self, request: R, call: &Call) -> Plan<Self::Ticket, R::Reply>;

    /// Acts on the world. The future owns clones of the clients that it needs, and no state. It may take
    /// out of the ticket what `settle` does not need.
    fn perform(&self, ticket: &mut Self::Ticket, call: &Call) -> LocalFuture<Self::Outcome>;

    /// Commits, releases, or marks doubtful. Runs exactly once for each ticket.
    fn settle(&mut self, ticket: Self::Ticket, done: Completion<Self::Outcome>) -> R::Reply;
}

/// What a plan came to.
#[derive(Debug)]
pub enum Plan<T, R> {
    /// There is something to do.
    Perform(T),
    /// There is not.
    Answer(R),
}

/// How performing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion<T> {
    /// By itself.
    Finished(T),
    /// It was dropped at its deadline: what it tried may or may not have happened.
    DeadlinePassed,
    /// It was dropped because somebody interrupted the actor: likewise doubtful.
    Interrupted,
}

/// Why a message was not served. Nothing has happened, except after [`Refused::Died`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Refused {
    /// Its deadline passed while it waited.
    #[error("the {actor} actor did not come to it before its deadline")]
    Expired {
        /// Who.
        actor: ActorName,
    },
    /// Too many wait already.
    #[error("the {actor} actor has {bound} messages waiting, which is its limit")]
    Busy {
        /// Who.
        actor: ActorName,
        /// The limit.
        bound: usize,
    },
    /// The actor was interrupted while the message waited.
    #[error("the {actor} actor was interrupted")]
    Interrupted {
        /// Who.
        actor: ActorName,
    },
    /// The actor has panicked, now or earlier. What the message tried is doubtful.
    #[error("the {actor} actor has died: {reason}")]
    Died {
        /// Who.
        actor: ActorName,
        /// The panic's text.
        reason: String,
    },
    /// The actor has ended.
    #[error("the {actor} actor has ended")]
    Ended {
        /// Who.
        actor: ActorName,
    },
}

/// One message being served, as its domain sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// The record of this message: the cause of all that follows from it.
    pub seq: u64,
    /// When it must be answered.
    pub deadline: Instant,
    interrupt: Interrupt,
}

impl Call {
    /// Resolves when the actor is interrupted; never otherwise.
    pub async fn interrupted(&self) {
        self.interrupt.raised().await;
    }

    /// Whether the actor has been interrupted since this message was sent.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.is_raised()
    }

    /// What to ask another actor with, on behalf of this message.
    pub fn ask(&self) -> Ask {
        Ask { deadline: self.deadline, cause: Some(self.seq) }
    }
}

/// How an actor ended without being asked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Who.
    pub actor: ActorName,
    /// The panic's text.
    pub reason: String,
}

/// The message that an actor serves now, for those who record what it does.
#[derive(Debug, Clone)]
pub struct CurrentCause {
    seq: Arc<AtomicU64>,
    generation: u32,
    /// Where its mailbox shows what it is at.
    pub(crate) board: Board,
}

impl Default for CurrentCause {
    fn default() -> Self {
        Self::of_generation(1, Board::default())
    }
}

impl CurrentCause {
    /// That of the actor which is the `generation`th of its name, from 1, in the sandbox of `board`.
    pub fn of_generation(generation: u32, board: Board) -> Self {
        Self { seq: Arc::default(), generation, board }
    }

    /// Which of the actors of that name it is.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The record of the message being served; 0 when there is none.
    pub fn get(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    fn set(&self, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
    }
}

/// Delays what is sent to an actor and what it answers, for simulations in virtual time.
pub trait Hops: fmt::Debug + Send + Sync {
    /// How long the next message or answer is on its way.
    fn next(&self) -> Duration;
}

/// Who an actor is and how it is recorded.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub actor: ActorName,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Messages that may wait or be served at once.
    pub bound: usize,
    /// Where its messages are recorded.
    pub sink: Arc<dyn TraceSink>,
    /// Set to the message that it serves.
    pub cause: CurrentCause,
}

/// Records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTrace;

impl TraceSink for NoTrace {
    fn next_seq(&self) -> u64 {
        0
    }
    fn now_us(&self) -> u64 {
        0
    }
    fn is_recording(&self) -> bool {
        false
    }
    fn record(&self, _: Told<'_>) {}
}

/// The text of a panic.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic without a text".to_owned()
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} actor has died: {}", self.actor, self.reason)
    }
}
