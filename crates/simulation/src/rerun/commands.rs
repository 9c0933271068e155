//! The commands of a trace as a load: for many sandboxes, as fast as they are answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use resource_actors::trace::ReplayError;
use resource_actors::{Ports, ResourceSystem, SandboxHandle};
use sandbox_model::SandboxId;
use sandbox_model::trace::Event;

use super::script::{Played, Script, is_ok, network, play_on};
use crate::{SimulatedFacts, World, simulated_ports};

/// What a trace's sandboxes were told, in two halves: up to where each is stopped or cleaned up, and
/// from there on.
#[derive(Debug, Clone)]
pub struct Commands {
    until_stop: Script,
    from_stop: Script,
    /// Commands that were answered with success.
    succeeded: BTreeSet<u64>,
}

/// One copy of the trace's sandboxes, in the middle of their lives.
#[derive(Debug)]
pub struct Begun {
    copy: usize,
    sandboxes: BTreeMap<SandboxId, SandboxHandle>,
}

impl Begun {
    /// The sandboxes that are there.
    pub fn sandboxes(&self) -> impl Iterator<Item = &SandboxHandle> {
        self.sandboxes.values()
    }
}

/// How commands went.
#[derive(Debug, Default)]
pub struct Given {
    /// How long each took, by its name.
    pub times: Vec<(String, Duration)>,
    /// Those that succeeded in the trace and did not now, and what could not be sent.
    pub failures: Vec<String>,
}

impl Commands {
    /// Those of a trace.
    ///
    /// # Errors
    /// [`ReplayError`]: the trace is no trace of this version, or begins in the middle.
    pub fn of(events: &[Event]) -> Result<Self, ReplayError> {
        let (until_stop, from_stop) = Script::of(events)?.halves();
        let succeeded = events.iter().filter_map(|event| match event {
            Event::Replied { place, reply, .. } if is_ok(reply) => place.cause,
            _ => None,
        });
        Ok(Self { until_stop, from_stop, succeeded: succeeded.collect() })
    }

    /// Ports onto `world` and the host's facts, with what the trace shows of its own for each of so
    /// many copies.
    pub fn surroundings(&self, world: &Arc<World>, copies: usize) -> (Ports, SimulatedFacts) {
        let shown: Vec<_> = (0..copies).map(|n| self.until_stop.copy(n).surroundings).collect();
        let network = Arc::new(network(world, shown.iter()));
        let facts = SimulatedFacts { kinds: self.until_stop.surroundings.kinds.clone() };
        (Ports { network, ..simulated_ports(world) }, facts)
    }

    /// Tells a copy of the trace's sandboxes all up to their ends. It runs on a `LocalSet`.
    pub async fn begin(&self, copy: usize, system: &ResourceSystem) -> (Begun, Given) {
        let script = self.until_stop.copy(copy);
        let mut played = play_on(&script, system, AT_ONCE, &BTreeMap::new()).await;
        let sandboxes = std::mem::take(&mut played.sandboxes);
        (Begun { copy, sandboxes }, self.judge(played))
    }

    /// Tells it the rest, and releases what the trace has not.
    pub async fn end(&self, begun: Begun, system: &ResourceSystem) -> Given {
        let script = self.from_stop.copy(begun.copy);
        let played = play_on(&script, system, AT_ONCE, &begun.sandboxes).await;
        let mut given = self.judge(played);
        for (id, handle) in begun.sandboxes {
            match handle.cleanup().await {
                Ok(report) => given
                    .failures
                    .extend(report.failed().map(|(item, error)| format!("{id}: {}: {error}", item.object))),
                Err(error) => given.failures.push(format!("{id}: {error}")),
            }
        }
        given
    }

    fn judge(&self, played: Played) -> Given {
        let mut given = Given { times: Vec::new(), failures: played.problems };
        for (seq, reply) in played.replies {
            if self.succeeded.contains(&seq) && !reply.is_ok() {
                given.failures.push(format!("record {seq}, {}: {}", reply.message, reply.reply));
            }
            given.times.push((reply.message, reply.took));
        }
        given
    }
}

/// No command waits for its time in the trace.
const AT_ONCE: f64 = f64::INFINITY;
