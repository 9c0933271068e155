//! Ports that answer from a trace.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::CurrentCause;
use futures::future::BoxFuture;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::trace::{Ended, Event};
use sandbox_model::{PortResult, SandboxId};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::same;

/// The one call that waits for an event instead of an effect. It is the only one that its actor does
/// not wait for, so a trace may end while it is open.
const WAITS_FOR_EVENT: &str = "wait_exit";

pub(super) type Key = (SandboxId, ActorName);

/// What an asker gets.
enum Answer {
    Result(PortResult<Value>),
    Panic(String),
}

/// A question to the trace, from an interceptor, which must be `Send`, to the replay, which is not.
pub(super) struct Question {
    key: Key,
    cause: u64,
    call: PortCall,
    answer: oneshot::Sender<Answer>,
}

/// Answers one actor's port calls from the trace.
#[derive(Debug)]
struct FromTrace {
    key: Key,
    cause: CurrentCause,
    ask: mpsc::UnboundedSender<Question>,
}

impl Interceptor for FromTrace {
    fn around<'a>(
        &'a self,
        call: PortCall,
        _: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        let cause = self.cause.get();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let asked = self.ask.send(Question { key: self.key.clone(), cause, call, answer });
            match (asked, answered.await) {
                (Ok(()), Ok(Answer::Result(result))) => result,
                (Ok(()), Ok(Answer::Panic(reason))) => std::panic::panic_any(reason),
                // Nothing came back in the trace either: whoever waits is ended by its deadline.
                _ => std::future::pending().await,
            }
        })
    }
}

/// The interceptor of an actor.
pub(super) fn from_trace(
    key: Key,
    cause: &CurrentCause,
    ask: &mpsc::UnboundedSender<Question>,
) -> Arc<dyn Interceptor> {
    Arc::new(FromTrace { key, cause: cause.clone(), ask: ask.clone() })
}

/// One recorded call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded<'e> {
    pub(super) seq: u64,
    began_us: u64,
    port: &'e str,
    method: &'e str,
    pub(super) request: &'e Value,
    result: &'e Ended,
    /// What the actor died of, if it panicked here.
    reason: &'e str,
}

impl Recorded<'_> {
    /// What it is called where it is shown.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.port, self.method)
    }

    /// Whether something came back.
    fn is_answered(&self) -> bool {
        matches!(self.result, Ended::Ok(_) | Ended::Err(_))
    }

    fn waits_for_event(&self) -> bool {
        self.method == WAITS_FOR_EVENT
    }
}

/// A call that the trace does not have.
#[derive(Debug, Clone)]
pub(super) struct Unknown {
    pub(super) key: Key,
    /// The record of the message that was served, in the replay.
    pub(super) cause: u64,
    pub(super) name: String,
    pub(super) request: Value,
}

/// Actor, port, method.
type Line<'e> = (ActorName, &'e str, &'e str);

#[derive(Default)]
struct OfSandbox<'e> {
    calls: BTreeMap<u64, Recorded<'e>>,
    /// By the time at which they were made, which is not the order of their ends.
    by_line: BTreeMap<Line<'e>, BTreeSet<(u64, u64)>>,
    /// Answers that have not been given yet.
    open: BTreeSet<u64>,
    asked: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl<'e> OfSandbox<'e> {
    fn insert(&mut self, actor: ActorName, call: Recorded<'e>) {
        if call.is_answered() {
            self.open.insert(call.seq);
        }
        self.by_line.entry((actor, call.port, call.method)).or_default().insert((call.began_us, call.seq));
        self.calls.insert(call.seq, call);
    }

    fn take(&mut self, line: Line<'e>, request: &Value) -> Option<Recorded<'e>> {
        let of_line = self.by_line.get_mut(&line)?;
        let calls = &self.calls;
        let fits = |(_, seq): &&(u64, u64)| calls.get(seq).is_some_and(|call| same(call.request, request));
        let found = *of_line.iter().find(fits)?;
        of_line.remove(&found);
        self.calls.get(&found.1).copied()
    }

    /// Gives the answer of call `seq`, if somebody asks for it.
    fn give(&mut self, seq: u64) -> bool {
        let Some(asker) = self.asked.remove(&seq) else { return false };
        self.open.remove(&seq);
        if let Some(call) = self.calls.get(&seq) {
            let answer = match call.result {
                Ended::Ok(reply) => Answer::Result(Ok(reply.clone())),
                Ended::Err(error) => Answer::Result(Err(error.clone())),
                Ended::Panicked => Answer::Panic(call.reason.to_owned()),
                Ended::Dropped => return true,
            };
            // Who has given up meanwhile hears nothing.
            let _ = asker.send(answer);
        }
        true
    }

    /// Gives the answers that come before record `barrier`, in their order.
    fn give_due(&mut self, barrier: u64) {
        while let Some(first) = self.open.first().copied().filter(|seq| *seq < barrier) {
            if !self.give(first) {
                return;
            }
        }
    }

    /// The first answer that somebody waits for behind one that nobody asks for.
    fn overdue(&self, barrier: u64) -> Option<u64> {
        let waits = |seq: &u64| *seq < barrier && self.calls.get(seq).is_some_and(|call| !call.waits_for_event());
        self.asked.keys().copied().find(waits)
    }
}

/// The recorded answers of all ports.
#[derive(Default)]
pub(super) struct Answers<'e> {
    sandboxes: BTreeMap<SandboxId, OfSandbox<'e>>,
    /// The sandboxes in which somebody waits: few of those that the trace has.
    askers: BTreeSet<SandboxId>,
    unknown: Vec<Unknown>,
    /// Askers that get no answer. They are kept, so that they wait.
    unanswered: Vec<oneshot::Sender<Answer>>,
}

