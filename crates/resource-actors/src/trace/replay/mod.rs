//! Replays a trace: the recorded commands go through the real actors, whose ports answer from the
//! trace, in virtual time. Every output must be the recorded one.
//!
//! Actors share nothing, so an actor's behaviour follows from the order of its messages, from what its
//! ports answered and from the entry numbers that it drew. Its outputs are the messages that it sends,
//! its port calls, its ledger records and its replies. A port call is matched with the recorded call of
//! the same actor, method and request; one to which nothing came back in the trace waits for ever, which
//! in virtual time is until its deadline.

mod answers;
mod compare;
mod report;
mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use futures::future::{BoxFuture, poll_immediate};
use guest_agent::{AgentFactory, GuestAgent};
use hypervisor::{Hypervisor, VmmFactory};
use sandbox_model::config::SandboxConfig;
use sandbox_model::ledger::Entry;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Absent, Interceptor};
use sandbox_model::trace::{Event, Opening, Place};
use sandbox_model::{PortError, SandboxId};
use serde::Deserialize;
use serde_json::{Number, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet};

use self::answers::{Answers, Question, answer_all, from_trace};
use self::compare::Comparison;
pub use self::report::{Divergence, ReplayError, ReplayReport, difference};
use self::store::{Draws, ReplayStore};
use super::ChannelSink;
use super::commands::send;
use crate::handle::SandboxHandle;
use crate::supervisor::Facts;
use crate::system::{Ports, ResourceSystem, SandboxSpec};

/// Replays events that [`read_trace`](super::read_trace) gave, on this thread, in virtual time.
///
/// # Errors
/// [`ReplayError`]: the trace is no trace of this version. A difference is no error but in the
/// report.
pub fn replay(events: &[Event]) -> Result<ReplayReport, ReplayError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(ReplayError::Runtime)?;
    LocalSet::new().block_on(&runtime, Replay::new(events).run(events))
}

/// What `Created` and `Opened` carry.
#[derive(Deserialize)]
struct Begin {
    spec: SandboxSpec,
    state_dir: PathBuf,
    /// The rest is in `Opened` alone.
    #[serde(default)]
    facts: Arc<Facts>,
    #[serde(default)]
    ledger: Vec<Arc<Entry>>,
}

struct Replay<'e> {
    answers: Rc<RefCell<Answers<'e>>>,
    comparison: Comparison<'e>,
    draws: BTreeMap<SandboxId, Draws>,
    sandboxes: BTreeMap<SandboxId, SandboxHandle>,
    running: BTreeMap<u64, JoinHandle<()>>,
    commands: usize,
    /// Commands that waited in the mailbox when their sandbox was interrupted.
    refused: BTreeSet<u64>,
}

/// What the actors of a replay talk to.
struct Stage {
    ask: mpsc::UnboundedSender<Question>,
    sink: Arc<ChannelSink>,
    heard: Receiver<Event>,
}

/// Enough for all that is under way to come to rest, and shorter than any deadline.
const QUIET: Duration = Duration::from_millis(20);

impl<'e> Replay<'e> {
    fn new(events: &'e [Event]) -> Self {
        let mut draws = BTreeMap::<SandboxId, Draws>::new();
        for event in events {
            if let Event::Noted { place, record, refused } = event {
                draws.entry(place.sandbox.clone()).or_default().insert(record, refused.as_ref());
            }
        }
        Self {
            answers: Rc::new(RefCell::new(Answers::new(events))),
            comparison: Comparison::new(events),
            draws,
            sandboxes: BTreeMap::new(),
            running: BTreeMap::new(),
            commands: 0,
            refused: events.iter().filter_map(refused).collect(),
        }
    }

    async fn run(self, events: &[Event]) -> Result<ReplayReport, ReplayError> {
        let (ask, asked) = mpsc::unbounded_channel();
        let (barrier, at) = watch::channel(0);
        let answering = answer_all(asked, self.answers.clone(), at);
        // Answering ends when nobody moves the barrier any more.
        let (report, ()) = futures::future::join(self.drive_all(events, ask, barrier), answering).await;
        report
    }

