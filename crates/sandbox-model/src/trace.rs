//! What happened: one record for each message at a mailbox and each call through a port.
//!
//! A trace is JSON Lines: a [`Header`], then events in the order of their sequence numbers.
//! Commands from outside carry no cause; everything else names the record that caused it.
//!
//! An actor's behaviour follows from the messages that it took, in their order, from what its ports
//! answered, and from the numbers that it drew from the ledger. All of these are in the trace, and so
//! are its outputs: what it asked, what it recorded in the ledger, what it replied.

mod content;
mod line;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Record;
use crate::lifecycle::ActorName;
use crate::{PortError, SandboxId};

pub use content::{Content, Written};

/// The version of the trace's format.
pub const TRACE_VERSION: u32 = 2;

/// The first line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Header {
    /// [`TRACE_VERSION`].
    pub version: u32,
    /// Version of the program that wrote it.
    pub build: String,
    /// `qemu`, `simulated` or an embedder's own.
    pub vmm: String,
    /// `real`, `private` or `simulated`.
    pub host: String,
    /// SHA-256 of the effective configuration.
    pub config_digest: String,
    /// Seed of the simulation, if it was one.
    pub seed: Option<u64>,
    /// The faults that were injected, as the simulation's plan of them; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Value>,
    /// Which part of the trace this is, from 1: a trace with a limit begins a new file when one is
    /// full.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub part: u32,
}

impl Header {
    /// Of a new trace, of this version, with nothing more to say.
    pub fn new(vmm: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            version: TRACE_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            vmm: vmm.into(),
            host: host.into(),
            config_digest: String::new(),
            seed: None,
            faults: None,
            part: 1,
        }
    }
}

/// Where in time and cause an event stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// Global sequence number, from 1.
    pub seq: u64,
    /// The record that caused this one; `None` for a command from outside.
    pub cause: Option<u64>,
    /// Which sandbox.
    #[schemars(with = "String")]
    pub sandbox: SandboxId,
    /// Which actor.
    pub actor: ActorName,
    /// Which of the actors of that name, from 1: one that has died is replaced by the next.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub generation: u32,
    /// Microseconds after the trace began.
    pub at_us: u64,
}

