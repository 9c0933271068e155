//! Many sandboxes in one process, on a few threads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use actor_shell::{Arbiters, CurrentCause, Hops, NoTrace, StartError};
use cgroup_actor::host::CgroupHost;
use device_actor::host::DeviceHost;
use guest_agent::AgentFactory;
use hypervisor::VmmFactory;
use network_actor::NetworkHost;
use sandbox_model::config::SandboxConfig;
use sandbox_model::layout::STATE_DIR;
use sandbox_model::ledger::UndoReport;
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::port::Interceptor;
use sandbox_model::trace::{Opening, TraceSink};
use sandbox_model::{ErrorKind, PortError, SandboxId};
use serde::{Deserialize, Serialize};
use sharefs_actor::ShareFsHost;
use tokio::sync::watch;

use crate::assembly::Parts;
use crate::error::SandboxError;
use crate::handle::SandboxHandle;
use crate::host::{HostFacts, LinuxHostFacts};
use crate::ledger::{DirectoryStore, SandboxStore};
use crate::supervisor::{Facts, Progress, SAVED_VERSION, SavedSandbox};

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
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Its configuration, which sandboxes may share.
    pub config: Arc<SandboxConfig>,
    /// `linux.cgroupsPath` of the sandbox container's spec.
    pub cgroups_path: Option<String>,
}

/// What became of a sandbox that an earlier process has left.
#[derive(Debug)]
pub enum Recovered {
    /// Its VM runs, and it goes on as if nothing had happened.
    Adopted(SandboxHandle),
    /// It was released from its ledger.
    Released {
        /// What became of each object.
        report: UndoReport,
        /// Why it was not taken over.
        why: String,
    },
}

/// Gives the interceptor that stands around an actor's port calls, if one shall.
pub type Intercept = Arc<dyn Fn(&SandboxId, ActorName, &CurrentCause) -> Option<Arc<dyn Interceptor>> + Send + Sync>;

/// Gives the delays of what is sent to an actor and of what it answers.
pub type Delays = Arc<dyn Fn(&SandboxId, ActorName) -> Arc<dyn Hops> + Send + Sync>;

type Sandboxes = watch::Sender<BTreeMap<SandboxId, SandboxHandle>>;

/// Where a system's sandboxes are looked up. Handles hold it weakly, since it holds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry(Weak<Sandboxes>);

impl Registry {
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        if let Some(all) = self.0.upgrade() {
            all.send_modify(|all| {
                all.remove(sandbox);
            });
        }
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
    delays: Option<Delays>,
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

    /// Other ports than those that the builder was made with.
    #[must_use]
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
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

    /// Delays every message between actors and every answer (not at all). For simulations in virtual
    /// time: the order of what happens side by side then follows from the delays.
    #[must_use]
    pub fn delays(mut self, delays: Delays) -> Self {
        self.delays = Some(delays);
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
            sandboxes: Arc::default(),
            parts: Arc::new(Parts {
                ports: self.ports,
                facts: self.facts,
                store,
                sink: self.sink,
                intercepts: self.intercepts,
                delays: self.delays,
                rings: self.rings,
            }),
        }
    }
}

/// Owns the threads that sandboxes live on.
pub struct ResourceSystem {
    arbiters: Arbiters,
    next: AtomicUsize,
    sandboxes: Arc<Sandboxes>,
    parts: Arc<Parts>,
}

