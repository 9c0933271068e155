//! Compares what the actors put out with what they put out in the trace: in order for each actor, since
//! what happens side by side may have come in another order.

use std::collections::{BTreeMap, VecDeque};

use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Event, Place};
use serde_json::{Value, json};

use super::answers::{Answers, Key, Unknown};
use super::report::Divergence;
use super::same;

/// One output of an actor.
#[derive(Debug, Clone)]
struct Output {
    place: Place,
    what: String,
    content: Value,
}

impl Output {
    /// What an event puts out, if that is to be compared: port calls are matched, not compared.
    fn of(event: &Event) -> Option<Self> {
        let (place, what, content) = match event {
            Event::Received { place, message, request, .. } => (place, format!("message {message}"), request.clone()),
            Event::Replied { place, message, reply, .. } => (place, format!("reply to {message}"), reply.clone()),
            Event::Noted { place, record, .. } => (place, "ledger record".to_owned(), json!(record)),
            Event::Died { place, reason } => (place, "death".to_owned(), json!(reason)),
            _ => return None,
        };
        Some(Self { place: place.clone(), what, content })
    }

    fn key(&self) -> Key {
        (self.place.sandbox.clone(), self.place.actor)
    }
}

/// The outputs of a trace, and how far a replay has come with them.
#[derive(Default)]
pub(super) struct Comparison {
    expected: BTreeMap<Key, VecDeque<Output>>,
    /// Messages that have been served to their end in the trace, in order of their taking.
    served: BTreeMap<Key, VecDeque<bool>>,
    /// For each message of the replay, whether it was served to its end in the trace.
    is_served: BTreeMap<u64, bool>,
    pub(super) replies: usize,
    pub(super) outputs: usize,
    pub(super) divergence: Option<Divergence>,
}

impl Comparison {
    pub(super) fn new(events: &[Event]) -> Self {
        let mut comparison = Self::default();
        let ended: std::collections::BTreeSet<u64> = events
            .iter()
            .filter_map(|event| match event {
                Event::Replied { place, .. } | Event::Died { place, .. } => place.cause,
                _ => None,
            })
            .collect();
        for event in events {
            let Some(output) = Output::of(event) else { continue };
            let key = output.key();
            if matches!(event, Event::Received { .. }) {
                let is_ended = ended.contains(&output.place.seq);
                comparison.served.entry(key.clone()).or_default().push_back(is_ended);
            }
            comparison.expected.entry(key).or_default().push_back(output);
        }
        comparison
    }

    /// Takes the next event of the replay.
    pub(super) fn take(&mut self, event: &Event) {
        let Some(output) = Output::of(event) else { return };
        let key = output.key();
        if matches!(event, Event::Received { .. }) {
            let is_served = self.served.get_mut(&key).and_then(VecDeque::pop_front).unwrap_or(false);
            self.is_served.insert(output.place.seq, is_served);
        }
        if self.divergence.is_some() {
            return;
        }
        let Some(expected) = self.expected.get_mut(&key).and_then(VecDeque::pop_front) else {
            // The trace was cut before this.
            return;
        };
        self.outputs += 1;
        self.replies += usize::from(matches!(event, Event::Replied { .. }));
        let is_same = expected.what == output.what
            && expected.place.generation == output.place.generation
            && same(&expected.content, &output.content);
        if !is_same {
            self.divergence = Some(Divergence {
                place: expected.place,
                what: expected.what.clone(),
                recorded: named(&expected.what, &output.what, expected.content),
                replayed: named(&output.what, &expected.what, output.content),
            });
        }
    }

    /// Takes a call that the trace does not have. It is a difference if the trace has all calls of the
    /// message that made it.
    pub(super) fn take_unknown(&mut self, call: &Unknown, answers: &Answers) {
        let is_served = self.is_served.get(&call.cause).copied().unwrap_or(false);
        if self.divergence.is_some() || !is_served {
            return;
        }
        let expected = answers.expected(&call.key);
        let next = self.expected.get(&call.key).and_then(|outputs| outputs.front());
        let place = next.map(|output| output.place.clone());
        let (what, content) = match expected {
            Some(recorded) => (format!("call {}", recorded.name), recorded.request),
            None => ("no call".to_owned(), Value::Null),
        };
        let made = format!("call {}", call.name);
        self.divergence = Some(Divergence {
            place: place.unwrap_or_else(|| nowhere(&call.key)),
            what: made.clone(),
            recorded: named(&what, &made, content),
            replayed: named(&made, &what, call.request.clone()),
        });
    }

    /// The replay has come to its end, and nothing was cut off.
    pub(super) fn end(&mut self, answers: &Answers) {
        if self.divergence.is_some() {
            return;
        }
        let missing = self.expected.values().filter_map(VecDeque::front).min_by_key(|output| output.place.seq);
        if let Some(output) = missing {
            self.divergence = Some(Divergence {
                place: output.place.clone(),
                what: output.what.clone(),
                recorded: output.content.clone(),
                replayed: json!("nothing"),
            });
        } else if let Some((key, call)) = answers.first_unmade() {
            self.divergence = Some(Divergence {
                place: Place { seq: call.seq, ..nowhere(&key) },
                what: format!("call {}", call.name),
                recorded: call.request,
                replayed: json!("nothing"),
            });
        }
    }
}

/// The content, with its kind where that differs too.
fn named(what: &str, other: &str, content: Value) -> Value {
    if what == other { content } else { json!({ what: content }) }
}

fn nowhere((sandbox, actor): &Key) -> Place {
    let (sandbox, actor): (_, ActorName) = (sandbox.clone(), *actor);
    Place { seq: 0, cause: None, sandbox, actor, generation: 1, at_us: 0 }
}
