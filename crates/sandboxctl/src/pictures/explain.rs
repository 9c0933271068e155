//! One record in words: why it came to be, what it waited for, what it made, how it ended.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::output::table::columns;
use crate::story::{Call, Found, Life, Message, Outcome, Purpose, Story, time};

/// Effects that are listed; the rest is counted.
const LISTED_MAX: usize = 40;

/// A record that is to be explained, with all that belongs to it.
pub(crate) struct Explained<'a> {
    life: &'a Life,
    seq: u64,
    found: Found<'a>,
    /// The messages that led to it, the command from outside first.
    because: Vec<&'a Message>,
    /// The messages that its actor served while it waited, and how long of that time each took.
    behind: Vec<(&'a Message, u64)>,
    calls: Vec<&'a Call>,
    asked: Vec<&'a Message>,
}

impl<'a> Explained<'a> {
    /// Finds record `seq`; `None` if the trace has no such message, call or interruption.
    pub(crate) fn find(story: &'a Story, seq: u64) -> Option<Self> {
        let (life, found) = story.lives.iter().find_map(|life| Some((life, life.find(seq)?)))?;
        let by_seq = life.by_seq();
        let mut because = Vec::new();
        let mut cause = match found {
            Found::Message(message) => message.cause,
            Found::Call(call) => call.cause,
            Found::Interruption(_) => None,
        };
        while let Some(message) = cause.and_then(|cause| by_seq.get(&cause)) {
            because.insert(0, *message);
            // A record is caused by an earlier one: this ends.
            cause = message.cause.filter(|cause| *cause < message.seq);
        }
        let (mut behind, mut calls, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        if let Found::Message(message) = found {
            behind = served_meanwhile(life, message);
            calls = life.calls.iter().filter(|call| call.cause == Some(message.seq)).collect();
            asked = life.messages.iter().filter(|other| other.cause == Some(message.seq)).collect();
        }
        Some(Self { life, seq, found, because, behind, calls, asked })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let life = self.life;
        let since = |us: u64| time(us.saturating_sub(life.begun_us));
        match self.found {
            Found::Message(message) => {
                let Message { name, actor, taken_us, ended_us, .. } = message;
                let _ = writeln!(text, "#{}  {name} to the {actor} actor of sandbox {}", message.seq, life.sandbox);
                let _ = writeln!(
                    text,
                    "      begun {} into the sandbox's life, {}",
                    since(*taken_us),
                    ended(&message.outcome, ended_us - taken_us)
                );
            }
            Found::Call(call) => {
                let Call { port, method, begun_us, ended_us, .. } = call;
                let _ = writeln!(
                    text,
                    "#{}  {method} through {port}, by the {} actor of sandbox {}",
                    call.seq, call.actor, life.sandbox
                );
                let _ = writeln!(
                    text,
                    "      begun {} into the sandbox's life, {}",
                    since(*begun_us),
                    ended(&call.outcome, ended_us - begun_us)
                );
                if let Some(mark) = &call.mark {
                    let _ = writeln!(text, "      {} {}", mark.sign(), mark.object());
                }
            }
            Found::Interruption(at) => {
                let _ =
                    writeln!(text, "#{}  somebody interrupted the supervisor of sandbox {}", self.seq, life.sandbox);
                let _ = writeln!(text, "      {} into the sandbox's life", since(at));
            }
        }
        let section = |text: &mut String, title: &str, rows: Vec<Vec<String>>| {
            if !rows.is_empty() {
                let _ = write!(text, "\n{title}\n{}", columns(&rows));
            }
        };
        let row = |message: &&Message| {
            let cells = [
                format!("  #{}", message.seq),
                message.actor.to_string(),
                message.name.clone(),
                since(message.taken_us),
            ];
            cells.to_vec()
        };
        section(&mut text, self.because_title(), self.because.iter().map(row).collect());
        text += &self.waiting();
        section(&mut text, "Calls through ports", capped(&self.calls, |call| call_row(call, self.begun_us())));
        section(&mut text, "Asked of other actors", capped(&self.asked, |message| self.asked_row(message)));
        text += &self.made();
        text
    }

    fn because_title(&self) -> &'static str {
        if self.because.is_empty() { "" } else { "Because of" }
    }

    /// When it was begun, for times relative to it.
    fn begun_us(&self) -> u64 {
        match self.found {
            Found::Message(message) => message.taken_us,
            Found::Call(call) => call.begun_us,
            Found::Interruption(at) => at,
        }
    }

    fn waiting(&self) -> String {
        let Found::Message(message) = self.found else { return String::new() };
        let waited_us = message.taken_us - message.sent_us;
        let origin = if message.cause.is_none() { "\nA command from outside\n" } else { "" };
        let waited = format!("{origin}\nIn the mailbox: {}", time(waited_us));
        if self.behind.is_empty() {
            return format!("{waited}, behind nothing\n");
        }
        let row = |(other, share): &(&Message, u64)| {
            let outcome = ended(&other.outcome, other.ended_us - other.taken_us);
            vec![format!("  #{}", other.seq), other.name.clone(), time(*share), outcome]
        };
        format!("{waited}, behind\n{}", columns(&self.behind.iter().map(row).collect::<Vec<_>>()))
    }