impl std::fmt::Debug for ResourceSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ResourceSystem({:?}, {} sandboxes)", self.arbiters, self.sandboxes.borrow().len())
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
            delays: None,
            rings: true,
        }
    }

    /// Makes a sandbox: its directory, its ledger and its actors.
    ///
    /// # Errors
    /// [`SandboxError::Exists`], [`SandboxError::Store`].
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxHandle, SandboxError> {
        let id = spec.id.clone();
        self.start_sandbox(id, move |parts, registry| {
            let ledger = parts.store.create(&spec).map_err(|error| match error.kind {
                ErrorKind::Exists => SandboxError::Exists { sandbox: spec.id.clone() },
                _ => SandboxError::Store(error),
            })?;
            parts.record_created(&spec);
            let made = parts.make(spec.clone(), ledger, LifecycleState::Created, Arc::default(), registry);
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
        let Progress { version, facts, .. } = saved.progress;
        if version != SAVED_VERSION {
            let cause = format!("version {version} is not {SAVED_VERSION}");
            let error = PortError::new(ErrorKind::Invalid, "restore", saved.spec.id.as_str(), cause);
            return Err(SandboxError::Store(error));
        }
        self.reopen(Opening::Restore, saved.spec, facts).await
    }

    /// What is kept of a sandbox: what it was created with, and where it stood after its last step.
    ///
    /// # Errors
    /// [`SandboxError::Store`].
    pub fn saved(&self, sandbox: &SandboxId) -> Result<SavedSandbox, SandboxError> {
        self.parts.store.load(sandbox).map_err(SandboxError::Store)
    }

    /// Releases a sandbox, of this process or of one that has died, from its ledger.
    ///
    /// # Errors
    /// [`SandboxError::Unknown`]; [`SandboxError::Store`] names the damaged line of a ledger.
    /// Objects that could not be given back are in the report.
    pub async fn cleanup_sandbox(&self, sandbox: &SandboxId) -> Result<UndoReport, SandboxError> {
        let here = self.sandbox(sandbox).filter(|handle| handle.supervisor.death().is_none());
        let handle = match here {
            Some(handle) => handle,
            None => {
                self.registry().forget(sandbox);
                let (spec, facts) = self.kept(sandbox)?;
                self.reopen(Opening::Cleanup, spec, facts).await?
            }
        };
        handle.cleanup().await
    }

    /// Takes over a sandbox that an earlier process has left, if its VM still runs and all that is
    /// known of it is confirmed by kernel and VMM; releases it from its ledger otherwise. A step in
    /// which the process died is undone first.
    ///
    /// A sandbox of this system is as it is: nothing changes.
    ///
    /// # Errors
    /// [`SandboxError::Unknown`]; [`SandboxError::Store`] names the damaged line of a ledger, or the
    /// file that somebody else could have written. Nothing was changed.
    pub async fn recover(&self, sandbox: &SandboxId) -> Result<Recovered, SandboxError> {
        let why = match self.sandbox(sandbox) {
            Some(handle) => {
                let death = handle.supervisor.death();
                match death {
                    None => return Ok(Recovered::Adopted(handle)),
                    Some(death) => death.to_string(),
                }
            }
            None => match self.take_over(sandbox).await? {
                Ok(handle) => return Ok(Recovered::Adopted(handle)),
                Err(why) => why,
            },
        };
        tracing::info!(%sandbox, %why, "released, not taken over");
        Ok(Recovered::Released { report: self.cleanup_sandbox(sandbox).await?, why })
    }

    /// Takes a sandbox over, or says why it can only be released.
    async fn take_over(&self, sandbox: &SandboxId) -> Result<Result<SandboxHandle, String>, SandboxError> {
        let SavedSandbox { spec, progress } = match self.parts.store.load(sandbox) {
            Ok(saved) => saved,
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Ok(Err("it had not come to any step".to_owned()));
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        if let Some(why) = progress.only_release() {
            return Ok(Err(why));
        }
        let handle = self.reopen(Opening::Adopt, spec, Arc::default()).await?;
        let adopted = handle.adopt(progress).await;
        Ok(adopted.map(|_| handle).map_err(|error| error.to_string()))
    }

    /// [`recover`](Self::recover) of every sandbox that [`list`](Self::list) names, side by side.
    ///
    /// # Errors
    /// [`SandboxError::Store`]: the state directory cannot be read.
    pub async fn recover_all(&self) -> Result<BTreeMap<SandboxId, Result<Recovered, SandboxError>>, SandboxError> {
        let each = self.list()?.into_iter().map(|sandbox| async move {
            let recovered = self.recover(&sandbox).await;
            (sandbox, recovered)
        });
        Ok(futures::future::join_all(each).await.into_iter().collect())
    }

    /// Ends the threads and leaves every sandbox as it is, to be [recovered](Self::recover) by a
    /// later system. A step that is being performed is cut off, as if the process had died.
    pub async fn leave(self) {
        self.arbiters.stop().await;
    }

    /// What is kept of a sandbox, or a configuration that a release can do with: what there is to
    /// release is in the ledger alone.
    fn kept(&self, sandbox: &SandboxId) -> Result<(SandboxSpec, Arc<Facts>), SandboxError> {
        match self.parts.store.load(sandbox) {
            Ok(saved) => Ok((saved.spec, saved.progress.facts)),
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid) => {
                tracing::warn!(%sandbox, %error, "what was kept of it cannot be used; its ledger is");
                let spec =
                    SandboxSpec { id: sandbox.clone(), config: SandboxConfig::default().into(), cgroups_path: None };
                Ok((spec, Arc::default()))
            }
            Err(error) => Err(SandboxError::Store(error)),
        }
    }

    pub(crate) async fn reopen(
        &self,
        how: Opening,
        spec: SandboxSpec,
        facts: Arc<Facts>,
    ) -> Result<SandboxHandle, SandboxError> {
        let id = spec.id.clone();
        self.start_sandbox(id, move |parts, registry| {
            let ledger = parts.store.open(&spec.id).map_err(|error| match error.kind {
                ErrorKind::NotFound => SandboxError::Unknown { sandbox: spec.id.clone() },
                _ => SandboxError::Store(error),
            })?;
            parts.record_opened(how, &spec, LifecycleState::Failed, &facts, &ledger.live());
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
        let (parts, registry) = (self.parts.clone(), self.registry());
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let made = self.arbiters.run_on(index, move || async move { make(&parts, registry) }).await;
        let handle = made.ok_or(actor_shell::Refused::Ended { actor: ActorName::Supervisor })??;
        self.sandboxes.send_modify(|all| {
            all.insert(id, handle.clone());
        });
        Ok(handle)
    }

    fn registry(&self) -> Registry {
        Registry(Arc::downgrade(&self.sandboxes))
    }

    /// A sandbox of this system.
    pub fn sandbox(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.sandboxes.borrow().get(id).cloned()
    }

    /// The sandboxes of this system.
    pub fn sandboxes(&self) -> Vec<SandboxHandle> {
        self.sandboxes.borrow().values().cloned().collect()
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
