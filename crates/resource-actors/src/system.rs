//! Many sandboxes in one process, on a few threads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actor_shell::{Address, Arbiters, Ask, CurrentCause, Domain, Identity, NoTrace, StartError, spawn};
use cgroup_actor::CgroupActor;
use cgroup_actor::host::{CgroupHost, CgroupHostProxy};
use device_actor::DeviceActor;
use device_actor::host::{DeviceHost, DeviceHostProxy};
use guest_agent::{AgentFactory, GuestAgent, GuestAgentProxy};
use hypervisor::{FIRST_BRIDGE_SLOT, Hypervisor, HypervisorProxy, VmmFactory};
use network_actor::{NetworkActor, NetworkHost, NetworkHostProxy};
use sandbox_model::config::SandboxConfig;
use sandbox_model::layout::{STATE_DIR, SandboxDir};
use sandbox_model::ledger::{Journal, Ledger, UndoReport};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::port::Interceptor;
use sandbox_model::status::SandboxStatus;
use sandbox_model::trace::{Event, Place, TraceSink};
use sandbox_model::{ErrorKind, Instant, PortError, SandboxId};
use serde::{Deserialize, Serialize};
use sharefs_actor::{ShareFsActor, ShareFsHost, ShareFsHostProxy};
use tokio::sync::watch;

use crate::cpu::CpuActor;
use crate::error::SandboxError;
use crate::handle::{Dump, SandboxHandle};
use crate::host::{HostFacts, HostFactsProxy, LinuxHostFacts};
use crate::ledger::{DirectoryStore, SandboxStore};
use crate::supervisor::{Crew, Facts, SAVED_VERSION, SavedSandbox, Seat, Supervisor, VmExited};
use crate::trace::Recorder;

/// Messages that may wait for one actor.
const MAILBOX_BOUND: usize = 64;

/// The world that sandboxes act on. Each port is real, simulated, or an embedder's own.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Makes VMs.
    pub vmm: Arc<dyn VmmFactory>,
    /// Makes agent clients.
    pub agent: Arc<dyn AgentFactory>,
    /// Network namespaces, taps, filters.
    pub network: Arc<dyn NetworkHost>,
    /// Directories, mounts, virtiofsd.
    pub share: Arc<dyn ShareFsHost>,
    /// Cgroups.
    pub cgroup: Arc<dyn CgroupHost>,
    /// Disks, VFIO functions, the vsock daemon.
    pub device: Arc<dyn DeviceHost>,
}

/// What a sandbox is created with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Its configuration.
    pub config: SandboxConfig,
    /// `linux.cgroupsPath` of the sandbox container's spec.
    pub cgroups_path: Option<String>,
}

/// Gives the interceptor that stands around an actor's port calls, if one shall.
pub type Intercept =
    Arc<dyn Fn(&SandboxId, ActorName, &CurrentCause) -> Option<Arc<dyn Interceptor>> + Send + Sync>;

/// Where a system's sandboxes are looked up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry(Arc<watch::Sender<BTreeMap<SandboxId, SandboxHandle>>>);

impl Registry {
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        self.0.send_modify(|all| {
            all.remove(sandbox);
        });
    }
}

/// Prepares a [`ResourceSystem`].
pub struct ResourceSystemBuilder {
    ports: Ports,
    facts: Arc<dyn HostFacts>,
    store: Option<Arc<dyn SandboxStore>>,
    state_dir: PathBuf,
    threads: usize,
    sink: Arc<dyn TraceSink>,
    intercepts: Vec<Intercept>,
    rings: bool,
}

impl std::fmt::Debug for ResourceSystemBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ResourceSystemBuilder({})", self.state_dir.display())
    }
}

