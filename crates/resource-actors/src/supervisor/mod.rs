//! One sandbox's lifecycle: it alone knows the order, and it alone talks to more than one actor.
//!
//! Each message is a [`Step`]: admitted by the lifecycle's table, run against the [`Crew`], and
//! either committed or undone from the ledger. A step that changes the sandbox's [`Facts`] works on
//! a copy and hands it back, so a step that fails leaves them as they were.

mod adopt;
mod container;
mod crew;
mod facts;
mod lifecycle;
mod messages;
mod start;
mod stop;
mod unwind;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Call, Completion, Domain, LocalFuture, Plan, Request, Serve};
use sandbox_model::Instant;
use sandbox_model::ledger::{Entry, EntryId, UndoReport, VmFate};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::status::SandboxStatus;
use serde::Serialize;

use crate::error::{Cause, SandboxError, StepFailure};
use crate::planning::sandbox_storages;
use crate::system::SandboxSpec;
pub use adopt::Adopted;
pub(crate) use crew::{Crew, Seat, StepError};
pub use facts::{CpusetWish, Facts, OpenStep, Progress, SAVED_VERSION, SavedSandbox};
pub(crate) use lifecycle::StepKind;
pub use messages::*;

/// What a step comes to: its result, and what the sandbox has then.
pub(crate) type Stepped<T> = LocalFuture<Result<(T, Arc<Facts>), StepError>>;

/// A step of the lifecycle.
pub(crate) trait Step: Request<Reply = Result<Self::Done, SandboxError>> {
    /// Its result.
    type Done: Serialize + Send + 'static;
    /// Its row in the lifecycle's table.
    const KIND: StepKind;

    /// Where the sandbox stands after it has succeeded.
    fn next(now: LifecycleState, _: &Self::Done) -> LifecycleState {
        now
    }

    /// Runs it. What it makes on the host goes through the ledger.
    fn run(self, crew: Rc<Crew>, facts: Arc<Facts>, call: Call) -> Stepped<Self::Done>;
}

/// The actor behind a sandbox's handle.
#[derive(Debug)]
pub struct Supervisor {
    crew: Rc<Crew>,
    state: LifecycleState,
    failure: Option<String>,
    facts: Arc<Facts>,
}

impl Supervisor {
    pub(crate) fn new(crew: Crew, state: LifecycleState, failure: Option<String>, facts: Arc<Facts>) -> Self {
        Self { crew: Rc::new(crew), state, failure, facts }
    }

    fn fail(&mut self, cause: String) {
        if self.state != LifecycleState::Released {
            self.state = LifecycleState::Failed;
            self.failure.get_or_insert(cause);
            self.keep_failure();
        }
    }

    fn saved(&self) -> SavedSandbox {
        let spec = SandboxSpec {
            id: self.crew.sandbox.clone(),
            config: self.crew.config.clone(),
            cgroups_path: self.crew.cgroups_path.clone(),
        };
        SavedSandbox { spec, progress: self.crew.progress(self.state, self.facts.clone()) }
    }

    /// Keeps that the sandbox has failed, as well as it can: a later process that does not learn of it
    /// finds out by itself.
    fn keep_failure(&self) {
        if let Err(error) = self.crew.keep(self.crew.progress(self.state, self.facts.clone())) {
            tracing::warn!(sandbox = %self.crew.sandbox, %error, "the failure could not be kept");
        }
    }
}

impl Domain for Supervisor {
    type Snapshot = ();

    /// The status has a channel of its own, which steps update while they run.
    fn publish(&mut self, (): &mut ()) {
        let (state, objects) = (self.state, self.crew.ledger.count());
        self.crew.status.send_modify(|status| {
            *status = SandboxStatus {
                state,
                step: None,
                failure: self.failure.clone(),
                objects,
                vmm_pid: self.facts.vm.as_ref().and_then(|vm| vm.process).map(|process| process.pid),
                containers: self.facts.containers.len(),
                revision: status.revision + 1,
                sandbox: status.sandbox.clone(),
            };
        });
    }

    /// A step that is interrupted or late undoes itself before it answers.
    fn grace(&self) -> Duration {
        let deadlines = &self.crew.config.runtime.deadlines;
        // Two undo budgets: one for the undo, one for actors that must be replaced on the way.
        Duration::from_millis(deadlines.undo_ms.saturating_mul(2))
    }
}

