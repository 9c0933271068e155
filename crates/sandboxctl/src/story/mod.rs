//! What a trace tells of each sandbox, as plain data that every picture is drawn from.
//!
//! * [`read`]: from records to messages and calls with begin and end.
//! * [`objects`]: what was made and taken away, by the ledger's records.
//! * [`why`]: a failed reply in words.
//! * [`layout`]: lanes, rows and folds: where a picture puts what.

pub(crate) mod layout;
pub(crate) mod objects;
mod read;
#[cfg(test)]
pub(crate) mod sample;
pub(crate) mod why;

use std::collections::BTreeMap;

use resource_actors::trace::NEWS;
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Ended, Header};
use serde_json::Value;

pub(crate) use objects::{Change, Mark};

/// Everything that a trace tells.
#[derive(Debug)]
pub(crate) struct Story {
    /// With what it was recorded.
    pub(crate) header: Header,
    /// The sandboxes, in the order of their first records.
    pub(crate) lives: Vec<Life>,
}

/// What happened in one sandbox. Times are microseconds after the trace began.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) sandbox: SandboxId,
    pub(crate) begun_us: u64,
    pub(crate) ended_us: u64,
    /// In the order in which they were taken from their mailboxes.
    pub(crate) messages: Vec<Message>,
    /// In the order in which they began.
    pub(crate) calls: Vec<Call>,
    /// What became of objects.
    pub(crate) marks: Vec<Mark>,
    /// What happened beside messages.
    pub(crate) events: Vec<Happening>,
}

/// Something that is neither message nor call: an interruption, an actor's death, a sandbox that was
/// opened from its ledger.
#[derive(Debug)]
pub(crate) struct Happening {
    pub(crate) seq: u64,
    pub(crate) cause: Option<u64>,
    pub(crate) actor: ActorName,
    pub(crate) at_us: u64,
    /// In words.
    pub(crate) what: String,
    pub(crate) is_bad: bool,
}

/// One message to an actor.
#[derive(Debug)]
pub(crate) struct Message {
    /// Of its `received` record.
    pub(crate) seq: u64,
    /// Of its `replied` record, if the trace has one.
    pub(crate) reply_seq: Option<u64>,
    pub(crate) cause: Option<u64>,
    pub(crate) actor: ActorName,
    pub(crate) name: String,
    pub(crate) request: Value,
    pub(crate) reply: Option<Value>,
    pub(crate) sent_us: u64,
    pub(crate) taken_us: u64,
    /// When it was answered; without an answer, when the trace ends.
    pub(crate) ended_us: u64,
    pub(crate) outcome: Outcome,
    pub(crate) purpose: Purpose,
}

/// One call through a port.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) seq: u64,
    /// The message that was served when it began.
    pub(crate) cause: Option<u64>,
    pub(crate) actor: ActorName,
    pub(crate) port: String,
    pub(crate) method: String,
    pub(crate) request: Value,
    pub(crate) result: Ended,
    pub(crate) begun_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) outcome: Outcome,
    pub(crate) purpose: Purpose,
}

/// How a message or call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// With an error; why, in words.
    Failed(String),
    /// An undo found nothing to undo, which is as good.
    AlreadyGone,
    /// Its caller gave it up: whether it happened is doubtful.
    Dropped,
    /// The trace ends before its answer.
    Open,
}

/// What it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To set up or change something.
    Build,
    /// To take away what is not needed any more.
    TakeAway,
    /// To undo a step that failed.
    Undo,
}

impl Outcome {
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    Message(&'a Message),
    Call(&'a Call),
    Mark(&'a Mark),
    Happening(&'a Happening),
}

impl Life {
    pub(crate) fn duration_us(&self) -> u64 {
        self.ended_us - self.begun_us
    }

    /// Messages and calls that failed.
    pub(crate) fn failures(&self) -> usize {
        let messages = self.messages.iter().filter(|message| message.outcome.is_failure()).count();
        messages + self.calls.iter().filter(|call| call.outcome.is_failure()).count()
    }

    /// Commands from outside that failed: what its user has seen.
    pub(crate) fn failed_commands(&self) -> usize {
        let is_command = |message: &&Message| message.cause.is_none() && !NEWS.contains(&message.name.as_str());
        self.messages.iter().filter(is_command).filter(|message| message.outcome.is_failure()).count()
    }

    /// What that record is: a `received` and its `replied` record are one message.
    pub(crate) fn find(&self, seq: u64) -> Option<Found<'_>> {
        let is_it = |message: &&Message| message.seq == seq || message.reply_seq == Some(seq);
        let message = self.messages.iter().find(is_it).map(Found::Message);
        let call = || self.calls.iter().find(|call| call.seq == seq).map(Found::Call);
        let mark = || self.marks.iter().find(|mark| mark.seq == seq).map(Found::Mark);
        let event = || self.events.iter().find(|event| event.seq == seq).map(Found::Happening);
        message.or_else(call).or_else(mark).or_else(event)
    }

    /// The messages by the numbers of their `received` records.
    pub(crate) fn by_seq(&self) -> BTreeMap<u64, &Message> {
        self.messages.iter().map(|message| (message.seq, message)).collect()
    }
}

/// Microseconds as people read them, with three digits that count.
pub(crate) fn time(us: u64) -> String {
    let (value, unit) = match us {
        0..1_000 => return format!("{us} µs"),
        1_000..1_000_000 => (us as f64 / 1e3, "ms"),
        _ => (us as f64 / 1e6, "s"),
    };
    match value {
        value if value < 10.0 => format!("{value:.2} {unit}"),
        value if value < 100.0 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn three_digits_count() {
        let shown = [0, 999, 1_234, 12_345, 123_456, 1_500_000, 3_600_000_000].map(time);
        assert_eq!(shown, ["0 µs", "999 µs", "1.23 ms", "12.3 ms", "123 ms", "1.50 s", "3600 s"]);
    }
}