impl ResourceSystemBuilder {
    /// The directory below which every sandbox has its own (`/run/resource-actors`).
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = dir.into();
        self
    }

    /// The number of threads that actors live on (1).
    #[must_use]
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = count;
        self
    }

    /// Where messages and port calls are recorded (nowhere).
    #[must_use]
    pub fn trace(mut self, sink: Arc<dyn TraceSink>) -> Self {
        self.sink = sink;
        self
    }

    /// Where ledgers are kept (in directories below the state directory).
    #[must_use]
    pub fn store(mut self, store: Arc<dyn SandboxStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// The facts of the host (this host's).
    #[must_use]
    pub fn facts(mut self, facts: Arc<dyn HostFacts>) -> Self {
        self.facts = facts;
        self
    }

    /// Puts interceptors around every port; a later one stands outside of an earlier one.
    #[must_use]
    pub fn intercept(mut self, intercept: Intercept) -> Self {
        self.intercepts.push(intercept);
        self
    }

    /// Whether the end of a VM is told to its supervisor. A replay tells it from the trace instead.
    #[must_use]
    pub(crate) fn rings(mut self, rings: bool) -> Self {
        self.rings = rings;
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(self) -> Result<ResourceSystem, StartError> {
        let arbiters = Arbiters::start(self.threads, "resource-actors")?;
        Ok(self.on(arbiters))
    }

    /// Uses the actor system that runs on this thread, instead of threads of its own.
    ///
    /// # Errors
    /// [`StartError::NoSystem`].
    pub fn join(self) -> Result<ResourceSystem, StartError> {
        let arbiters = Arbiters::join()?;
        Ok(self.on(arbiters))
    }

    /// Uses the `LocalSet` of the caller, on one thread: for simulation and replay in virtual time.
    pub fn here(self) -> ResourceSystem {
        self.on(Arbiters::here())
    }

    fn on(self, arbiters: Arbiters) -> ResourceSystem {
        let store = self.store.unwrap_or_else(|| Arc::new(DirectoryStore::new(&self.state_dir)));
        ResourceSystem {
            arbiters,
            next: AtomicUsize::new(0),
            registry: Registry::default(),
            parts: Arc::new(Parts {
                ports: self.ports,
                facts: self.facts,
                store,
                sink: self.sink,
                intercepts: self.intercepts,
                rings: self.rings,
            }),
        }
    }
}

/// What every sandbox of a system is made of.
struct Parts {
    ports: Ports,
    facts: Arc<dyn HostFacts>,
    store: Arc<dyn SandboxStore>,
    sink: Arc<dyn TraceSink>,
    intercepts: Vec<Intercept>,
    rings: bool,
}

/// Owns the threads that sandboxes live on.
pub struct ResourceSystem {
    arbiters: Arbiters,
    next: AtomicUsize,
    registry: Registry,
    parts: Arc<Parts>,
}

impl std::fmt::Debug for ResourceSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ResourceSystem({:?}, {} sandboxes)", self.arbiters, self.registry.0.borrow().len())
    }
}

impl ResourceSystem {
    /// Prepares a system on `ports`.
    pub fn builder(ports: Ports) -> ResourceSystemBuilder {
        ResourceSystemBuilder {
            ports,
            facts: Arc::new(LinuxHostFacts),
            store: None,
            state_dir: STATE_DIR.into(),
            threads: 1,
            sink: Arc::new(NoTrace),
            intercepts: Vec::new(),
            rings: true,
        }
    }

    /// Makes a sandbox: its directory, its ledger and its actors.
    ///
    /// # Errors
    /// [`SandboxError::Exists`], [`SandboxError::Store`].
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxHandle, SandboxError> {
        let id = spec.id.clone();
        let place = self.place(&id);
        self.parts.record_created(&spec, place);
        self.start_sandbox(id, move |parts, registry| {
            let ledger = parts.store.create(&spec.id).map_err(|error| match error.kind {
                ErrorKind::Exists => SandboxError::Exists { sandbox: spec.id.clone() },
                _ => SandboxError::Store(error),
            })?;
            let made = parts.make(spec.clone(), ledger, LifecycleState::Created, Facts::default(), registry);
            if made.is_err() {
                // Nothing has been made for it but its directory.
                let _ = parts.store.destroy(&spec.id);
            }
            made
        })
        .await
    }

    /// Brings back a sandbox that an earlier process saved, from its ledger. Its VM is not taken
    /// over: the sandbox is `Failed`, and `cleanup` releases all that is left of it.
    ///
    /// # Errors
    /// [`SandboxError::Unknown`]; [`SandboxError::Store`] names the damaged line of a ledger.
    pub async fn restore(&self, saved: SavedSandbox) -> Result<SandboxHandle, SandboxError> {
        if saved.version != SAVED_VERSION {
            let cause = format!("version {} is not {SAVED_VERSION}", saved.version);
            let error = PortError::new(ErrorKind::Invalid, "restore", saved.sandbox.as_str(), cause);
            return Err(SandboxError::Store(error));
        }
        let SavedSandbox { sandbox, facts, config, cgroups_path, .. } = saved;
        self.reopen(SandboxSpec { id: sandbox, config, cgroups_path }, facts).await
    }

