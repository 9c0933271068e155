//! One sandbox's lifecycle: it alone knows the order, and it alone talks to more than one actor.
//!
//! Each message is a [`Step`]: admitted by the lifecycle's table, run against the [`Crew`], and
//! either committed or undone from the ledger. A step works on a copy of the sandbox's [`Facts`]
//! and hands back the changed copy, so a step that fails leaves them as they were.

mod container;
mod crew;
mod lifecycle;
mod messages;
mod start;
mod stop;
mod unwind;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use actor_shell::{Call, Completion, Domain, LocalFuture, Plan, Request, Serve};
use guest_agent::AgentAddress;
use hypervisor::StartedVm;
use network_actor::NetworkIsUp;
use sandbox_model::ledger::{Entry, EntryId, UndoReport, VmFate};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::status::SandboxStatus;
use sandbox_model::{ContainerId, Instant, SandboxId};
use serde::{Deserialize, Serialize};

use crate::error::{Cause, SandboxError, StepFailure};
use crate::planning::sandbox_storages;
pub(crate) use crew::{Crew, Seat, StepError};
pub(crate) use lifecycle::StepKind;
pub use messages::*;

/// What a sandbox has, as far as later steps must know. Changed by steps that succeed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Where the agent listens.
    pub agent: Option<AgentAddress>,
    /// Whether the guest has the shared directory.
    pub has_share: bool,
    /// The network, if there is one.
    pub network: Option<NetworkIsUp>,
    /// The VM, while it lives.
    pub vm: Option<StartedVm>,
    /// Containers that hold something.
    pub containers: BTreeSet<ContainerId>,
}

/// The version of [`SavedSandbox`].
pub const SAVED_VERSION: u32 = 1;

/// What `save` keeps of a sandbox. What exists of it on the host is in its ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSandbox {
    /// [`SAVED_VERSION`].
    pub version: u32,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Where it stood.
    pub state: LifecycleState,
    /// What it had.
    pub facts: Facts,
    /// Its configuration.
    pub config: sandbox_model::config::SandboxConfig,
    /// `linux.cgroupsPath` of its spec.
    pub cgroups_path: Option<String>,
}

/// A step of the lifecycle.
pub(crate) trait Step: Request<Reply = Result<Self::Done, SandboxError>> + Clone {
    /// Its result.
    type Done: Serialize + Send + 'static;
    /// Its row in the lifecycle's table.
    const KIND: StepKind;

    /// Where the sandbox stands after it has succeeded.
    fn next(now: LifecycleState, _: &Self::Done) -> LifecycleState {
        now
    }

    /// Runs it. What it makes on the host goes through the ledger.
    fn run(self, crew: Rc<Crew>, facts: Facts, call: Call) -> LocalFuture<Result<(Self::Done, Facts), StepError>>;
}

/// The actor behind a sandbox's handle.
#[derive(Debug)]
pub struct Supervisor {
    crew: Rc<Crew>,
    state: LifecycleState,
    failure: Option<String>,
    facts: Facts,
}

impl Supervisor {
    pub(crate) fn new(crew: Crew, state: LifecycleState, failure: Option<String>, facts: Facts) -> Self {
        Self { crew: Rc::new(crew), state, failure, facts }
    }

    fn fail(&mut self, cause: String) {
        if self.state != LifecycleState::Released {
            self.state = LifecycleState::Failed;
            self.failure.get_or_insert(cause);
        }
    }

    fn saved(&self) -> SavedSandbox {
        SavedSandbox {
            version: SAVED_VERSION,
            sandbox: self.crew.sandbox.clone(),
            state: self.state,
            facts: self.facts.clone(),
            config: (*self.crew.config).clone(),
            cgroups_path: self.crew.cgroups_path.clone(),
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
    Commit { state: LifecycleState, facts: Box<Facts> },
    /// It failed and was undone: all is as before.
    Keep,
    /// It failed, and what is true now is not what was before.
    Fail(String),
}

impl<S: Step> Serve<S> for Supervisor {
    type Ticket = S;
    type Outcome = Settled<S::Reply>;

    fn plan(&mut self, step: S, _: &Call) -> Plan<S, S::Reply> {
        if S::KIND.fits(self.state) {
            return Plan::Perform(step);
        }
        Plan::Answer(Err(SandboxError::WrongState {
            sandbox: self.crew.sandbox.clone(),
            message: S::NAME.to_owned(),
            state: self.state,
            needed: S::KIND.needed(),
        }))
    }

    fn perform(&self, step: &S, call: &Call) -> LocalFuture<Settled<S::Reply>> {
        let (crew, facts, call, state) = (self.crew.clone(), self.facts.clone(), call.clone(), self.state);
        let step = step.clone();
        Box::pin(async move {
            match run(step, crew, facts, call).await {
                Ok((done, facts)) => {
                    let state = S::next(state, &done);
                    Settled { reply: Ok(done), verdict: Verdict::Commit { state, facts: Box::new(facts) } }
                }
                Err((failure, is_fatal)) => {
                    let is_lasting = is_fatal || !failure.undo.is_clean();
                    let verdict = if is_lasting { Verdict::Fail(failure.to_string()) } else { Verdict::Keep };
                    Settled { reply: Err(failure.into()), verdict }
                }
            }
        })
    }

    fn settle(&mut self, _: S, done: Completion<Settled<S::Reply>>) -> S::Reply {
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
                self.facts = *facts;
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
    facts: Facts,
    call: Call,
) -> Result<(S::Done, Facts), (StepFailure, bool)> {
    let (mark, begun) = (crew.mark(), Instant::now());
    let vm_runs = facts.vm.is_some() || S::KIND == StepKind::StartVm;
    // These two end the VM, or outlive its end.
    let needs_vm = vm_runs && !matches!(S::KIND, StepKind::Stop | StepKind::Cleanup);
    crew.waits_for(S::NAME, "its first action");
    let work = step.run(crew.clone(), facts, call.clone());
    let error = tokio::select! {
        biased;
        done = tokio::time::timeout_at(call.deadline, work) => match done {
            Ok(Ok(done)) => return Ok(done),
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
fn since(crew: &Crew, mark: EntryId) -> Vec<Entry> {
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

    fn perform(&self, (): &(), _: &Call) -> LocalFuture<()> {
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
        let kept = serde_json::to_vec(&saved)
            .map_err(|error| {
                let kind = sandbox_model::ErrorKind::Invalid;
                sandbox_model::PortError::new(kind, "save", sandbox.as_str(), error.to_string())
            })
            .and_then(|state| self.crew.store.save(&sandbox, &state));
        Plan::Answer(kept.map(|()| saved).map_err(SandboxError::Store))
    }

    fn perform(&self, (): &(), _: &Call) -> LocalFuture<()> {
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
                self.facts.vm = None;
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

    fn perform(&self, (): &(), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) {}
}