    async fn drive_all(
        mut self,
        events: &[Event],
        ask: mpsc::UnboundedSender<Question>,
        barrier: watch::Sender<u64>,
    ) -> Result<ReplayReport, ReplayError> {
        let (sink, heard) = ChannelSink::of_outputs();
        let stage = Stage { ask, sink, heard };
        let mut outside: Vec<u64> = events.iter().filter(|event| is_from_outside(event)).filter_map(seq).collect();
        outside.reverse();
        barrier.send_replace(outside.last().copied().unwrap_or(u64::MAX));
        for (n, event) in events.iter().enumerate() {
            self.play(event, &events[n + 1..], &stage).await?;
            if is_from_outside(event) {
                outside.pop();
                barrier.send_replace(outside.last().copied().unwrap_or(u64::MAX));
            }
            self.listen(&stage);
            if self.comparison.divergence.is_some() {
                break;
            }
        }
        // What the trace did not see the end of goes as far as its answers reach.
        tokio::time::sleep(QUIET).await;
        self.listen(&stage);
        let cut = self.running.len();
        if cut == 0 {
            self.comparison.end(&self.answers.borrow());
        }
        Ok(ReplayReport {
            events: events.len(),
            commands: self.commands,
            replies: self.comparison.replies,
            outputs: self.comparison.outputs,
            cut,
            lost: events.iter().map(|event| if let Event::Lost { count } = event { *count } else { 0 }).sum(),
            states: self.sandboxes.iter().map(|(id, handle)| (id.clone(), handle.status().state)).collect(),
            divergence: self.comparison.divergence,
        })
    }