    /// What `save` kept of a sandbox.
    ///
    /// # Errors
    /// [`SandboxError::Store`].
    pub fn saved(&self, sandbox: &SandboxId) -> Result<SavedSandbox, SandboxError> {
        let bytes = self.parts.store.load(sandbox).map_err(SandboxError::Store)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            SandboxError::Store(PortError::new(ErrorKind::Invalid, "restore", sandbox.as_str(), error.to_string()))
        })
    }

    /// Releases a sandbox, of this process or of one that has died, from its ledger.
    ///
    /// # Errors
    /// [`SandboxError::Unknown`]; [`SandboxError::Store`] names the damaged line of a ledger.
    /// Objects that could not be given back are in the report.
    pub async fn cleanup_sandbox(&self, sandbox: &SandboxId) -> Result<UndoReport, SandboxError> {
        let here = self.sandbox(sandbox).filter(|handle| handle.supervisor.death().borrow().is_none());
        let handle = match here {
            Some(handle) => handle,
            None => {
                self.registry.forget(sandbox);
                let spec = SandboxSpec { id: sandbox.clone(), config: SandboxConfig::default(), cgroups_path: None };
                self.reopen(spec, Facts::default()).await?
            }
        };
        handle.cleanup().await
    }

    async fn reopen(&self, spec: SandboxSpec, facts: Facts) -> Result<SandboxHandle, SandboxError> {
        let id = spec.id.clone();
        self.start_sandbox(id, move |parts, registry| {
            let ledger = parts.store.open(&spec.id).map_err(|error| match error.kind {
                ErrorKind::NotFound => SandboxError::Unknown { sandbox: spec.id.clone() },
                _ => SandboxError::Store(error),
            })?;
            parts.make(spec, ledger, LifecycleState::Failed, facts, registry)
        })
        .await
    }

    async fn start_sandbox(
        &self,
        id: SandboxId,
        make: impl FnOnce(&Arc<Parts>, Registry) -> Result<SandboxHandle, SandboxError> + Send + 'static,
    ) -> Result<SandboxHandle, SandboxError> {
        if self.sandbox(&id).is_some() {
            return Err(SandboxError::Exists { sandbox: id });
        }
        let (parts, registry) = (self.parts.clone(), self.registry.clone());
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let made = self.arbiters.run_on(index, move || async move { make(&parts, registry) }).await;
        let handle = made.ok_or(actor_shell::Refused::Ended { actor: ActorName::Supervisor })??;
        self.registry.0.send_modify(|all| {
            all.insert(id, handle.clone());
        });
        Ok(handle)
    }

    fn place(&self, sandbox: &SandboxId) -> Place {
        let sink = &self.parts.sink;
        Place {
            seq: sink.next_seq(),
            cause: None,
            sandbox: sandbox.clone(),
            actor: ActorName::Supervisor,
            at_us: sink.now_us(),
        }
    }

    /// A sandbox of this system.
    pub fn sandbox(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.registry.0.borrow().get(id).cloned()
    }

    /// The sandboxes of this system.
    pub fn sandboxes(&self) -> Vec<SandboxHandle> {
        self.registry.0.borrow().values().cloned().collect()
    }

    /// The sandboxes that have something in the state directory, of whichever process.
    ///
    /// # Errors
    /// [`SandboxError::Store`].
    pub fn list(&self) -> Result<Vec<SandboxId>, SandboxError> {
        self.parts.store.list().map_err(SandboxError::Store)
    }

    /// Releases every sandbox, side by side, and ends the threads. The reports of those that were
    /// not clean come back.
    pub async fn shutdown(self) -> Vec<(SandboxId, Result<UndoReport, SandboxError>)> {
        let releases = self.sandboxes().into_iter().map(|handle| async move {
            let outcome = handle.cleanup().await;
            (handle.sandbox.clone(), outcome)
        });
        let mut outcomes = futures::future::join_all(releases).await;
        outcomes.retain(|(_, outcome)| !outcome.as_ref().is_ok_and(UndoReport::is_clean));
        self.arbiters.stop().await;
        outcomes
    }
}

