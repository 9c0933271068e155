//! The supervisor's clients: its actors, the VMM, the agent, the ledger, the published status.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Address, Ask, Call, CurrentCause, Domain, Published, Refused, Request, Serve};
use cgroup_actor::CgroupActor;
use device_actor::DeviceActor;
use guest_agent::GuestAgent;
use hypervisor::{Hypervisor, VmExit};
use network_actor::NetworkActor;
use sandbox_model::config::SandboxConfig;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{EntryId, Journal, Ledger};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::status::{SandboxStatus, StepStatus};
use sandbox_model::{Instant, PortResult, SandboxId};
use sharefs_actor::ShareFsActor;
use tokio::sync::watch;

use super::{Facts, OpenStep, Progress, SAVED_VERSION};
use crate::cpu::CpuActor;
use crate::error::Cause;
use crate::host::HostFacts;
use crate::ledger::SandboxStore;

/// A resource actor, and how to make a new one when it has died.
pub(crate) struct Seat<D: Domain> {
    name: ActorName,
    address: RefCell<Address<D>>,
    generation: Cell<u32>,
    make: Box<Make<D>>,
    /// What whoever sits here publishes.
    published: Published<D::Snapshot>,
}

/// Makes the actor of which it is told the generation, from 1, and where it publishes.
type Make<D> = dyn Fn(u32, Published<<D as Domain>::Snapshot>) -> Address<D>;

impl<D: Domain> Seat<D> {
    /// A seat with the first actor of that name in it.
    pub(crate) fn new(name: ActorName, make: impl Fn(u32, Published<D::Snapshot>) -> Address<D> + 'static) -> Self {
        let published = Published::default();
        let address = RefCell::new(make(1, published.clone()));
        Self { name, address, generation: Cell::new(1), make: Box::new(make), published }
    }

    pub(crate) fn address(&self) -> Address<D> {
        self.address.borrow().clone()
    }

    /// Puts a new actor, which knows only the ledger, in the place of one that has died.
    pub(crate) fn replace(&self) {
        self.generation.set(self.generation.get() + 1);
        let next = (self.make)(self.generation.get(), self.published.clone());
        *self.address.borrow_mut() = next;
    }

    /// What whoever sits here has published.
    pub(crate) fn published(&self) -> Published<D::Snapshot> {
        self.published.clone()
    }

    /// Asks for something that can fail, as part of a step.
    pub(crate) async fn ask<R, T, E>(&self, doing: &str, request: R, call: &Call) -> Result<T, StepError>
    where
        D: Serve<R>,
        R: Request<Reply = Result<T, E>>,
        Cause: From<E>,
    {
        let answer = self.ask_plain(doing, request, call.ask()).await?;
        answer.map_err(|error| StepError { actor: self.name, doing: doing.to_owned(), cause: error.into() })
    }

    /// Asks for something whose reply is no result.
    pub(crate) async fn ask_plain<R>(&self, doing: &str, request: R, ask: Ask) -> Result<R::Reply, StepError>
    where
        D: Serve<R>,
        R: Request,
    {
        let answer = self.address().ask(request, ask).await;
        answer.map_err(|refused| StepError { actor: self.name, doing: doing.to_owned(), cause: refused.into() })
    }
}

/// A step's failure before its undo.
#[derive(Debug)]
pub(crate) struct StepError {
    pub(crate) actor: ActorName,
    pub(crate) doing: String,
    pub(crate) cause: Cause,
}

impl StepError {
    /// Of the supervisor itself.
    pub(crate) fn own(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { actor: ActorName::Supervisor, doing: doing.into(), cause: cause.into() }
    }

    /// Whether an actor has died over it, so that nobody knows what is true.
    pub(crate) fn is_death(&self) -> bool {
        matches!(self.cause, Cause::Refused(Refused::Died { .. }))
    }
}