    async fn play(&mut self, event: &Event, later: &[Event], stage: &Stage) -> Result<(), ReplayError> {
        match event {
            Event::Created { place, spec } => self.begin(place, None, spec, stage).await,
            Event::Opened { place, how, spec } => self.begin(place, Some(*how), spec, stage).await,
            Event::Received { place, message, request, .. } if is_from_outside(event) => {
                // One that waited in the mailbox during an interruption has been sent already.
                if self.running.contains_key(&place.seq) { Ok(()) } else { self.drive(place, message, request.clone()) }
            }
            Event::Replied { place, .. } if place.actor == ActorName::Supervisor => {
                if let Some(running) = place.cause.and_then(|seq| self.running.remove(&seq)) {
                    let _ = running.await;
                }
                Ok(())
            }
            Event::Interrupted { place } => {
                // Everything that was answered before has had its effect.
                tokio::time::sleep(QUIET).await;
                self.interrupt(place, later).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Starts a sandbox's actors, their ports answering from the trace.
    async fn begin(
        &mut self,
        place: &Place,
        how: Option<Opening>,
        spec: &Value,
        stage: &Stage,
    ) -> Result<(), ReplayError> {
        let wrong = |what: String| ReplayError::Record { seq: place.seq, what };
        let Begin { spec, state_dir, facts, ledger } =
            Begin::deserialize(spec).map_err(|error| wrong(error.to_string()))?;
        let ask = stage.ask.clone();
        let intercept = move |sandbox: &SandboxId, actor, cause: &_| -> Option<Arc<dyn Interceptor>> {
            Some(from_trace((sandbox.clone(), actor), cause, &ask))
        };
        let draws = self.draws.remove(&place.sandbox).unwrap_or_default();
        let system = ResourceSystem::builder(absent_ports())
            .store(Arc::new(ReplayStore::new(state_dir, draws, ledger)))
            .trace(stage.sink.clone())
            .intercept(Arc::new(intercept))
            .rings(false)
            .here();
        let handle = match how {
            None => system.create_sandbox(spec).await,
            Some(how) => system.reopen(how, spec, facts).await,
        };
        let handle = handle.map_err(|error| wrong(error.to_string()))?;
        self.sandboxes.insert(place.sandbox.clone(), handle);
        Ok(())
    }

    /// Interrupts a sandbox. What waited in its mailbox then is refused, so it is sent just before.
    async fn interrupt(&mut self, interrupted: &Place, later: &[Event]) -> Result<(), ReplayError> {
        let mut waiting = Vec::new();
        for event in later.iter().filter(|event| is_from_outside(event)) {
            if let Event::Received { place, message, request, queue_us } = event
                && place.sandbox == interrupted.sandbox
                && place.at_us.saturating_sub(*queue_us) <= interrupted.at_us
                && self.refused.contains(&place.seq)
                && !self.running.contains_key(&place.seq)
            {
                let mut reply = self.reply_to(place, message, request.clone())?;
                // Polled once, it is in the mailbox.
                let _ = poll_immediate(&mut reply).await;
                waiting.push((place.seq, reply));
            }
        }
        if let Some(handle) = self.sandboxes.get(&interrupted.sandbox) {
            handle.supervisor.interrupt();
        }
        waiting.into_iter().for_each(|(seq, reply)| self.run_command(seq, reply));
        Ok(())
    }

    fn reply_to(&self, place: &Place, message: &str, request: Value) -> Result<BoxFuture<'static, Value>, ReplayError> {
        let wrong = |what: String| ReplayError::Record { seq: place.seq, what };
        let Some(handle) = self.sandboxes.get(&place.sandbox) else {
            return Err(wrong("the command of a sandbox whose beginning the trace does not have".to_owned()));
        };
        send(handle, message, request).map_err(wrong)
    }

    fn run_command(&mut self, seq: u64, reply: BoxFuture<'static, Value>) {
        let running = tokio::task::spawn_local(async move {
            // It is heard through the trace sink, as all other outputs are.
            let _ = reply.await;
        });
        self.commands += 1;
        self.running.insert(seq, running);
    }

    /// Sends a command; its reply is compared when the trace has it.
    fn drive(&mut self, place: &Place, message: &str, request: Value) -> Result<(), ReplayError> {
        let reply = self.reply_to(place, message, request)?;
        self.run_command(place.seq, reply);
        Ok(())
    }

    fn listen(&mut self, stage: &Stage) {
        while let Ok(replayed) = stage.heard.try_recv() {
            self.comparison.take(&replayed);
        }
        let unknown = self.answers.borrow_mut().take_unknown();
        for call in unknown {
            self.comparison.take_unknown(&call, &self.answers.borrow());
        }
    }
}

fn seq(event: &Event) -> Option<u64> {
    event.place().map(|place| place.seq)
}

/// The command that an event refuses because of an interruption.
fn refused(event: &Event) -> Option<u64> {
    match event {
        Event::Replied { place, reply, .. } if reply.pointer("/Err/interrupted").is_some() => place.cause,
        _ => None,
    }
}

/// Whether an event is something that was done to a sandbox: a command, the end of its VM, an
/// interruption.
fn is_from_outside(event: &Event) -> bool {
    match event {
        Event::Received { place, .. } => place.actor == ActorName::Supervisor && place.cause.is_none(),
        Event::Created { .. } | Event::Opened { .. } | Event::Interrupted { .. } => true,
        _ => false,
    }
}

/// Fields that follow from the clock: another run of the same lifecycle may have others.
const INCIDENTAL: [&str; 1] = ["waited_ms"];

/// Whether two requests or replies are the same but for what is incidental.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|((name, one), (same_name, other))| {
                    name == same_name && (INCIDENTAL.contains(&name.as_str()) || same(one, other))
                })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Number(one), Value::Number(other)) => one == other || are_one_single(one, other),
        (one, other) => one == other,
    }
}

/// Whether two fractions are the same number of single precision: a line has the digits that such a
/// number needs, a tree those of its double.
fn are_one_single(one: &Number, other: &Number) -> bool {
    #[expect(clippy::cast_possible_truncation, reason = "that is what is asked")]
    let single = |number: &Number| number.as_f64().filter(|_| number.is_f64()).map(|number| number as f32);
    single(one).is_some_and(|one| single(other) == Some(one))
}

/// Ports that nobody calls through.
fn absent_ports() -> Ports {
    let absent = Arc::new(Absent);
    Ports {
        vmm: Arc::new(AbsentFactory),
        agent: Arc::new(AbsentFactory),
        network: absent.clone(),
        share: absent.clone(),
        cgroup: absent.clone(),
        device: absent,
    }
}

#[derive(Debug)]
struct AbsentFactory;

impl VmmFactory for AbsentFactory {
    fn create(&self, _: &SandboxId, _: &std::path::Path, _: &SandboxConfig) -> Result<Arc<dyn Hypervisor>, PortError> {
        Ok(Arc::new(Absent))
    }

    fn name(&self) -> &'static str {
        "replayed"
    }
}

impl AgentFactory for AbsentFactory {
    fn create(&self, _: &SandboxId) -> Result<Arc<dyn GuestAgent>, PortError> {
        Ok(Arc::new(Absent))
    }
}
