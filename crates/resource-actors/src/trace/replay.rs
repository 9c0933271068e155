//! Replays a trace: the recorded commands go through the real actors, whose ports answer from the
//! trace, in virtual time. Every reply must be the recorded one.
//!
//! Actors share nothing, so an actor's behaviour follows from the order of its messages and from
//! what its ports answered. A port call is matched with the recorded call of the same actor, method
//! and request; one that the trace does not know, or that was never answered, waits for ever, which
//! in virtual time is until its deadline.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Ask, Request, Serve};
use futures::future::BoxFuture;
use guest_agent::{AgentFactory, GuestAgent};
use hypervisor::{Hypervisor, VmmFactory};
use sandbox_model::config::SandboxConfig;
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::port::{Absent, Interceptor, PortCall};
use sandbox_model::trace::{Ended, Event};
use sandbox_model::{Instant, PortError, PortResult, SandboxId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};

use super::ChannelSink;
use crate::handle::SandboxHandle;
use crate::ledger::MemoryStore;
use crate::supervisor::{
    Cleanup, PrepareBeforeStartVm, ReleaseContainer, Save, SetUpDevices, SetUpNetwork, SetUpRootfs, SetUpVolumes,
    SetupAfterStartVm, StartVm, Stop, StoragesForSandbox, Supervisor, UpdateLinuxResources, VmExited,
};
use crate::system::{Ports, ResourceSystem, SandboxSpec};

/// What a replay found.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayReport {
    /// Events of the trace.
    pub events: usize,
    /// Commands that were driven again.
    pub commands: usize,
    /// Replies that were compared, of all actors.
    pub replies: usize,
    /// Commands that the trace ends before.
    pub cut: usize,
    /// Where each sandbox stood at the end.
    pub states: BTreeMap<SandboxId, LifecycleState>,
    /// The first difference, if there is one.
    pub divergence: Option<Divergence>,
}

/// The first difference between a trace and its replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Which record of the trace.
    pub seq: u64,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Which actor.
    pub actor: ActorName,
    /// Which message.
    pub message: String,
    /// What the trace says.
    pub recorded: Value,
    /// What happened now.
    pub replayed: Value,
    /// Port calls of this actor that the trace does not know.
    pub unknown_calls: Vec<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "record {}: sandbox {}, {} actor, {}", self.seq, self.sandbox, self.actor, self.message)?;
        writeln!(f, "  recorded: {}", self.recorded)?;
        write!(f, "  replayed: {}", self.replayed)?;
        for call in &self.unknown_calls {
            write!(f, "\n  a call that the trace does not know: {call}")?;
        }
        Ok(())
    }
}

/// Why a trace cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A record does not fit the messages of this version.
    #[error("record {seq}: {what}")]
    Record {
        /// Which.
        seq: u64,
        /// What is wrong.
        what: String,
    },
    /// The replay's own runtime could not be made.
    #[error("cannot make the replay's runtime")]
    Runtime(#[source] std::io::Error),
}

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

/// The recorded answers of one actor's ports, in order.
#[derive(Debug, Default)]
struct Answers {
    calls: VecDeque<Recorded>,
    unknown: Vec<String>,
}

#[derive(Debug)]
struct Recorded {
    seq: u64,
    port: String,
    method: String,
    request: Value,
    result: PortResult<Value>,
}

impl Answers {
    fn take(&mut self, call: &PortCall) -> Option<Recorded> {
        let request = comparable(&call.request);
        let fits = |recorded: &Recorded| {
            recorded.port == call.port && recorded.method == call.method && recorded.request == request
        };
        match self.calls.iter().position(fits) {
            Some(index) => self.calls.remove(index),
            None => {
                self.unknown.push(format!("{}.{} {}", call.port, call.method, call.request));
                None
            }
        }
    }
}

/// A question to the trace, from an interceptor, which must be `Send`, to the replay, which is not.
struct Question {
    key: Key,
    call: PortCall,
    answer: oneshot::Sender<PortResult<Value>>,
}

type Key = (SandboxId, ActorName);

/// Answers one actor's port calls from the trace.
#[derive(Debug)]
struct FromTrace {
    key: Key,
    ask: mpsc::UnboundedSender<Question>,
}

impl Interceptor for FromTrace {
    fn around<'a>(
        &'a self,
        call: PortCall,
        _: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let asked = self.ask.send(Question { key: self.key.clone(), call, answer });
            match (asked, answered.await) {
                (Ok(()), Ok(result)) => result,
                // Never answered in the trace: whoever waits is ended by its deadline.
                _ => std::future::pending().await,
            }
        })
    }
}

struct Replay {
    answers: Rc<RefCell<BTreeMap<Key, Answers>>>,
    replies: BTreeMap<Key, VecDeque<(u64, String, Value)>>,
    sandboxes: BTreeMap<SandboxId, SandboxHandle>,
    running: BTreeMap<u64, JoinHandle<()>>,
    report: ReplayReport,
}