/// All that a step works with.
pub(crate) struct Crew {
    pub(crate) sandbox: SandboxId,
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) cgroups_path: Option<String>,
    pub(crate) dir: SandboxDir,
    pub(crate) store: Arc<dyn SandboxStore>,
    pub(crate) ledger: Rc<dyn Ledger>,
    pub(crate) journal: Journal,
    pub(crate) vmm: Arc<dyn Hypervisor>,
    pub(crate) agent: Arc<dyn GuestAgent>,
    pub(crate) facts: Arc<dyn HostFacts>,
    pub(crate) device: Seat<DeviceActor>,
    pub(crate) network: Seat<NetworkActor>,
    pub(crate) share: Seat<ShareFsActor>,
    pub(crate) cgroup: Seat<CgroupActor>,
    pub(crate) cpu: Seat<CpuActor>,
    pub(crate) status: watch::Sender<SandboxStatus>,
    pub(crate) cause: CurrentCause,
    pub(crate) born: Instant,
    /// Rung when the VM ends. Taken when the sandbox is released, which ends whoever listens.
    pub(crate) bell: RefCell<Option<watch::Sender<Option<VmExit>>>>,
    pub(crate) vm_exit: watch::Receiver<Option<VmExit>>,
    pub(crate) vm_is_watched: Cell<bool>,
    /// Whether the VM runs and its daemons are known.
    pub(crate) daemons_are_known: watch::Sender<bool>,
    /// Whether the last clean-up was asked to be one at once.
    pub(crate) haste: Cell<bool>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crew({})", self.sandbox)
    }
}

impl Crew {
    /// Drops what the resource actors are doing; they settle it as doubtful.
    pub(crate) fn interrupt_all(&self) {
        self.device.address().interrupt();
        self.network.address().interrupt();
        self.share.address().interrupt();
        self.cgroup.address().interrupt();
        self.cpu.address().interrupt();
    }

    /// The newest entry of the ledger: what comes after belongs to the step that asks.
    pub(crate) fn mark(&self) -> EntryId {
        self.ledger.newest()
    }

    /// What is kept of a sandbox in which no step is open.
    pub(crate) fn progress(&self, state: LifecycleState, facts: Arc<Facts>) -> Progress {
        Progress { version: SAVED_VERSION, state, committed: self.mark(), open: None, facts }
    }

    /// Keeps where the sandbox stands for a later process.
    pub(crate) fn keep(&self, progress: Progress) -> PortResult<()> {
        self.store.save(&self.sandbox, progress)
    }

    /// Keeps that a step has begun which takes away what others made: a later process ends it.
    pub(crate) fn keep_open(&self, step: OpenStep, facts: &Arc<Facts>) -> PortResult<()> {
        let state = self.status.borrow().state;
        self.keep(Progress { open: Some(step), ..self.progress(state, facts.clone()) })
    }

    /// Publishes that a step has begun, or what it waits for now.
    pub(crate) fn waits_for(&self, step: &str, what: &str) {
        let since_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.status.send_modify(|status| {
            match &mut status.step {
                Some(now) if now.step == step => what.clone_into(&mut now.waiting_for),
                now => *now = Some(StepStatus { step: step.to_owned(), waiting_for: what.to_owned(), since_ms }),
            }
            status.revision += 1;
        });
    }

    /// Resolves when the VM ends.
    pub(crate) async fn vm_gone(&self) -> VmExit {
        let mut exit = self.vm_exit.clone();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        match ended {
            Ok(Some(exit)) => exit,
            // The bell has been taken: the sandbox is being released.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Watches the VM, which has just started, to its end.
    pub(crate) fn watch_vm(&self) {
        let Some(bell) = self.bell.borrow().clone() else { return };
        if self.vm_is_watched.replace(true) {
            return;
        }
        let vmm = self.vmm.clone();
        tokio::task::spawn_local(async move {
            let far = Instant::now() + std::time::Duration::from_secs(365 * 24 * 3600);
            let waited = tokio::select! {
                biased;
                waited = vmm.wait_exit((), far) => waited,
                // Nobody listens any more.
                () = bell.closed() => return,
            };
            if let Ok(exit) = waited {
                bell.send_replace(Some(exit));
            }
        });
    }
}

/// How a VM ended, in words.
pub(crate) fn describe(exit: &VmExit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    };
    if exit.last_words.is_empty() { how } else { format!("{how}; it said: {}", exit.last_words) }
}