/// How a step ended: its answer, and what it means for the sandbox.
#[derive(Debug)]
pub struct Settled<R> {
    reply: R,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    /// It succeeded.
    Commit { state: LifecycleState, facts: Arc<Facts> },
    /// It failed and was undone: all is as before.
    Keep,
    /// It failed, and what is true now is not what was before.
    Fail(String),
}

impl<S: Step> Serve<S> for Supervisor {
    /// The step, until it is performed.
    type Ticket = Option<S>;
    type Outcome = Settled<S::Reply>;

    fn plan(&mut self, step: S, _: &Call) -> Plan<Option<S>, S::Reply> {
        if S::KIND.fits(self.state) {
            return Plan::Perform(Some(step));
        }
        Plan::Answer(Err(SandboxError::WrongState {
            sandbox: self.crew.sandbox.clone(),
            message: S::NAME.to_owned(),
            state: self.state,
            needed: S::KIND.needed(),
        }))
    }

    fn perform(&self, step: &mut Option<S>, call: &Call) -> LocalFuture<Settled<S::Reply>> {
        let (crew, facts, call, state) = (self.crew.clone(), self.facts.clone(), call.clone(), self.state);
        let step = step.take().expect("a step is performed once");
        Box::pin(async move {
            match run(step, crew, state, facts, call).await {
                Ok((done, state, facts)) => Settled { reply: Ok(done), verdict: Verdict::Commit { state, facts } },
                Err((failure, is_fatal)) => {
                    let is_lasting = is_fatal || !failure.undo.is_clean();
                    let verdict = if is_lasting { Verdict::Fail(failure.to_string()) } else { Verdict::Keep };
                    Settled { reply: Err(failure.into()), verdict }
                }
            }
        })
    }

    fn settle(&mut self, _: Option<S>, done: Completion<Settled<S::Reply>>) -> S::Reply {
        let Completion::Finished(Settled { reply, verdict }) = done else {
            let failure = StepFailure {
                sandbox: self.crew.sandbox.clone(),
                step: S::NAME.to_owned(),
                actor: ActorName::Supervisor,
                doing: "undo".to_owned(),
                cause: Cause::Interrupted,
                undo: UndoReport::default(),
            };
            self.fail(format!("{failure}: the undo did not end in time"));
            return Err(failure.into());
        };
        match verdict {
            Verdict::Commit { state, facts } => {
                self.facts = facts;
                self.state = state;
                if state == LifecycleState::Failed {
                    self.failure.get_or_insert_with(|| "clean-up left something behind".to_owned());
                } else {
                    self.failure = None;
                }
            }
            Verdict::Keep => {}
            Verdict::Fail(why) => self.fail(why),
        }
        reply
    }
}

/// Runs a step to its end, its deadline, an interruption or the VM's end, and undoes it unless it
/// succeeded. The flag of a failure says that nobody knows what is true any more.
async fn run<S: Step>(
    step: S,
    crew: Rc<Crew>,
    state: LifecycleState,
    facts: Arc<Facts>,
    call: Call,
) -> Result<(S::Done, LifecycleState, Arc<Facts>), (StepFailure, bool)> {
    let (mark, begun) = (crew.mark(), Instant::now());
    let vm_runs = facts.vm.is_some() || S::KIND == StepKind::StartVm;
    // These two end the VM, or outlive its end.
    let needs_vm = vm_runs && !matches!(S::KIND, StepKind::Stop | StepKind::Cleanup);
    crew.waits_for(S::NAME, "its first action");
    let work = step.run(crew.clone(), facts, call.clone());
    let error = tokio::select! {
        biased;
        done = tokio::time::timeout_at(call.deadline, work) => match done {
            Ok(Ok((done, facts))) => {
                let state = S::next(state, &done);
                // A sandbox that has been released has nothing to be kept in.
                let kept = if state == LifecycleState::Released {
                    Ok(())
                } else {
                    crew.keep(crew.progress(state, facts.clone()))
                };
                match kept {
                    Ok(()) => return Ok((done, state, facts)),
                    Err(error) => StepError::own("keep what the step has come to", error),
                }
            }
            Ok(Err(error)) => error,
            Err(_) => late(&crew, begun).await,
        },
        exit = crew.vm_gone(), if needs_vm => {
            let how = crew::describe(&exit);
            StepError::own(waiting_for(&crew), Cause::VmGone { how })
        }
        () = call.interrupted() => StepError::own(waiting_for(&crew), Cause::Interrupted),
    };
    crew.interrupt_all();
    crew.waits_for(S::NAME, "its undo");
    let vm_is_gone = crew.vm_exit.borrow().is_some();
    let fate = if vm_is_gone { VmFate::Gone } else { VmFate::Alive };
    let undo = crew.undo_in_order(since(&crew, mark), fate).await;
    // A VM that has ended does not come back, nor does one whose start was tried: the VMM has taken
    // its devices along.
    let tried_to_start = S::KIND == StepKind::StartVm && !matches!(error.cause, Cause::Invalid { .. });
    let is_fatal = error.is_death() || vm_is_gone || tried_to_start;
    let StepError { actor, doing, cause } = error;
    let (sandbox, step) = (crew.sandbox.clone(), S::NAME.to_owned());
    Err((StepFailure { sandbox, step, actor, doing, cause, undo }, is_fatal))
}

