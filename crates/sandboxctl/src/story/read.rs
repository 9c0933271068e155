//! From records to messages and calls.

use std::collections::BTreeMap;

use sandbox_model::SandboxId;
use sandbox_model::trace::{Ended, Event, Header, Opening, Place};
use serde_json::Value;

use super::objects::Objects;
use super::{Call, Happening, Life, Mark, Message, Outcome, Purpose, Story, why};

impl Story {
    /// Reads what the records of one trace, in the order of their numbers, tell.
    pub(crate) fn new(header: Header, events: Vec<Event>) -> Self {
        let end_us = events.iter().filter_map(Event::place).map(|place| place.at_us).max().unwrap_or(0);
        let mut order = Vec::new();
        let mut drafts: BTreeMap<SandboxId, Draft> = BTreeMap::new();
        for event in events {
            let Some(place) = event.place() else { continue };
            let sandbox = place.sandbox.clone();
            let draft = drafts.entry(sandbox.clone()).or_insert_with(|| {
                order.push(sandbox);
                Draft::default()
            });
            draft.take(event);
        }
        let lives = order.into_iter().filter_map(|id| Some(drafts.remove(&id)?.finish(id, end_us))).collect();
        Self { header, lives }
    }
}

/// A life while its records come in.
#[derive(Default)]
struct Draft {
    messages: Vec<Message>,
    /// Where a message is, by its number.
    index: BTreeMap<u64, usize>,
    calls: Vec<Call>,
    objects: Objects,
    marks: Vec<Mark>,
    events: Vec<Happening>,
    first_us: Option<u64>,
    last_us: u64,
}

