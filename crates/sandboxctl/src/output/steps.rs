//! A trace sink that shows steps as they end, and passes everything on to a trace file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use resource_actors::trace::ChannelSink;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Event, TraceSink};
use serde_json::Value;
use tokio::time::Instant;

use super::progress::{Progress, in_words};

/// Messages that tell an actor something and do nothing that a reader would wait for.
const TOLD: [&str; 2] = ["BaseIs", "VmExited"];

/// What a line is made of.
struct Step {
    actor: ActorName,
    message: String,
    took: Duration,
    problem: Option<String>,
}

/// Shows steps and passes events on. It never blocks: a thread of its own does the printing.
#[derive(Debug)]
pub(crate) struct Steps {
    file: Option<Arc<ChannelSink>>,
    lines: Option<Sender<Option<Step>>>,
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
        file: Option<Arc<ChannelSink>>,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let (sender, steps) = channel::<Option<Step>>();
        let printer = std::thread::Builder::new().name("progress".into()).spawn(move || {
            // `None` is the end. The sink itself may live on in an actor that does not end.
            for step in steps.iter().map_while(|step| step) {
                progress.step(step.actor.as_str(), &in_words(&step.message), step.took, step.problem.as_deref());
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

    fn record(&self, event: Event) {
        if let (Some(lines), Event::Replied { place, message, reply, service_us }) = (&self.lines, &event)
            && !TOLD.contains(&message.as_str())
        {
            let took = Duration::from_micros(*service_us);
            let step = Step { actor: place.actor, message: message.clone(), took, problem: problem(reply) };
            // The printer ends only after us.
            drop(lines.send(Some(step)));
        }
        if let Some(file) = &self.file {
            file.record(event);
        }
    }
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

    #[test]
    fn only_an_error_is_a_problem() {
        assert_eq!(problem(&json!({"Ok": {"Ok": null}})), None);
        assert_eq!(problem(&json!({"Ok": {"Err": {"wrong-state": {}}}})).as_deref(), Some("failed: wrong-state"));
        assert_eq!(problem(&json!({"Err": "gone"})).as_deref(), Some("failed: gone"));
    }
}
