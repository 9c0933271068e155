//! Compares what the actors put out with what they put out in the trace: in order for each actor, since
//! what happens side by side may have come in another order.

use std::collections::{BTreeMap, VecDeque};

use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Event, Place};
use serde_json::{Value, json};

use super::answers::{Answers, Key, Unknown};
use super::report::Divergence;
use super::same;

/// Whose output an event is; none if it is not compared: port calls are matched instead.
fn key(event: &Event) -> Option<Key> {
    match event {
        Event::Received { place, .. }
        | Event::Replied { place, .. }
        | Event::Noted { place, .. }
        | Event::Died { place, .. } => Some((place.sandbox.clone(), place.actor)),
        _ => None,
    }
}

/// What an output is called, and what it says: for a difference that is shown.
fn shown(event: &Event) -> (String, Value) {
    match event {
        Event::Received { message, request, .. } => (format!("message {message}"), request.clone()),
        Event::Replied { message, reply, .. } => (format!("reply to {message}"), reply.clone()),
        Event::Noted { record, .. } => ("ledger record".to_owned(), json!(record)),
        Event::Died { reason, .. } => ("death".to_owned(), json!(reason)),
        _ => ("nothing".to_owned(), Value::Null),
    }
}

/// Whether two outputs say the same, of actors of the same generation.
fn agree(one: &Event, other: &Event) -> bool {
    let is_same = match (one, other) {
        (
            Event::Received { message: one, request: content, .. },
            Event::Received { message: other, request: other_content, .. },
        )
        | (
            Event::Replied { message: one, reply: content, .. },
            Event::Replied { message: other, reply: other_content, .. },
        ) => one == other && same(content, other_content),
        (Event::Noted { record: one, .. }, Event::Noted { record: other, .. }) => one == other,
        (Event::Died { reason: one, .. }, Event::Died { reason: other, .. }) => one == other,
        _ => false,
    };
    let generation = |event: &Event| event.place().map(|place| place.generation);
    is_same && generation(one) == generation(other)
}

/// The outputs of a trace, and how far a replay has come with them.
#[derive(Default)]
pub(super) struct Comparison<'e> {
    expected: BTreeMap<Key, VecDeque<&'e Event>>,
    /// Messages that have been served to their end in the trace, in order of their taking.
    served: BTreeMap<Key, VecDeque<bool>>,
    /// For each message of the replay, whether it was served to its end in the trace.
    is_served: BTreeMap<u64, bool>,
    pub(super) replies: usize,
    pub(super) outputs: usize,
    pub(super) divergence: Option<Divergence>,
}

impl<'e> Comparison<'e> {
    pub(super) fn new(events: &'e [Event]) -> Self {
        let mut comparison = Self::default();
        let ended: std::collections::BTreeSet<u64> = events
            .iter()
            .filter_map(|event| match event {
                Event::Replied { place, .. } | Event::Died { place, .. } => place.cause,
                _ => None,
            })
            .collect();
        for event in events {
            let Some(key) = key(event) else { continue };
            if let Event::Received { place, .. } = event {
                comparison.served.entry(key.clone()).or_default().push_back(ended.contains(&place.seq));
            }
            comparison.expected.entry(key).or_default().push_back(event);
        }
        comparison
    }

    /// Takes the next event of the replay.
    pub(super) fn take(&mut self, event: &Event) {
        let Some(key) = key(event) else { return };
        if let Event::Received { place, .. } = event {
            let is_served = self.served.get_mut(&key).and_then(VecDeque::pop_front).unwrap_or(false);
            self.is_served.insert(place.seq, is_served);
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
        if !agree(expected, event) {
            let ((what, recorded), (now, replayed)) = (shown(expected), shown(event));
            self.divergence = Some(Divergence {
                place: place(expected, &key),
                recorded: named(&what, &now, recorded),
                replayed: named(&now, &what, replayed),
                what,
            });
        }
    }

    /// Takes a call that the trace does not have. It is a difference if the trace has all calls of the
    /// message that made it.
    pub(super) fn take_unknown(&mut self, call: &Unknown, answers: &Answers<'_>) {
        let is_served = self.is_served.get(&call.cause).copied().unwrap_or(false);
        if self.divergence.is_some() || !is_served {
            return;
        }
        let expected = answers.expected(&call.key);
        let next = self.expected.get(&call.key).and_then(|outputs| outputs.front());
        let (what, content) = match expected {
            Some(recorded) => (format!("call {}", recorded.name()), recorded.request.clone()),
            None => ("no call".to_owned(), Value::Null),
        };
        let made = format!("call {}", call.name);
        self.divergence = Some(Divergence {
            place: next.map_or_else(|| nowhere(&call.key), |event| place(event, &call.key)),
            what: made.clone(),
            recorded: named(&what, &made, content),
            replayed: named(&made, &what, call.request.clone()),
        });
    }

    /// The replay has come to its end, and nothing was cut off.
    pub(super) fn end(&mut self, answers: &Answers<'_>) {
        if self.divergence.is_some() {
            return;
        }
        let seq = |event: &Event| event.place().map(|place| place.seq);
        let firsts = self.expected.iter().filter_map(|(key, outputs)| Some((key, *outputs.front()?)));
        if let Some((key, event)) = firsts.min_by_key(|(_, event)| seq(event)) {
            let (what, recorded) = shown(event);
            let replayed = json!("nothing");
            self.divergence = Some(Divergence { place: place(event, key), what, recorded, replayed });
        } else if let Some((key, call)) = answers.first_unmade() {
            self.divergence = Some(Divergence {
                place: Place { seq: call.seq, ..nowhere(&key) },
                what: format!("call {}", call.name()),
                recorded: call.request.clone(),
                replayed: json!("nothing"),
            });
        }
    }
}

fn place(event: &Event, key: &Key) -> Place {
    event.place().cloned().unwrap_or_else(|| nowhere(key))
}

/// The content, with its kind where that differs too.
fn named(what: &str, other: &str, content: Value) -> Value {
    if what == other { content } else { json!({ what: content }) }
}

fn nowhere((sandbox, actor): &Key) -> Place {
    let (sandbox, actor): (_, ActorName) = (sandbox.clone(), *actor);
    Place { seq: 0, cause: None, sandbox, actor, generation: 1, at_us: 0 }
}