impl Draft {
    fn saw(&mut self, from_us: u64, to_us: u64) {
        self.first_us = Some(self.first_us.map_or(from_us, |first| first.min(from_us)));
        self.last_us = self.last_us.max(to_us);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Received { place, message, request, queue_us } => self.received(place, message, request, queue_us),
            Event::Replied { place, reply, .. } => self.replied(&place, reply),
            Event::Called { place, port, method, request, result, took_us } => {
                let (begun_us, ended_us) = (place.at_us.saturating_sub(took_us), place.at_us);
                self.saw(begun_us, ended_us);
                let purpose = self.purpose_of(place.cause);
                let outcome = match &result {
                    Ended::Ok(_) => Outcome::Done,
                    Ended::Err(error) if error.is_absent() && purpose != Purpose::Build => Outcome::AlreadyGone,
                    Ended::Err(error) => Outcome::Failed(error.to_string()),
                    Ended::Dropped => Outcome::Dropped,
                    Ended::Panicked => Outcome::Failed("panicked".to_owned()),
                };
                let (seq, cause, actor) = (place.seq, place.cause, place.actor);
                let call =
                    Call { seq, cause, actor, port, method, request, result, begun_us, ended_us, outcome, purpose };
                self.calls.push(call);
            }
            Event::Noted { place, record, refused } => {
                self.saw(place.at_us, place.at_us);
                if refused.is_none() {
                    self.marks.extend(self.objects.take(&place, record));
                }
            }
            Event::Interrupted { place } => self.happened(&place, "interrupted".to_owned(), true),
            Event::Died { place, reason } => self.happened(&place, format!("actor died: {reason}"), true),
            Event::Created { place, spec } => {
                self.saw(place.at_us, place.at_us);
                self.lives_in(&spec, &place);
            }
            Event::Opened { place, how, spec } => {
                let how = match how {
                    Opening::Cleanup => "opened from its ledger, to clean up",
                    Opening::Restore => "restored from what was saved",
                    Opening::Adopt => "adopted with its running VM",
                };
                self.happened(&place, how.to_owned(), false);
                self.lives_in(&spec, &place);
            }
            Event::Header(_) | Event::Lost { .. } => {}
        }
    }

    fn happened(&mut self, place: &Place, what: String, is_bad: bool) {
        let Place { seq, cause, actor, at_us, .. } = *place;
        self.saw(at_us, at_us);
        self.events.push(Happening { seq, cause, actor, at_us, what, is_bad });
    }

    /// Paths below the sandbox's directory are shown without it.
    fn lives_in(&mut self, spec: &Value, place: &Place) {
        if let Some(state_dir) = spec["state_dir"].as_str() {
            self.objects.dir = format!("{state_dir}/{}/", place.sandbox);
        }
    }

    fn received(&mut self, place: Place, name: String, request: Value, queue_us: u64) {
        let Place { seq, cause, actor, at_us, .. } = place;
        let sent_us = at_us.saturating_sub(queue_us);
        self.saw(sent_us, at_us);
        let purpose = self.purpose_of_message(&name, cause);
        self.index.insert(seq, self.messages.len());
        self.messages.push(Message {
            seq,
            reply_seq: None,
            cause,
            actor,
            name,
            request,
            reply: None,
            sent_us,
            taken_us: at_us,
            ended_us: at_us,
            outcome: Outcome::Open,
            purpose,
        });
    }

    fn replied(&mut self, place: &Place, reply: Value) {
        let index = place.cause.and_then(|cause| self.index.get(&cause));
        let Some(message) = index.and_then(|index| self.messages.get_mut(*index)) else { return };
        message.reply_seq = Some(place.seq);
        message.ended_us = place.at_us.max(message.taken_us);
        message.outcome = why::problem(&reply).map_or(Outcome::Done, Outcome::Failed);
        message.reply = Some(reply);
        self.saw(place.at_us, place.at_us);
    }

    /// An undo is wished by whoever releases something, and otherwise follows from a failure.
    fn purpose_of_message(&self, name: &str, cause: Option<u64>) -> Purpose {
        let caused_by = cause.and_then(|cause| self.index.get(&cause)).and_then(|index| self.messages.get(*index));
        match caused_by {
            None if matches!(name, "Cleanup" | "Stop" | "ReleaseContainer") => Purpose::TakeAway,
            Some(cause) if name.starts_with("Undo") && cause.purpose == Purpose::Build => Purpose::Undo,
            Some(cause) => cause.purpose,
            None => Purpose::Build,
        }
    }

    fn purpose_of(&self, cause: Option<u64>) -> Purpose {
        let index = cause.and_then(|cause| self.index.get(&cause));
        index.and_then(|index| self.messages.get(*index)).map_or(Purpose::Build, |message| message.purpose)
    }

    fn finish(mut self, sandbox: SandboxId, end_us: u64) -> Life {
        // What has no answer goes on to the end of the trace.
        for message in self.messages.iter_mut().filter(|message| message.outcome == Outcome::Open) {
            message.ended_us = end_us.max(message.taken_us);
            self.last_us = self.last_us.max(message.ended_us);
        }
        // A call is recorded when it ends; a picture needs it where it began.
        self.calls.sort_by_key(|call| (call.begun_us, call.seq));
        let begun_us = self.first_us.unwrap_or(0);
        let (messages, calls, marks, events) = (self.messages, self.calls, self.marks, self.events);
        Life { sandbox, begun_us, ended_us: self.last_us.max(begun_us), messages, calls, marks, events }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_message_has_begin_and_end() {
        let story = sample::story();
        let life = &story.lives[0];
        let stop = life.messages.iter().find(|message| message.name == "Stop").unwrap();
        assert!(stop.sent_us <= stop.taken_us && stop.taken_us <= stop.ended_us);
        assert!(stop.reply_seq.is_some_and(|reply| reply > stop.seq));
        assert_eq!((&stop.outcome, stop.purpose), (&Outcome::Done, Purpose::TakeAway));
        assert!(life.messages.iter().all(|message| message.ended_us <= life.ended_us));
    }

    #[test]
    fn an_undo_is_red_only_after_a_failure() {
        let story = sample::story();
        let purposes = |life: &Life| -> Vec<_> {
            let undone = life.messages.iter().filter(|message| message.name.starts_with("Undo"));
            undone.map(|message| message.purpose).collect()
        };
        assert!(purposes(&story.lives[0]).iter().all(|purpose| *purpose == Purpose::TakeAway));
        assert!(purposes(&story.lives[1]).contains(&Purpose::Undo), "the second sandbox's step failed");
        assert!(story.lives[0].failed_commands() == 0 && story.lives[1].failed_commands() == 1);
    }

    #[test]
    fn what_was_not_answered_is_open_to_the_end() {
        let (header, events) = sample::events();
        let cut = events.iter().position(|event| matches!(event, Event::Replied { .. })).unwrap();
        let story = Story::new(header, events[..cut].to_vec());
        let open: Vec<_> = story.lives[0].messages.iter().filter(|message| message.outcome == Outcome::Open).collect();
        assert!(!open.is_empty() && open.iter().all(|message| message.ended_us == story.lives[0].ended_us));
    }
}
