//! A trace sink that shows steps as they end, and passes everything on to a trace file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use resource_actors::trace::LineSink;
use sandbox_model::ledger::{EntryId, HostObject, Record};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Event, Told, TraceSink};
use serde_json::Value;
use tokio::time::Instant;

use super::progress::{Progress, in_words};

/// Messages that tell an actor something and do nothing that a reader would wait for.
const TOLD: [&str; 3] = ["BaseIs", "DaemonEnded", "VmExited"];

/// Stands before the link of a redirect.
const REDIRECT: &str = "tc:";

/// What lines are made of.
enum Line {
    /// A record of the ledger, and the message by which it came about.
    Noted { cause: Option<u64>, record: Record },
    /// A message has been answered.
    Step { cause: Option<u64>, actor: ActorName, message: String, took: Duration, problem: Option<String> },
}

/// Shows steps and passes events on. It never blocks: a thread of its own does the printing.
#[derive(Debug)]
pub(crate) struct Steps {
    file: Option<Arc<LineSink>>,
    lines: Option<Sender<Option<Line>>>,
    seq: AtomicU64,
    begun: Instant,
}

impl Steps {
    /// Starts the printing, which goes on until [`finish`](Self::finish).
    ///
    /// # Errors
    /// The thread cannot be made.
    pub(crate) fn start(
        progress: Progress,
        file: Option<Arc<LineSink>>,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let (sender, told) = channel::<Option<Line>>();
        let printer = std::thread::Builder::new().name("progress".into()).spawn(move || {
            let mut objects = Objects::default();
            // `None` is the end. The sink itself may live on in an actor that does not end.
            for told in told.iter().map_while(|told| told) {
                match told {
                    Line::Noted { cause, record } => objects.take(cause, record),
                    Line::Step { cause, actor, message, took, problem } => {
                        let objects = objects.of(cause);
                        progress.step(actor.as_str(), &in_words(&message), took, &objects, problem.as_deref());
                    }
                }
            }
        })?;
        let lines = progress.shows_steps().then_some(sender);
        let sink = Self { file, lines, seq: AtomicU64::new(0), begun: Instant::now() };
        Ok((Arc::new(sink), printer))
    }

    /// Ends the printing when all that has come is printed.
    pub(crate) fn finish(&self) {
        if let Some(lines) = &self.lines {
            drop(lines.send(None));
        }
    }
}