/// The entries that were made after `mark`.
fn since(crew: &Crew, mark: EntryId) -> Vec<Arc<Entry>> {
    crew.ledger.live().into_iter().filter(|entry| entry.id > mark).collect()
}

/// What the step was waiting for, by its own word.
fn waiting_for(crew: &Crew) -> String {
    crew.status.borrow().step.as_ref().map_or_else(String::new, |step| step.waiting_for.clone())
}

async fn late(crew: &Crew, begun: Instant) -> StepError {
    let doing = waiting_for(crew);
    let last_words = last_words(crew).await;
    let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    StepError::own(doing, Cause::DeadlinePassed { waited_ms, last_words })
}

/// The last lines of VMM and guest, if the VMM can still say.
async fn last_words(crew: &Crew) -> String {
    let deadline = Instant::now() + Duration::from_millis(500);
    let words = tokio::time::timeout_at(deadline, crew.vmm.last_words((), deadline)).await;
    match words {
        Ok(Ok(words)) if !words.is_empty() => words,
        _ => "none".to_owned(),
    }
}

impl Serve<StoragesForSandbox> for Supervisor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, request: StoragesForSandbox, _: &Call) -> Plan<(), <StoragesForSandbox as Request>::Reply> {
        Plan::Answer(Ok(sandbox_storages(self.facts.has_share, request.shm_bytes)))
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) -> <StoragesForSandbox as Request>::Reply {
        unreachable!("the plan answers at once")
    }
}

impl Serve<Save> for Supervisor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, _: Save, _: &Call) -> Plan<(), <Save as Request>::Reply> {
        let sandbox = self.crew.sandbox.clone();
        if !StepKind::Save.fits(self.state) {
            let (message, needed) = (Save::NAME.to_owned(), StepKind::Save.needed());
            return Plan::Answer(Err(SandboxError::WrongState { sandbox, message, state: self.state, needed }));
        }
        let saved = self.saved();
        let kept = self.crew.keep(saved.progress.clone());
        Plan::Answer(kept.map(|()| saved).map_err(SandboxError::Store))
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) -> <Save as Request>::Reply {
        unreachable!("the plan answers at once")
    }
}

impl Serve<VmExited> for Supervisor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, request: VmExited, _: &Call) -> Plan<(), ()> {
        match self.state {
            LifecycleState::Started | LifecycleState::Running => {
                Arc::make_mut(&mut self.facts).vm = None;
                self.fail(format!("the VM ended by itself: {}", crew::describe(&request.exit)));
            }
            // It was asked to end, or has been noticed by a step.
            LifecycleState::Created
            | LifecycleState::Prepared
            | LifecycleState::Stopped
            | LifecycleState::Released
            | LifecycleState::Failed => {}
        }
        Plan::Answer(())
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) {}
}

impl Serve<DaemonEnded> for Supervisor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, request: DaemonEnded, _: &Call) -> Plan<(), ()> {
        if matches!(self.state, LifecycleState::Started | LifecycleState::Running) {
            self.fail(format!("{} ended by itself: {}", request.program, request.exit));
        }
        Plan::Answer(())
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) {}
}
