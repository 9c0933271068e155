//! What happened: one record for each message at a mailbox and each call through a port.
//!
//! A trace is JSON Lines: a [`Header`], then events in the order of their sequence numbers.
//! Commands from outside carry no cause; everything else names the record that caused it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lifecycle::ActorName;
use crate::{PortError, SandboxId};

/// The version of the trace's format.
pub const TRACE_VERSION: u32 = 1;

/// The first line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`TRACE_VERSION`].
    pub version: u32,
    /// Version of the program that wrote it.
    pub build: String,
    /// `qemu`, `simulated` or an embedder's own.
    pub vmm: String,
    /// `real` or `private`.
    pub host: String,
    /// SHA-256 of the effective configuration.
    pub config_digest: String,
    /// Seed of the simulation, if it was one.
    pub seed: Option<u64>,
}

/// Where in time and cause an event stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Global sequence number, from 1.
    pub seq: u64,
    /// The record that caused this one; `None` for a command from outside.
    pub cause: Option<u64>,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Which actor.
    pub actor: ActorName,
    /// Microseconds after the trace began.
    pub at_us: u64,
}

/// One line of a trace after the header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The header.
    Header(Header),
    /// A sandbox's actors were started.
    Created {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// What it was created with, and the directory below which it lives.
        spec: Value,
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
        message: String,
        /// Its content.
        request: Value,
        /// Microseconds that it lay in the mailbox.
        queue_us: u64,
    },
    /// A message was answered.
    Replied {
        /// Where and when; its cause is the `Received` record.
        #[serde(flatten)]
        place: Place,
        /// The message's name.
        message: String,
        /// The reply.
        reply: Value,
        /// Microseconds from taking to answering.
        service_us: u64,
    },
    /// A call went through a port.
    Called {
        /// Where and when it ended.
        #[serde(flatten)]
        place: Place,
        /// Port.
        port: String,
        /// Method.
        method: String,
        /// The request.
        request: Value,
        /// What came back.
        result: Result<Value, PortError>,
        /// Microseconds that it took.
        took_us: u64,
    },
}

impl Event {
    /// Where the event stands; the header stands nowhere.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Header(_) => None,
            Self::Created { place, .. }
            | Self::Interrupted { place }
            | Self::Received { place, .. }
            | Self::Replied { place, .. }
            | Self::Called { place, .. } => Some(place),
        }
    }
}

/// Takes the events of all actors. It must not block.
pub trait TraceSink: fmt::Debug + Send + Sync {
    /// The next sequence number.
    fn next_seq(&self) -> u64;

    /// Microseconds since the trace began, by tokio's clock.
    fn now_us(&self) -> u64;

    /// Whether `record` does anything: otherwise nobody serialises a message for it.
    fn is_recording(&self) -> bool;

    /// Takes one event.
    fn record(&self, event: Event);
}
