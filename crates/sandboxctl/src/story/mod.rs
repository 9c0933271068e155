//! What a trace tells of each sandbox, as plain data that every picture is drawn from.
//!
//! * [`read`]: from records to messages and calls with begin and end.
//! * [`objects`]: which call makes or takes which object, in the field's words.
//! * [`why`]: a failed reply in words.
//! * [`layout`]: lanes, rows and folds: where a picture puts what.

pub(crate) mod layout;
pub(crate) mod objects;
mod read;
#[cfg(test)]
pub(crate) mod sample;
pub(crate) mod why;

use std::collections::BTreeMap;

use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::Header;
use sandbox_model::{PortError, SandboxId};
use serde_json::Value;

pub(crate) use objects::Mark;

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
    /// When somebody interrupted the supervisor.
    pub(crate) interruptions: Vec<(u64, u64)>,
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
    pub(crate) result: Result<Value, PortError>,
    pub(crate) begun_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) outcome: Outcome,
    pub(crate) purpose: Purpose,
    /// The object that it made or took away.
    pub(crate) mark: Option<Mark>,
}

/// How a message or call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// With an error; why, in words.
    Failed(String),
    /// An undo found nothing to undo, which is as good.
    AlreadyGone,
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
    /// An interruption at that time.
    Interruption(u64),
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
        self.messages.iter().filter(|message| message.cause.is_none() && message.outcome.is_failure()).count()
    }

    /// The message whose `received` or `replied` record that is, the call, or the interruption.
    pub(crate) fn find(&self, seq: u64) -> Option<Found<'_>> {
        let is_it = |message: &&Message| message.seq == seq || message.reply_seq == Some(seq);
        let message = self.messages.iter().find(is_it).map(Found::Message);
        let call = || self.calls.iter().find(|call| call.seq == seq).map(Found::Call);
        let interruption = || self.interruptions.iter().find(|(of, _)| *of == seq);
        message.or_else(call).or_else(|| interruption().map(|(_, at)| Found::Interruption(*at)))
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
