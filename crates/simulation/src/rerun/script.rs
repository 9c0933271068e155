//! What was done to sandboxes in a trace, so that it can be done again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, LocalBoxFuture};
use network_actor::host::OpenedNamespace;
use network_actor::view::NamespaceView;
use resource_actors::host::PathKind;
use resource_actors::trace::{NEWS, ReplayError, send};
use resource_actors::{ResourceSystem, SandboxHandle, SandboxSpec};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::{Ended, Event, Place};
use sandbox_model::{ErrorKind, Instant, SandboxId};
use serde::Deserialize;
use serde_json::Value;

use crate::{SimulatedNetwork, World};

/// One thing that was done from outside.
#[derive(Debug, Clone)]
pub(super) struct Act {
    /// Its record.
    pub(super) seq: u64,
    /// When, after the trace's begin.
    at: Duration,
    sandbox: SandboxId,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Create(Box<SandboxSpec>),
    Send {
        message: String,
        request: Value,
    },
    /// The caller heard the reply to a command before it went on.
    Await(u64),
    Interrupt,
}

impl Act {
    /// The command that is sent.
    pub(super) fn command(&self) -> Option<&str> {
        match &self.what {
            What::Send { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Whether this is the caller's hearing the reply to `command`.
    fn awaits(&self, command: u64) -> bool {
        matches!(self.what, What::Await(awaited) if awaited == command)
    }
}

/// The world in which a trace was recorded, as far as it shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    /// Paths that are no directories.
    pub(super) kinds: BTreeMap<PathBuf, Option<PathKind>>,
    /// Namespaces that somebody had filled.
    pub(super) pods: BTreeMap<PathBuf, NamespaceView>,
}

/// All that was done from outside, in order, and where.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    pub(super) acts: Vec<Act>,
    pub(super) surroundings: Surroundings,
}

#[derive(Deserialize)]
struct Created {
    spec: SandboxSpec,
}

impl Script {
    /// The script of a trace.
    pub(super) fn of(events: &[Event]) -> Result<Self, ReplayError> {
        let mut script = Self::default();
        let mut sent = BTreeSet::new();
        for event in events {
            let act = |place: &Place, before_us: u64, what| {
                let at = Duration::from_micros(place.at_us.saturating_sub(before_us));
                Act { seq: place.seq, at, sandbox: place.sandbox.clone(), what }
            };
            match event {
                Event::Created { place, spec } => {
                    let Created { spec } = serde_json::from_value(spec.clone())
                        .map_err(|error| ReplayError::Record { seq: place.seq, what: error.to_string() })?;
                    script.acts.push(act(place, 0, What::Create(Box::new(spec))));
                }
                Event::Opened { place, .. } => {
                    let what = "it was opened from a ledger that a simulation does not have".to_owned();
                    return Err(ReplayError::Record { seq: place.seq, what });
                }
                Event::Interrupted { place } => script.acts.push(act(place, 0, What::Interrupt)),
                Event::Received { place, message, request, queue_us }
                    if place.actor == ActorName::Supervisor
                        && place.cause.is_none()
                        && !NEWS.contains(&message.as_str()) =>
                {
                    sent.insert(place.seq);
                    let (message, request) = (message.clone(), request.clone());
                    script.acts.push(act(place, *queue_us, What::Send { message, request }));
                }
                Event::Replied { place, .. } => {
                    let command = place.cause.filter(|seq| sent.contains(seq));
                    script.acts.extend(command.map(|seq| act(place, 0, What::Await(seq))));
                }
                Event::Called { port, method, request, result, .. } => {
                    script.surroundings.learn(port, method, request, result);
                }
                _ => {}
            }
        }
        // A command that waited in the mailbox was sent before what was heard meanwhile.
        script.acts.sort_by_key(|act| act.at);
        Ok(script)
    }

    /// The script up to where each sandbox is stopped or cleaned up, and the rest of it.
    pub(super) fn halves(&self) -> (Self, Self) {
        let mut ending = BTreeSet::new();
        let (mut first, mut second) = (Self { acts: Vec::new(), ..self.clone() }, Self::default());
        for act in &self.acts {
            if act.command().is_some_and(|command| ["Stop", "Cleanup"].contains(&command)) {
                ending.insert(&act.sandbox);
            }
            let half = if ending.contains(&act.sandbox) { &mut second } else { &mut first };
            half.acts.push(act.clone());
        }
        (first, second)
    }