impl Parts {
    fn record_created(&self, spec: &SandboxSpec, place: Place) {
        if !self.sink.is_recording() {
            return;
        }
        let spec = serde_json::json!({ "spec": spec, "state_dir": self.store.state_dir() });
        self.sink.record(Event::Created { place, spec });
    }

    /// Starts the six actors of a sandbox on this thread.
    fn make(
        self: &Arc<Self>,
        spec: SandboxSpec,
        ledger: Rc<dyn Ledger>,
        state: LifecycleState,
        facts: Facts,
        registry: Registry,
    ) -> Result<SandboxHandle, SandboxError> {
        let SandboxSpec { id, config, cgroups_path } = spec;
        let (config, dir) = (Arc::new(config), SandboxDir::new(self.store.state_dir(), &id));
        let vmm = self.ports.vmm.create(&id, dir.root(), &config).map_err(SandboxError::Store)?;
        let agent = self.ports.agent.create(&id).map_err(SandboxError::Store)?;
        let cause = CurrentCause::default();
        let bare = Bare { parts: self.clone(), id: id.clone(), dir: dir.clone(), config, ledger, vmm, agent };
        let failure = (state == LifecycleState::Failed).then(|| "left by an earlier process".to_owned());
        let first = SandboxStatus { state, failure: failure.clone(), ..SandboxStatus::new(id.clone()) };
        let (status, seen) = watch::channel(first);
        let (bell, vm_exit) = watch::channel(None);
        let crew = Crew {
            sandbox: id.clone(),
            config: bare.config.clone(),
            cgroups_path,
            dir,
            store: self.store.clone(),
            ledger: bare.ledger.clone(),
            journal: Journal::new(bare.ledger.clone(), ActorName::Supervisor),
            vmm: bare.vmm(ActorName::Supervisor, &cause),
            agent: bare.agent(ActorName::Supervisor, &cause),
            facts: bare.wrap(ActorName::Supervisor, &cause, self.facts.clone(), HostFactsProxy::wrap),
            device: bare.device(),
            network: bare.network(),
            share: bare.share(),
            cgroup: bare.cgroup(),
            cpu: bare.cpu(),
            status,
            cause: cause.clone(),
            born: Instant::now(),
            bell: RefCell::new(Some(bell)),
            vm_exit: vm_exit.clone(),
            vm_is_watched: Cell::new(false),
        };
        let dump = dump(&crew, seen.clone());
        let identity = bare.identity(ActorName::Supervisor, cause);
        let supervisor = spawn(Supervisor::new(crew, state, failure, facts), identity);
        if self.rings {
            tokio::task::spawn_local(ring(supervisor.clone(), vm_exit));
        }
        let (agent, config, sink) = (bare.agent, bare.config, self.sink.clone());
        Ok(SandboxHandle { sandbox: id, supervisor, status: seen, agent, config, dump, sink, registry })
    }
}

/// Tells the supervisor that its VM has ended. Lives until the sandbox is released.
async fn ring(supervisor: Address<Supervisor>, mut exit: watch::Receiver<Option<hypervisor::VmExit>>) {
    let ended = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
    if let Ok(Some(exit)) = ended {
        let ask = Ask { deadline: Instant::now() + Duration::from_secs(3600), cause: None };
        // A supervisor that is gone or has died needs no telling.
        let _ = supervisor.ask(VmExited { exit }, ask).await;
    }
}

fn dump(crew: &Crew, status: watch::Receiver<SandboxStatus>) -> Dump {
    let device = crew.device.address().snapshot();
    let network = crew.network.address().snapshot();
    let share = crew.share.address().snapshot();
    let cgroup = crew.cgroup.address().snapshot();
    let cpu = crew.cpu.address().snapshot();
    Arc::new(move || {
        serde_json::json!({
            "status": &*status.borrow(),
            "device": &*device.borrow(),
            "network": &*network.borrow(),
            "share_fs": &*share.borrow(),
            "cgroup": &*cgroup.borrow(),
            "cpu": &*cpu.borrow(),
        })
    })
}

