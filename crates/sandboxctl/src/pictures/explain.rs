//! One record in words: why it came to be, what it waited for, what it made, how it ended.

use std::fmt::Write;

use sandbox_model::SandboxId;
use sandbox_model::lifecycle::ActorName;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::table::columns;
use crate::story::{Call, Found, Happening, Life, Mark, Message, Outcome, Purpose, Story, time};

/// Rows of a list that are said; the rest is counted.
const LISTED_MAX: usize = 40;

/// What `trace explain --json` prints. Times are microseconds; `begun_us` counts from the begin of the
/// sandbox's life.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Explanation {
    /// The version of this document: 1.
    v: u32,
    kind: Kind,
    #[schemars(with = "String")]
    sandbox: SandboxId,
    /// The record itself.
    record: Brief,
    /// What it was for.
    purpose: &'static str,
    /// The messages that led to it, the command from outside first.
    because: Vec<Brief>,
    /// How long it lay in the mailbox.
    queue_us: u64,
    /// What its actor served meanwhile; `took_us` is the part that it waited for.
    behind: Vec<Brief>,
    /// The calls that it made through ports.
    calls: Vec<Brief>,
    /// The messages that it sent to other actors.
    asked: Vec<Brief>,
    /// What it and all that followed from it made, took away or left.
    objects: Vec<Object>,
    /// Content of the message or call.
    request: Value,
    /// What came back.
    reply: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Message,
    Call,
    /// A record of the ledger.
    Object,
    /// An interruption, a death, an opening.
    Event,
}

/// A record in one row.
#[derive(Debug, Serialize, JsonSchema)]
struct Brief {
    seq: u64,
    actor: ActorName,
    /// Name of a message, port and method of a call, otherwise words.
    name: String,
    begun_us: u64,
    took_us: u64,
    /// `done`, `already-gone`, `failed`, `dropped` or `open`.
    outcome: &'static str,
    /// Why it failed.
    why: Option<String>,
}

/// A change of an object.
#[derive(Debug, Serialize, JsonSchema)]
struct Object {
    /// Of its record.
    seq: u64,
    /// The ledger's entry.
    entry: u64,
    /// `▲ OBJECT` was made, `▼ OBJECT` taken away, `! OBJECT: WHY` left.
    text: String,
}

impl Explanation {
    /// Explains record `seq`; `None` if the trace has no such record, or it has nothing to explain.
    pub(crate) fn find(story: &Story, seq: u64) -> Option<Self> {
        let (life, found) = story.lives.iter().find_map(|life| Some((life, life.find(seq)?)))?;
        let view = View { life };
        Some(match found {
            Found::Message(message) => view.message(message),
            Found::Call(call) => Self {
                purpose: purpose(call.purpose),
                request: call.request.clone(),
                reply: json!(call.result),
                ..view.blank(Kind::Call, view.call(call), call.cause)
            },
            Found::Mark(mark) => view.blank(Kind::Object, view.mark(mark), mark.cause),
            Found::Happening(event) => view.blank(Kind::Event, view.event(event), event.cause),
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { record, sandbox, .. } = self;
        let mut text = format!("#{}  {} · {} actor of sandbox {sandbox}\n", record.seq, record.name, record.actor);
        let begun = time(record.begun_us);
        let _ = match self.kind {
            Kind::Message | Kind::Call => writeln!(text, "  {begun} into its life; {}", record.ended()),
            Kind::Object | Kind::Event => writeln!(text, "  {begun} into its life"),
        };
        if self.because.is_empty() && self.kind == Kind::Message {
            text += "\nA command from outside\n";
        }
        section(&mut text, "Because of", &self.because, |brief| brief.row(time(brief.begun_us), false));
        if self.kind == Kind::Message {
            let behind = if self.behind.is_empty() { ", behind nothing\n" } else { "" };
            let _ = write!(text, "\nIn the mailbox: {}{behind}", time(self.queue_us));
            section(&mut text, ", behind", &self.behind, |brief| brief.row(time(brief.took_us), true));
        }
        let since = |brief: &Brief| format!("+{}", time(brief.begun_us.saturating_sub(record.begun_us)));
        section(&mut text, "Calls through ports", &self.calls, |brief| brief.row(since(brief), true));
        section(&mut text, "Asked of other actors", &self.asked, |brief| brief.row(since(brief), true));
        let object = |object: &Object| vec![format!("  #{}", object.seq), object.text.clone()];
        section(&mut text, "Objects", &self.objects, object);
        text
    }
}

/// A titled list, if there is something in it. A title that goes on with a comma stays on its line.
fn section<T>(text: &mut String, title: &str, list: &[T], row: impl Fn(&T) -> Vec<String>) {
    if list.is_empty() {
        return;
    }
    let mut rows: Vec<_> = list.iter().take(LISTED_MAX).map(row).collect();
    if list.len() > LISTED_MAX {
        rows.push(vec![format!("  … and {} more", list.len() - LISTED_MAX)]);
    }
    let gap = if title.starts_with(',') { "" } else { "\n" };
    let _ = write!(text, "{gap}{title}\n{}", columns(&rows));
}

impl Brief {
    fn row(&self, when: String, with_outcome: bool) -> Vec<String> {
        let mut cells = vec![format!("  #{}", self.seq), when, self.actor.to_string(), self.name.clone()];
        if with_outcome {
            cells.push(self.ended());
        }
        cells
    }

    fn ended(&self) -> String {
        let took = time(self.took_us);
        match (self.outcome, &self.why) {
            ("failed", Some(why)) => format!("failed after {took}: {why}"),
            ("already-gone", _) => format!("found nothing to undo after {took}"),
            ("dropped", _) => format!("given up after {took}, so its outcome is doubtful"),
            ("open", _) => format!("not answered in the {took} until the trace ends"),
            (outcome, _) => format!("{outcome} after {took}"),
        }
    }
}

/// A life, of which something is explained.
struct View<'a> {
    life: &'a Life,
}

impl View<'_> {
    fn message(&self, message: &Message) -> Explanation {
        let Message { seq, taken_us, sent_us, .. } = *message;
        let calls = self.life.calls.iter().filter(|call| call.cause == Some(seq));
        let asked = self.life.messages.iter().filter(|other| other.cause == Some(seq));
        let objects = self.life.marks.iter().filter(|mark| self.follows_from(mark.cause, seq));
        Explanation {
            purpose: purpose(message.purpose),
            queue_us: taken_us - sent_us,
            behind: self.served_meanwhile(message),
            calls: calls.map(|call| self.call(call)).collect(),
            asked: asked.map(|message| self.brief(message)).collect(),
            objects: objects.map(|mark| Object { seq: mark.seq, entry: mark.entry.0, text: mark.text() }).collect(),
            request: message.request.clone(),
            reply: message.reply.clone().unwrap_or_default(),
            ..self.blank(Kind::Message, self.brief(message), message.cause)
        }
    }