    /// The script without the commands that `keep` refuses.
    pub(super) fn keeping(&self, keep: &BTreeSet<u64>) -> Self {
        let acts = self.acts.iter().filter(|act| match &act.what {
            What::Send { .. } => keep.contains(&act.seq),
            What::Await(command) => keep.contains(command),
            What::Create(_) | What::Interrupt => true,
        });
        Self { acts: acts.cloned().collect(), ..self.clone() }
    }

    /// The `n`th copy of the script, from 0, which is itself.
    pub(super) fn copy(&self, n: usize) -> Self {
        if n == 0 { self.clone() } else { self.renamed(&format!("-{n}")) }
    }

    /// The script for another set of sandboxes, whose names end in `suffix`, as do those of the pods.
    pub(super) fn renamed(&self, suffix: &str) -> Self {
        let mut script = self.clone();
        let rename = |id: &SandboxId| SandboxId::new(format!("{id}{suffix}")).unwrap_or_else(|_| id.clone());
        let pods: BTreeMap<_, _> = self
            .surroundings
            .pods
            .iter()
            .map(|(path, view)| (path.display().to_string(), (format!("{}{suffix}", path.display()), view)))
            .collect();
        for act in &mut script.acts {
            act.sandbox = rename(&act.sandbox);
            match &mut act.what {
                What::Create(spec) => spec.id = rename(&spec.id),
                What::Send { request, .. } => replace(request, &|text| pods.get(text).map(|(path, _)| path.clone())),
                What::Await(_) | What::Interrupt => {}
            }
        }
        script.surroundings.pods =
            pods.values().map(|(path, view)| (PathBuf::from(path), NamespaceView::clone(view))).collect();
        script
    }
}

/// A network with the pods that scripts show.
pub(super) fn network<'a>(
    world: &Arc<World>,
    surroundings: impl Iterator<Item = &'a Surroundings>,
) -> SimulatedNetwork {
    let mut network = SimulatedNetwork::new(world.clone());
    for (path, view) in surroundings.flat_map(|surroundings| &surroundings.pods) {
        // Two sandboxes of one pod share its namespace: it is there already.
        drop(network.add_pod(path.clone(), view.clone()));
    }
    network
}