/// What actors are made from, and made again from after a death.
#[derive(Clone)]
struct Bare {
    parts: Arc<Parts>,
    id: SandboxId,
    dir: SandboxDir,
    config: Arc<SandboxConfig>,
    ledger: Rc<dyn Ledger>,
    vmm: Arc<dyn Hypervisor>,
    agent: Arc<dyn GuestAgent>,
}

impl Bare {
    /// Puts every interceptor around a port, the recorder outermost.
    fn wrap<P: ?Sized>(
        &self,
        actor: ActorName,
        cause: &CurrentCause,
        port: Arc<P>,
        proxy: impl Fn(Arc<P>, Arc<dyn Interceptor>) -> Arc<P>,
    ) -> Arc<P> {
        let mut port = port;
        for intercept in &self.parts.intercepts {
            if let Some(interceptor) = intercept(&self.id, actor, cause) {
                port = proxy(port, interceptor);
            }
        }
        if self.parts.sink.is_recording() {
            let (sandbox, cause, sink) = (self.id.clone(), cause.clone(), self.parts.sink.clone());
            port = proxy(port, Arc::new(Recorder { sandbox, actor, cause, sink }));
        }
        port
    }

    fn vmm(&self, actor: ActorName, cause: &CurrentCause) -> Arc<dyn Hypervisor> {
        self.wrap(actor, cause, self.vmm.clone(), HypervisorProxy::wrap)
    }

    fn agent(&self, actor: ActorName, cause: &CurrentCause) -> Arc<dyn GuestAgent> {
        self.wrap(actor, cause, self.agent.clone(), GuestAgentProxy::wrap)
    }

    fn identity(&self, actor: ActorName, cause: CurrentCause) -> Identity {
        let (sandbox, sink) = (self.id.clone(), self.parts.sink.clone());
        Identity { actor, sandbox, bound: MAILBOX_BOUND, sink, cause }
    }

    fn journal(&self, actor: ActorName) -> Journal {
        Journal::new(self.ledger.clone(), actor)
    }

    /// A seat whose actor can be made again.
    fn seat<D: Domain>(&self, actor: ActorName, make: impl Fn(&Self, &CurrentCause) -> D + 'static) -> Seat<D> {
        let bare = self.clone();
        Seat::new(actor, move || {
            let cause = CurrentCause::default();
            spawn(make(&bare, &cause), bare.identity(actor, cause))
        })
    }

    fn device(&self) -> Seat<DeviceActor> {
        self.seat(ActorName::Device, |bare, cause| {
            let host = bare.wrap(ActorName::Device, cause, bare.parts.ports.device.clone(), DeviceHostProxy::wrap);
            let vmm = bare.vmm(ActorName::Device, cause);
            let bridges = bare.config.hypervisor.default_bridges;
            let journal = bare.journal(ActorName::Device);
            DeviceActor::new(journal, vmm, host, bare.id.clone(), bridges, FIRST_BRIDGE_SLOT)
        })
    }

    fn network(&self) -> Seat<NetworkActor> {
        self.seat(ActorName::Network, |bare, cause| {
            let host = bare.wrap(ActorName::Network, cause, bare.parts.ports.network.clone(), NetworkHostProxy::wrap);
            NetworkActor::new(bare.journal(ActorName::Network), host, bare.id.clone())
        })
    }

    fn share(&self) -> Seat<ShareFsActor> {
        self.seat(ActorName::ShareFs, |bare, cause| {
            let host = bare.wrap(ActorName::ShareFs, cause, bare.parts.ports.share.clone(), ShareFsHostProxy::wrap);
            ShareFsActor::new(bare.journal(ActorName::ShareFs), host, bare.dir.clone(), bare.id.clone())
        })
    }

    fn cgroup(&self) -> Seat<CgroupActor> {
        self.seat(ActorName::Cgroup, |bare, cause| {
            let host = bare.wrap(ActorName::Cgroup, cause, bare.parts.ports.cgroup.clone(), CgroupHostProxy::wrap);
            CgroupActor::new(bare.journal(ActorName::Cgroup), host, bare.id.clone())
        })
    }

    fn cpu(&self) -> Seat<CpuActor> {
        self.seat(ActorName::Cpu, |bare, cause| {
            let (vmm, agent) = (bare.vmm(ActorName::Cpu, cause), bare.agent(ActorName::Cpu, cause));
            CpuActor::new(bare.journal(ActorName::Cpu), vmm, agent)
        })
    }
}