impl TraceSink for Steps {
    fn next_seq(&self) -> u64 {
        match &self.file {
            Some(file) => file.next_seq(),
            None => self.seq.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    fn now_us(&self) -> u64 {
        match &self.file {
            Some(file) => file.now_us(),
            None => u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn is_recording(&self) -> bool {
        self.file.is_some() || self.lines.is_some()
    }

    fn hears_calls(&self) -> bool {
        self.file.is_some()
    }

    fn record(&self, event: Told<'_>) {
        if let Some(lines) = &self.lines
            && let Some(told) = tell(&event)
        {
            // The printer ends only after us.
            drop(lines.send(Some(told)));
        }
        if let Some(file) = &self.file {
            file.record(event);
        }
    }
}

/// What of an event is told.
fn tell(event: &Told<'_>) -> Option<Line> {
    match event {
        Event::Noted { place, record, refused: None } => {
            Some(Line::Noted { cause: place.cause, record: record.clone() })
        }
        Event::Replied { place, message, reply, service_us } if !TOLD.contains(message) => Some(Line::Step {
            cause: place.cause,
            actor: place.actor,
            message: (*message).to_owned(),
            took: Duration::from_micros(*service_us),
            problem: problem(&reply.to_value()),
        }),
        _ => None,
    }
}

/// The objects that messages have made or taken away.
#[derive(Debug, Default)]
struct Objects {
    names: BTreeMap<EntryId, String>,
    of_messages: BTreeMap<u64, Vec<String>>,
}

impl Objects {
    fn take(&mut self, cause: Option<u64>, record: Record) {
        let (entry, sign) = match record {
            Record::Intent { entry, object, .. } => {
                self.names.extend(name(&object).map(|name| (entry, name)));
                return;
            }
            Record::Done { entry, .. } => (entry, ""),
            Record::Undone { entry } => (entry, "-"),
            _ => return,
        };
        let name = if sign.is_empty() { self.names.get(&entry).cloned() } else { self.names.remove(&entry) };
        if let (Some(cause), Some(name)) = (cause, name) {
            self.of_messages.entry(cause).or_default().push(format!("{sign}{name}"));
        }
    }

    /// What a message has made or taken away.
    fn of(&mut self, message: Option<u64>) -> Vec<String> {
        let names = message.and_then(|message| self.of_messages.remove(&message)).unwrap_or_default();
        joined(names)
    }
}

/// The name by which people know an object; what only serves others has none.
fn name(object: &HostObject) -> Option<String> {
    let last = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Some(match object {
        HostObject::Mount { target, .. } => format!("mount {}", last(target)),
        HostObject::NetNamespace { path } => last(path),
        HostObject::Tap { name, .. } => name.clone(),
        HostObject::IngressQdisc { link, .. } => format!("{REDIRECT}{link}"),
        HostObject::Process { program } => program.clone(),
        HostObject::Cgroup { paths } => {
            let path = paths.last()?;
            format!("cgroup {}", path.parent().map(last).unwrap_or_default())
        }
        HostObject::VmDevice { device, .. } => device.to_string(),
        HostObject::VfioBinding { bdf, .. } => bdf.clone(),
        HostObject::Directory { .. }
        | HostObject::File { .. }
        | HostObject::Hold { .. }
        | HostObject::ResourceShare { .. } => return None,
    })
}

/// A tap is made for the link whose redirect comes next, so the two are one thing to people:
/// `tap0_kata`, `tc:veth0` become `veth0⇄tap0_kata`.
fn joined(names: Vec<String>) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    for name in names {
        let pair = name.strip_prefix(REDIRECT).and_then(|link| {
            let tap = joined.pop_if(|before| before.starts_with("tap"))?;
            Some(format!("{link}⇄{tap}"))
        });
        joined.push(pair.unwrap_or(name));
    }
    joined
}

/// A reply is a `Result` within another: whether the actor served, and what came of it. The details of
/// a failure come with the error at the end, so here the kind does.
fn problem(reply: &Value) -> Option<String> {
    let error = reply.get("Err").or_else(|| reply.get("Ok")?.get("Err"))?;
    let kind = match error {
        Value::String(text) => text.clone(),
        Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    Some(format!("failed: {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn links_that_are_joined_are_named_together() {
        let made = names(&["netns", "tap0_kata", "tc:veth0", "tap1_kata", "tc:veth1"]);
        assert_eq!(joined(made), ["netns", "veth0⇄tap0_kata", "veth1⇄tap1_kata"]);
        assert_eq!(joined(names(&["tc:veth0"])), ["tc:veth0"], "half a pair stays what it is");
        let undone = names(&["-tc:veth0", "-tap0_kata"]);
        assert_eq!(joined(undone.clone()), undone);
    }

    #[test]
    fn objects_belong_to_the_message_that_made_them() {
        let mut objects = Objects::default();
        let entry = EntryId(1);
        let object = HostObject::Process { program: "virtiofsd".into() };
        let (actor, scope) = (ActorName::ShareFs, sandbox_model::ledger::Scope::Sandbox);
        objects.take(Some(5), Record::Intent { entry, actor, scope, object });
        assert_eq!(objects.of(Some(5)), names(&[]), "what is only planned is not there");
        objects.take(Some(5), Record::Done { entry, identity: sandbox_model::ledger::Identity::Named });
        objects.take(Some(9), Record::Undone { entry });
        assert_eq!((objects.of(Some(5)), objects.of(Some(9))), (names(&["virtiofsd"]), names(&["-virtiofsd"])));
    }

    #[test]
    fn only_an_error_is_a_problem() {
        assert_eq!(problem(&json!({"Ok": {"Ok": null}})), None);
        assert_eq!(problem(&json!({"Ok": {"Err": {"wrong-state": {}}}})).as_deref(), Some("failed: wrong-state"));
        assert_eq!(problem(&json!({"Err": "gone"})).as_deref(), Some("failed: gone"));
    }
}