/// What `Event::Created` carries.
#[derive(Deserialize)]
struct CreatedSpec {
    spec: SandboxSpec,
    state_dir: PathBuf,
}

impl Replay {
    fn new(events: &[Event]) -> Self {
        let (mut answers, mut replies) = (BTreeMap::<Key, Answers>::new(), BTreeMap::<Key, VecDeque<_>>::new());
        for event in events {
            match event {
                Event::Called { place, port, method, request, result, .. } => {
                    let (port, method) = (port.clone(), method.clone());
                    let Some(result) = answered(result) else { continue };
                    let request = comparable(request);
                    let recorded = Recorded { seq: place.seq, port, method, request, result };
                    answers.entry((place.sandbox.clone(), place.actor)).or_default().calls.push_back(recorded);
                }
                Event::Replied { place, message, reply, .. } => {
                    let key = (place.sandbox.clone(), place.actor);
                    replies.entry(key).or_default().push_back((place.seq, message.clone(), reply.clone()));
                }
                _ => {}
            }
        }
        let report = ReplayReport {
            events: events.len(),
            commands: 0,
            replies: 0,
            cut: 0,
            states: BTreeMap::new(),
            divergence: None,
        };
        let answers = Rc::new(RefCell::new(answers));
        Self { answers, replies, sandboxes: BTreeMap::new(), running: BTreeMap::new(), report }
    }

    async fn run(mut self, events: &[Event]) -> Result<ReplayReport, ReplayError> {
        let (ask, asked) = mpsc::unbounded_channel();
        let (cursor, at) = watch::channel(0);
        let answering = tokio::task::spawn_local(answer_all(asked, self.answers.clone(), at));
        let (sink, heard) = ChannelSink::new();
        for event in events {
            cursor.send_replace(event.place().map_or(0, |place| place.seq));
            match event {
                Event::Created { place, spec } => {
                    let handle = self.create(place.seq, spec, &ask, &sink).await?;
                    self.sandboxes.insert(place.sandbox.clone(), handle);
                }
                Event::Received { place, message, request, .. }
                    if place.actor == ActorName::Supervisor && place.cause.is_none() =>
                {
                    self.drive(place.seq, &place.sandbox, message, request.clone())?;
                }
                Event::Replied { place, .. } if place.actor == ActorName::Supervisor => {
                    if let Some(running) = place.cause.and_then(|seq| self.running.remove(&seq)) {
                        let _ = running.await;
                    }
                }
                Event::Interrupted { place } => {
                    // Everything that was answered before has had its effect.
                    tokio::time::sleep(Duration::from_micros(1)).await;
                    if let Some(handle) = self.sandboxes.get(&place.sandbox) {
                        handle.supervisor.interrupt();
                    }
                }
                _ => {}
            }
            while let Ok(replayed) = heard.try_recv() {
                self.compare(&replayed);
            }
            if self.report.divergence.is_some() {
                break;
            }
        }
        // What the trace did not see the end of goes as far as its answers reach.
        tokio::time::sleep(Duration::from_micros(1)).await;
        while let Ok(replayed) = heard.try_recv() {
            self.compare(&replayed);
        }
        self.report.cut = self.running.len();
        self.report.states = self.sandboxes.iter().map(|(id, handle)| (id.clone(), handle.status().state)).collect();
        answering.abort();
        Ok(self.report)
    }

    /// Starts a sandbox's actors, their ports answering from the trace.
    async fn create(
        &self,
        seq: u64,
        spec: &Value,
        ask: &mpsc::UnboundedSender<Question>,
        sink: &Arc<ChannelSink>,
    ) -> Result<SandboxHandle, ReplayError> {
        let CreatedSpec { spec, state_dir } = parse(seq, spec.clone())?;
        let ask = ask.clone();
        let from_trace = move |sandbox: &SandboxId, actor, _: &_| {
            let interceptor = FromTrace { key: (sandbox.clone(), actor), ask: ask.clone() };
            Some(Arc::new(interceptor) as Arc<dyn Interceptor>)
        };
        let system = ResourceSystem::builder(absent_ports())
            .store(Arc::new(MemoryStore::new(state_dir)))
            .trace(sink.clone())
            .intercept(Arc::new(from_trace))
            .rings(false)
            .here();
        let failed = |error: crate::SandboxError| ReplayError::Record { seq, what: error.to_string() };
        system.create_sandbox(spec).await.map_err(failed)
    }