/// Replaces texts at any depth.
fn replace(value: &mut Value, by: &dyn Fn(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(other) = by(text) {
                *text = other;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, by)),
        Value::Object(fields) => fields.values_mut().for_each(|value| replace(value, by)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Surroundings {
    fn learn(&mut self, port: &str, method: &str, request: &Value, result: &Ended) {
        let path = || request.get("path").and_then(Value::as_str).map(PathBuf::from);
        match (port, method, result) {
            ("host-facts", "inspect", Ended::Ok(kind)) => {
                let kind = serde_json::from_value::<PathKind>(kind.clone()).ok();
                if let (Some(path), Some(kind)) = (path(), kind.filter(|kind| *kind != PathKind::Directory)) {
                    self.kinds.insert(path, Some(kind));
                }
            }
            ("host-facts", "inspect", Ended::Err(error)) if error.kind == ErrorKind::NotFound => {
                self.kinds.extend(path().map(|path| (path, None)));
            }
            ("network-host", "open_namespace", Ended::Ok(opened)) => {
                let opened = serde_json::from_value::<OpenedNamespace>(opened.clone()).ok();
                if let (Some(path), Some(opened)) = (path(), opened.filter(|opened| !opened.view.links.is_empty())) {
                    // What it looked like before anything was made in it.
                    self.pods.entry(path).or_insert(opened.view);
                }
            }
            _ => {}
        }
    }
}

/// What came of a script.
#[derive(Debug, Default)]
pub(super) struct Played {
    pub(super) sandboxes: BTreeMap<SandboxId, SandboxHandle>,
    pub(super) replies: BTreeMap<u64, Reply>,
    pub(super) problems: Vec<String>,
}

/// What a command was answered with.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) message: String,
    pub(super) reply: Value,
    pub(super) took: Duration,
}

impl Reply {
    pub(super) fn is_ok(&self) -> bool {
        is_ok(&self.reply)
    }
}

/// Whether a recorded reply is one of success: the mailbox served the message, and its step succeeded.
pub(super) fn is_ok(reply: &Value) -> bool {
    reply.get("Ok").is_some_and(|reply| reply.get("Err").is_none())
}

/// A command under way.
type Running = LocalBoxFuture<'static, Result<Reply, String>>;

/// Does all of a script again, `speed` times as fast. Each sandbox has a caller of its own.
pub(super) async fn play(script: &Script, system: &ResourceSystem, speed: f64) -> Played {
    play_on(script, system, speed, &BTreeMap::new()).await
}

/// As [`play`], with sandboxes that are there already.
pub(super) async fn play_on(
    script: &Script,
    system: &ResourceSystem,
    speed: f64,
    sandboxes: &BTreeMap<SandboxId, SandboxHandle>,
) -> Played {
    let mut callers: Vec<(SandboxId, Vec<&Act>)> = Vec::new();
    for act in &script.acts {
        match callers.iter_mut().find(|(sandbox, _)| *sandbox == act.sandbox) {
            Some((_, acts)) => acts.push(act),
            None => callers.push((act.sandbox.clone(), vec![act])),
        }
    }
    let begun = Instant::now();
    let calls = callers.iter().map(|(sandbox, acts)| {
        let mut played = Played::default();
        played.sandboxes.extend(sandboxes.get(sandbox).map(|handle| (sandbox.clone(), handle.clone())));
        call(sandbox, acts, system, begun, speed, played)
    });
    let mut all = Played::default();
    for played in futures::future::join_all(calls).await {
        all.sandboxes.extend(played.sandboxes);
        all.replies.extend(played.replies);
        all.problems.extend(played.problems);
    }
    all
}

/// What is done to one sandbox.
async fn call(
    sandbox: &SandboxId,
    acts: &[&Act],
    system: &ResourceSystem,
    begun: Instant,
    speed: f64,
    mut played: Played,
) -> Played {
    let mut running = BTreeMap::<u64, Running>::new();
    for (n, act) in acts.iter().enumerate() {
        if let What::Await(command) = act.what {
            if let Some(reply) = running.remove(&command) {
                collect(&mut played, command, reply).await;
            }
            continue;
        }
        let due = begun + Duration::try_from_secs_f64(act.at.as_secs_f64() / speed).unwrap_or(FAR).min(FAR);
        // A timer fires at the next whole millisecond, even if it is due now.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        let handle = played.sandboxes.get(sandbox).cloned();
        match (&act.what, handle) {
            (What::Create(spec), _) => match system.create_sandbox((**spec).clone()).await {
                Ok(handle) => drop(played.sandboxes.insert(sandbox.clone(), handle)),
                Err(error) => played.problems.push(format!("record {}: {error}", act.seq)),
            },
            (What::Interrupt, Some(handle)) => handle.interrupt(),
            (What::Send { message, request }, Some(handle)) => match send(&handle, message, request.clone()) {
                // A caller that waits does so itself: another task would have its turn at another time.
                Ok(reply) if acts.get(n + 1).is_some_and(|next| next.awaits(act.seq)) => {
                    collect(&mut played, act.seq, named(message.clone(), reply).map(Ok).boxed_local()).await;
                }
                Ok(reply) => {
                    let running_now = tokio::task::spawn_local(named(message.clone(), reply));
                    let heard = running_now.map(|ended| ended.map_err(|error| error.to_string()));
                    running.insert(act.seq, heard.boxed_local());
                }
                Err(error) => played.problems.push(format!("record {}: {error}", act.seq)),
            },
            (What::Interrupt | What::Send { .. }, None) | (What::Await(_), _) => {}
        }
    }
    for (command, reply) in running {
        collect(&mut played, command, reply).await;
    }
    played
}

/// No lifecycle lasts longer, and no clock ends before.
const FAR: Duration = Duration::from_secs(3600);

async fn named(message: String, reply: BoxFuture<'static, Value>) -> Reply {
    let begun = Instant::now();
    let reply = reply.await;
    Reply { message, reply, took: begun.elapsed() }
}

async fn collect(played: &mut Played, command: u64, reply: Running) {
    match tokio::time::timeout(FAR, reply).await {
        Ok(Ok(reply)) => drop(played.replies.insert(command, reply)),
        Ok(Err(error)) => played.problems.push(format!("record {command}: {error}")),
        Err(_) => played.problems.push(format!("record {command}: no reply within an hour")),
    }
}