    fn blank(&self, kind: Kind, record: Brief, cause: Option<u64>) -> Explanation {
        Explanation {
            v: 1,
            kind,
            sandbox: self.life.sandbox.clone(),
            record,
            purpose: purpose(Purpose::Build),
            because: self.because(cause),
            queue_us: 0,
            behind: Vec::new(),
            calls: Vec::new(),
            asked: Vec::new(),
            objects: Vec::new(),
            request: Value::Null,
            reply: Value::Null,
        }
    }

    /// The messages that led to a record of that cause.
    fn because(&self, mut cause: Option<u64>) -> Vec<Brief> {
        let mut because = Vec::new();
        while let Some(message) = self.sent_before(cause) {
            because.push(self.brief(message));
            cause = message.cause.filter(|cause| *cause < message.seq);
        }
        because.reverse();
        because
    }

    /// The message of that number. A record is caused by an earlier one, so a chain of these ends.
    fn sent_before(&self, cause: Option<u64>) -> Option<&Message> {
        let index = self.life.messages.binary_search_by_key(&cause?, |message| message.seq);
        index.ok().map(|index| &self.life.messages[index])
    }

    fn follows_from(&self, mut cause: Option<u64>, seq: u64) -> bool {
        while cause.is_some_and(|cause| cause > seq) {
            cause = self.sent_before(cause).and_then(|message| message.cause.filter(|cause| *cause < message.seq));
        }
        cause == Some(seq)
    }

    /// What the same actor served between sending and taking `message`.
    fn served_meanwhile(&self, message: &Message) -> Vec<Brief> {
        let others = self.life.messages.iter();
        let others = others.filter(|other| other.actor == message.actor && other.seq != message.seq);
        let waited_for = others.filter_map(|other| {
            let (from, to) = (other.taken_us.max(message.sent_us), other.ended_us.min(message.taken_us));
            (from < to).then(|| Brief { took_us: to - from, ..self.brief(other) })
        });
        waited_for.collect()
    }

    fn since(&self, us: u64) -> u64 {
        us.saturating_sub(self.life.begun_us)
    }

    fn brief(&self, message: &Message) -> Brief {
        let Message { seq, actor, taken_us, ended_us, ref name, ref outcome, .. } = *message;
        let (begun_us, took_us) = (self.since(taken_us), ended_us - taken_us);
        Brief { seq, actor, name: name.clone(), begun_us, took_us, outcome: in_a_word(outcome), why: why(outcome) }
    }

    fn call(&self, call: &Call) -> Brief {
        let Call { seq, actor, begun_us, ended_us, ref outcome, .. } = *call;
        let name = format!("{} {}", call.port, call.method);
        let (begun_us, took_us) = (self.since(begun_us), ended_us - begun_us);
        Brief { seq, actor, name, begun_us, took_us, outcome: in_a_word(outcome), why: why(outcome) }
    }

    fn mark(&self, mark: &Mark) -> Brief {
        let (begun_us, name) = (self.since(mark.at_us), mark.text());
        Brief { seq: mark.seq, actor: mark.actor, name, begun_us, took_us: 0, outcome: "done", why: None }
    }

    fn event(&self, event: &Happening) -> Brief {
        let (begun_us, name) = (self.since(event.at_us), event.what.clone());
        Brief { seq: event.seq, actor: event.actor, name, begun_us, took_us: 0, outcome: "done", why: None }
    }
}

fn in_a_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::AlreadyGone => "already-gone",
        Outcome::Failed(_) => "failed",
        Outcome::Dropped => "dropped",
        Outcome::Open => "open",
    }
}

fn why(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Failed(why) => Some(why.clone()),
        _ => None,
    }
}

fn purpose(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Build => "build",
        Purpose::TakeAway => "take-away",
        Purpose::Undo => "undo",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Explanation>("explain.v1.json");
    }
}