    fn asked_row(&self, message: &Message) -> Vec<String> {
        let begun = format!("+{}", time(message.taken_us.saturating_sub(self.begun_us())));
        let outcome = ended(&message.outcome, message.ended_us - message.taken_us);
        vec![format!("  #{}", message.seq), begun, message.actor.to_string(), message.name.clone(), outcome]
    }

    /// Objects, its own and those of the messages that it caused.
    fn made(&self) -> String {
        let Found::Message(message) = self.found else { return String::new() };
        let mut lines = String::new();
        for call in self.life.calls.iter().filter(|call| self.follows_from(call.cause, message.seq)) {
            if let Some(mark) = &call.mark {
                let _ = writeln!(lines, "  {} {}  (#{})", mark.sign(), mark.object(), call.seq);
            }
        }
        if lines.is_empty() { lines } else { format!("\nObjects\n{lines}") }
    }

    /// Whether `cause` is `seq`, or follows from it.
    fn follows_from(&self, cause: Option<u64>, seq: u64) -> bool {
        let mut cause = cause;
        while let Some(at) = cause {
            if at == seq {
                return true;
            }
            // A record is caused by an earlier one: this ends.
            let message = self.life.messages.binary_search_by_key(&at, |message| message.seq);
            cause = message.ok().and_then(|index| self.life.messages[index].cause).filter(|next| *next < at);
        }
        false
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let brief = |message: &Message| {
            json!({
                "seq": message.seq, "actor": message.actor, "message": message.name,
                "begun_us": message.taken_us, "took_us": message.ended_us - message.taken_us,
                "outcome": outcome(&message.outcome), "why": why(&message.outcome),
            })
        };
        let call = |call: &Call| {
            json!({
                "seq": call.seq, "actor": call.actor, "port": call.port, "method": call.method,
                "begun_us": call.begun_us, "took_us": call.ended_us - call.begun_us,
                "outcome": outcome(&call.outcome), "why": why(&call.outcome),
                "made": call.mark.as_ref().map(|mark| json!({"sign": mark.sign(), "object": mark.object()})),
            })
        };
        let mut document = json!({
            "v": 1, "seq": self.seq, "sandbox": self.life.sandbox,
            "because": self.because.iter().map(|message| brief(message)).collect::<Vec<_>>(),
            "calls": self.calls.iter().map(|one| call(one)).collect::<Vec<_>>(),
            "asked": self.asked.iter().map(|message| brief(message)).collect::<Vec<_>>(),
        });
        match self.found {
            Found::Message(message) => {
                document["kind"] = json!("message");
                document["record"] = brief(message);
                document["purpose"] = json!(purpose(message.purpose));
                document["queue_us"] = json!(message.taken_us - message.sent_us);
                let behind = self
                    .behind
                    .iter()
                    .map(|(other, share)| json!({"seq": other.seq, "message": other.name, "took_us": share}));
                document["behind"] = behind.collect();
                document["request"] = message.request.clone();
                document["reply"] = message.reply.clone().unwrap_or_default();
            }
            Found::Call(of) => {
                document["kind"] = json!("call");
                document["record"] = call(of);
                document["purpose"] = json!(purpose(of.purpose));
                document["request"] = of.request.clone();
                document["reply"] = json!(of.result);
            }
            Found::Interruption(at) => {
                document["kind"] = json!("interruption");
                document["record"] = json!({"seq": self.seq, "begun_us": at});
            }
        }
        document
    }
}

/// The messages of the same actor that were served between sending and taking `message`.
fn served_meanwhile<'a>(life: &'a Life, message: &Message) -> Vec<(&'a Message, u64)> {
    let others = life.messages.iter().filter(|other| other.actor == message.actor && other.seq != message.seq);
    let share = |other: &Message| {
        let (from, to) = (other.taken_us.max(message.sent_us), other.ended_us.min(message.taken_us));
        to.saturating_sub(from)
    };
    others.map(|other| (other, share(other))).filter(|(_, share)| *share > 0).collect()
}

fn capped<T>(list: &[T], row: impl Fn(&T) -> Vec<String>) -> Vec<Vec<String>> {
    let mut rows: Vec<_> = list.iter().take(LISTED_MAX).map(row).collect();
    if list.len() > LISTED_MAX {
        rows.push(vec![format!("  … and {} more", list.len() - LISTED_MAX)]);
    }
    rows
}

fn call_row(call: &Call, since_us: u64) -> Vec<String> {
    let begun = format!("+{}", time(call.begun_us.saturating_sub(since_us)));
    let name = format!("{} {}", call.port, call.method);
    vec![format!("  #{}", call.seq), begun, name, ended(&call.outcome, call.ended_us - call.begun_us)]
}

fn ended(outcome: &Outcome, took_us: u64) -> String {
    match outcome {
        Outcome::Done => format!("done after {}", time(took_us)),
        Outcome::AlreadyGone => format!("found nothing to undo after {}", time(took_us)),
        Outcome::Failed(why) => format!("failed after {}: {why}", time(took_us)),
        Outcome::Open => format!("not answered in the {} until the trace ends", time(took_us)),
    }
}

fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::AlreadyGone => "already-gone",
        Outcome::Failed(_) => "failed",
        Outcome::Open => "open",
    }
}

fn why(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Failed(why) => Some(why),
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