impl<'e> Answers<'e> {
    /// The calls in `events`.
    pub(super) fn new(events: &'e [Event]) -> Self {
        let mut answers = Self::default();
        let deaths: BTreeMap<_, _> = events
            .iter()
            .filter_map(|event| match event {
                Event::Died { place, reason } => Some((place.cause, reason.as_str())),
                _ => None,
            })
            .collect();
        for event in events {
            let Event::Called { place, port, method, request, result, took_us } = event else { continue };
            let reason = deaths.get(&place.cause).copied().unwrap_or_default();
            let began_us = place.at_us.saturating_sub(*took_us);
            let call = Recorded { seq: place.seq, began_us, port, method, request, result, reason };
            answers.sandboxes.entry(place.sandbox.clone()).or_default().insert(place.actor, call);
        }
        answers
    }

    /// The calls that the trace did not have, forgotten by this.
    pub(super) fn take_unknown(&mut self) -> Vec<Unknown> {
        std::mem::take(&mut self.unknown)
    }

    /// The first call of this actor that the trace has and nobody has made.
    pub(super) fn expected(&self, (sandbox, actor): &Key) -> Option<Recorded<'e>> {
        let of_sandbox = self.sandboxes.get(sandbox)?;
        let unmade = of_sandbox.by_line.iter().filter(|((of, ..), _)| of == actor);
        let (_, first) = unmade.filter_map(|(_, calls)| calls.first()).min()?;
        of_sandbox.calls.get(first).copied()
    }

    /// The first call whose answer nobody has asked for.
    pub(super) fn first_unmade(&self) -> Option<(Key, Recorded<'e>)> {
        let unmade = self.sandboxes.iter().flat_map(|(sandbox, of_sandbox)| {
            let by_line = of_sandbox.by_line.iter();
            by_line.flat_map(move |((actor, ..), calls)| {
                calls.iter().map(move |(_, seq)| (sandbox, *actor, of_sandbox, seq))
            })
        });
        let made = unmade.filter_map(|(sandbox, actor, of, seq)| Some(((sandbox.clone(), actor), of.calls.get(seq)?)));
        let answered = made.filter(|(_, call)| call.is_answered() && !call.waits_for_event());
        answered.min_by_key(|(_, call)| call.seq).map(|(key, call)| (key, *call))
    }

    fn ask(&mut self, question: Question) {
        let Question { key, cause, call, answer } = question;
        let of_sandbox = self.sandboxes.entry(key.0.clone()).or_default();
        match of_sandbox.take((key.1, call.port, call.method), &call.request) {
            Some(recorded) if matches!(recorded.result, Ended::Dropped) => self.unanswered.push(answer),
            Some(recorded) => {
                of_sandbox.asked.insert(recorded.seq, answer);
                if matches!(recorded.result, Ended::Panicked) {
                    of_sandbox.give(recorded.seq);
                }
                self.askers.insert(key.0);
            }
            None => {
                self.unanswered.push(answer);
                if call.method != WAITS_FOR_EVENT {
                    let name = format!("{}.{}", call.port, call.method);
                    self.unknown.push(Unknown { key, cause, name, request: call.request });
                }
            }
        }
    }

    fn give_due(&mut self, barrier: u64) {
        let sandboxes = &mut self.sandboxes;
        self.askers.retain(|asker| {
            let Some(of_sandbox) = sandboxes.get_mut(asker) else { return false };
            of_sandbox.give_due(barrier);
            !of_sandbox.asked.is_empty()
        });
    }

    /// Whether an answer waits behind one that nobody asks for.
    fn is_overdue(&self, barrier: u64) -> bool {
        let mut askers = self.askers.iter().filter_map(|asker| self.sandboxes.get(asker));
        askers.any(|of_sandbox| of_sandbox.overdue(barrier).is_some())
    }

    /// Gives the first such answer; whether there was one.
    fn give_overdue(&mut self, barrier: u64) -> bool {
        let sandboxes = &mut self.sandboxes;
        self.askers.iter().any(|asker| {
            let Some(of_sandbox) = sandboxes.get_mut(asker) else { return false };
            of_sandbox.overdue(barrier).is_some_and(|seq| of_sandbox.give(seq))
        })
    }
}

/// Longer than nothing, and shorter than any deadline: what this waits for has come to rest.
const REST: Duration = Duration::from_micros(1);

/// Answers all questions, each when its turn has come: after the answers that the trace has before it,
/// and not before the commands that the trace has before it. `barrier` is the record of the next
/// command.
pub(super) async fn answer_all(
    mut asked: mpsc::UnboundedReceiver<Question>,
    answers: Rc<RefCell<Answers<'_>>>,
    mut barrier: watch::Receiver<u64>,
) {
    let mut may_be_overdue = false;
    loop {
        let question = tokio::select! {
            biased;
            question = asked.recv() => match question {
                Some(question) => Some(question),
                // Nobody is left who could ask.
                None => return,
            },
            moved = barrier.changed() => match moved {
                Ok(()) => None,
                Err(_) => return,
            },
            // The clock moves only when all is quiet: nobody will ask for what is missing.
            () = tokio::time::sleep(REST), if may_be_overdue => {
                let before = *barrier.borrow();
                may_be_overdue = answers.borrow_mut().give_overdue(before);
                None
            }
        };
        let mut answers = answers.borrow_mut();
        if let Some(question) = question {
            answers.ask(question);
        }
        // More questions may have come at the same time.
        while let Ok(question) = asked.try_recv() {
            answers.ask(question);
        }
        let before = *barrier.borrow_and_update();
        answers.give_due(before);
        may_be_overdue |= answers.is_overdue(before);
    }
}