    /// Sends a command; its reply is compared when the trace has it.
    fn drive(&mut self, seq: u64, sandbox: &SandboxId, message: &str, request: Value) -> Result<(), ReplayError> {
        let what = "the command of a sandbox whose creation the trace does not have".to_owned();
        let handle = self.sandboxes.get(sandbox).cloned().ok_or(ReplayError::Record { seq, what })?;
        macro_rules! dispatch {
            ($($request:ident)*) => {
                match message {
                    $(stringify!($request) => send::<$request>(seq, handle, request)?,)*
                    _ => return Err(ReplayError::Record { seq, what: format!("unknown message {message}") }),
                }
            };
        }
        let running = dispatch!(
            PrepareBeforeStartVm StartVm SetupAfterStartVm SetUpNetwork StoragesForSandbox SetUpRootfs SetUpVolumes
            SetUpDevices UpdateLinuxResources ReleaseContainer Stop Cleanup Save VmExited
        );
        self.report.commands += 1;
        self.running.insert(seq, running);
        Ok(())
    }

    fn compare(&mut self, replayed: &Event) {
        let Event::Replied { place, message, reply, .. } = replayed else { return };
        if self.report.divergence.is_some() {
            return;
        }
        let key = (place.sandbox.clone(), place.actor);
        let Some((seq, expected, recorded)) = self.replies.get_mut(&key).and_then(VecDeque::pop_front) else {
            // The trace was cut before this reply.
            return;
        };
        self.report.replies += 1;
        if expected == *message && comparable(&recorded) == comparable(reply) {
            return;
        }
        let unknown_calls = self.answers.borrow().get(&key).map(|answers| answers.unknown.clone()).unwrap_or_default();
        self.report.divergence = Some(Divergence {
            seq,
            sandbox: place.sandbox.clone(),
            actor: place.actor,
            message: message.clone(),
            recorded,
            replayed: reply.clone(),
            unknown_calls,
        });
    }
}

fn answered(result: &Ended) -> Option<PortResult<Value>> {
    match result {
        Ended::Ok(reply) => Some(Ok(reply.clone())),
        Ended::Err(error) => Some(Err(error.clone())),
        Ended::Dropped | Ended::Panicked => None,
    }
}

/// The one call that waits for an event instead of an effect: its answer is due when the trace has
/// come to it, and not before.
const WAITS_FOR_EVENT: &str = "wait_exit";

async fn answer_all(
    mut asked: mpsc::UnboundedReceiver<Question>,
    answers: Rc<RefCell<BTreeMap<Key, Answers>>>,
    mut cursor: watch::Receiver<u64>,
) {
    // Questions that the trace does not answer are kept, so that their askers wait.
    let (mut unanswered, mut early) = (Vec::new(), Vec::<(SandboxId, Recorded, _)>::new());
    loop {
        let question = tokio::select! {
            biased;
            question = asked.recv() => question,
            moved = cursor.changed() => match moved {
                Ok(()) => None,
                Err(_) => return,
            },
        };
        if let Some(Question { key, call, answer }) = question {
            let found = answers.borrow_mut().entry(key.clone()).or_default().take(&call);
            match found {
                Some(recorded) if recorded.method == WAITS_FOR_EVENT => early.push((key.0, recorded, answer)),
                Some(recorded) => {
                    let _ = answer.send(recorded.result);
                }
                None => unanswered.push(answer),
            }
        }
        let now = *cursor.borrow();
        let is_due = |sandbox: &SandboxId, seq: u64| {
            let answers = answers.borrow();
            let mut of_sandbox = answers.iter().filter(|((of, _), _)| of == sandbox);
            now > seq && of_sandbox.all(|(_, rest)| rest.calls.iter().all(|call| call.seq > seq))
        };
        let (due, rest): (Vec<_>, Vec<_>) =
            early.into_iter().partition(|(sandbox, recorded, _)| is_due(sandbox, recorded.seq));
        early = rest;
        for (_, recorded, answer) in due {
            let _: Result<_, _> = answer.send(recorded.result);
        }
    }
}

fn send<R>(seq: u64, handle: SandboxHandle, request: Value) -> Result<JoinHandle<()>, ReplayError>
where
    R: Request + DeserializeOwned,
    Supervisor: Serve<R>,
{
    let request: R = parse(seq, request)?;
    let deadlines = &handle.config.runtime.deadlines;
    // As long as the longest deadline that a handle gives.
    let deadline = Instant::now() + Duration::from_millis(deadlines.step_ms.max(deadlines.undo_ms * 3));
    Ok(tokio::task::spawn_local(async move {
        // The reply is heard through the trace sink, as all others are.
        let _ = handle.supervisor.ask(request, Ask { deadline, cause: None }).await;
    }))
}

fn parse<T: DeserializeOwned>(seq: u64, value: Value) -> Result<T, ReplayError> {
    serde_json::from_value(value).map_err(|error| ReplayError::Record { seq, what: error.to_string() })
}

/// Fields that follow from the clock, or from the order in which actors beside each other took
/// numbers from the ledger: another run of the same lifecycle may have others.
const INCIDENTAL: [&str; 3] = ["waited_ms", "entry", "tag"];

/// A request or reply without what is incidental.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| !INCIDENTAL.contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name.clone(), comparable(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(comparable).collect()),
        other => other.clone(),
    }
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