impl Place {
    /// Of something that was done to a sandbox from outside, now.
    pub fn outside(sink: &dyn TraceSink, sandbox: &SandboxId) -> Self {
        let (seq, at_us) = (sink.next_seq(), sink.now_us());
        Self { seq, cause: None, sandbox: sandbox.clone(), actor: ActorName::Supervisor, generation: 1, at_us }
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_one(number: &u32) -> bool {
    *number == 1
}

/// How a call through a port ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Ended")]
pub enum Ended<V = Value> {
    /// With a reply.
    Ok(V),
    /// With an error.
    Err(PortError),
    /// Its caller dropped it: at a deadline, by an interruption, or because a sibling failed.
    Dropped,
    /// It panicked.
    Panicked,
}

/// Why a sandbox was opened from its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Opening {
    /// To release what is left of it.
    Cleanup,
    /// To be as it was saved, its VM not taken over.
    Restore,
    /// To go on, its VM taken over.
    Adopt,
}

// `V` is what contents are and `N` what names are: trees and texts of its own, or what `Told` has.
/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[schemars(rename = "Event")]
pub enum Event<V = Value, N = String> {
    /// The first line.
    Header(Header),
    /// A sandbox's actors were started.
    Created {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// What it was created with, and the directory below which it lives.
        spec: V,
    },
    /// A sandbox's actors were started on the ledger that an earlier process has left.
    Opened {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// Why.
        how: Opening,
        /// What it was opened with: `spec`, `state_dir`, `state`, `facts`, and the open entries of
        /// its `ledger`.
        spec: V,
    },
    /// Somebody interrupted what the supervisor was doing.
    Interrupted {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
    },
    /// A message was taken from a mailbox.
    Received {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// Its name.
        message: N,
        /// Its content.
        request: V,
        /// Microseconds that it lay in the mailbox.
        queue_us: u64,
    },
    /// A message was answered.
    Replied {
        /// Where and when; its cause is the `Received` record.
        #[serde(flatten)]
        place: Place,
        /// The message's name.
        message: N,
        /// The reply.
        reply: V,
        /// Microseconds from taking to answering.
        service_us: u64,
    },
    /// A call went through a port.
    Called {
        /// Where and when it ended.
        #[serde(flatten)]
        place: Place,
        /// Port.
        port: N,
        /// Method.
        method: N,
        /// The request.
        request: V,
        /// What came back.
        result: Ended<V>,
        /// Microseconds that it took.
        took_us: u64,
    },
    /// A record was appended to the sandbox's ledger. An intent's entry number is the only thing that
    /// an actor draws.
    Noted {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The record; an intent that was refused has the number 0.
        #[schemars(with = "Value")]
        record: Record,
        /// Why the ledger did not take it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<PortError>,
    },
    /// An actor has panicked, and serves nothing any more.
    Died {
        /// Where and when; its cause is the message that it served.
        #[serde(flatten)]
        place: Place,
        /// The panic's text.
        reason: String,
    },
    /// Events are missing here: the queue to the trace's writer was full.
    Lost {
        /// How many, since the last such line.
        count: u64,
    },
}

/// An event as a sink hears of it: nothing of it has been copied.
pub type Told<'a> = Event<&'a dyn Content, &'static str>;

impl From<Told<'_>> for Event {
    fn from(told: Told<'_>) -> Self {
        match told {
            Event::Header(header) => Self::Header(header),
            Event::Created { place, spec } => Self::Created { place, spec: spec.to_value() },
            Event::Opened { place, how, spec } => Self::Opened { place, how, spec: spec.to_value() },
            Event::Interrupted { place } => Self::Interrupted { place },
            Event::Received { place, message, request, queue_us } => {
                Self::Received { place, message: message.to_owned(), request: request.to_value(), queue_us }
            }
            Event::Replied { place, message, reply, service_us } => {
                Self::Replied { place, message: message.to_owned(), reply: reply.to_value(), service_us }
            }
            Event::Called { place, port, method, request, result, took_us } => {
                let (port, method, request) = (port.to_owned(), method.to_owned(), request.to_value());
                let result = match result {
                    Ended::Ok(reply) => Ended::Ok(reply.to_value()),
                    Ended::Err(error) => Ended::Err(error),
                    Ended::Dropped => Ended::Dropped,
                    Ended::Panicked => Ended::Panicked,
                };
                Self::Called { place, port, method, request, result, took_us }
            }
            Event::Noted { place, record, refused } => Self::Noted { place, record, refused },
            Event::Died { place, reason } => Self::Died { place, reason },
            Event::Lost { count } => Self::Lost { count },
        }
    }
}

impl<V, N> Event<V, N> {
    /// Where the event stands; the header and what is lost stand nowhere.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Header(_) | Self::Lost { .. } => None,
            Self::Created { place, .. }
            | Self::Opened { place, .. }
            | Self::Interrupted { place }
            | Self::Received { place, .. }
            | Self::Replied { place, .. }
            | Self::Called { place, .. }
            | Self::Noted { place, .. }
            | Self::Died { place, .. } => Some(place),
        }
    }
}

/// Takes the events of all actors. It must not block.
pub trait TraceSink: fmt::Debug + Send + Sync {
    /// The next sequence number.
    fn next_seq(&self) -> u64;

    /// Microseconds since the trace began, by tokio's clock.
    fn now_us(&self) -> u64;

    /// Whether `record` does anything: otherwise nobody tells it of a message.
    fn is_recording(&self) -> bool;

    /// Whether it wants to hear of calls through ports, too.
    fn hears_calls(&self) -> bool {
        self.is_recording()
    }

    /// Takes one event.
    fn record(&self, event: Told<'_>);
}
