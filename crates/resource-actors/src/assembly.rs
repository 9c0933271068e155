//! How the actors of a sandbox are put together.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Address, Board, CurrentCause, Domain, Identity, Published, spawn_afar};
use cgroup_actor::CgroupActor;
use cgroup_actor::host::CgroupHostProxy;
use device_actor::DeviceActor;
use device_actor::host::DeviceHostProxy;
use guest_agent::{GuestAgent, GuestAgentProxy};
use hypervisor::{FIRST_BRIDGE_SLOT, Hypervisor, HypervisorProxy};
use network_actor::{NetworkActor, NetworkHostProxy};
use sandbox_model::config::SandboxConfig;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, Journal, Ledger};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::port::Around;
use sandbox_model::status::SandboxStatus;
use sandbox_model::trace::{Event, Opening, Place, TraceSink};
use sandbox_model::{Instant, SandboxId};
use serde::Serialize;
use sharefs_actor::{ShareFsActor, ShareFsHostProxy};
use tokio::sync::watch;

use crate::bells;
use crate::cpu::CpuActor;
use crate::error::SandboxError;
use crate::handle::{Dump, SandboxHandle};
use crate::host::{HostFacts, HostFactsProxy};
use crate::ledger::SandboxStore;
use crate::supervisor::{Crew, Facts, Seat, Supervisor};
use crate::system::{Delays, Intercept, Ports, Registry, SandboxSpec};
use crate::trace::{RecordedLedger, Recorder};

/// Messages that may wait for one actor.
const MAILBOX_BOUND: usize = 64;

/// What a replay needs to start a sandbox.
#[derive(Serialize)]
struct Beginning<'a> {
    spec: &'a SandboxSpec,
    state_dir: &'a Path,
    /// What an earlier process has left, if the sandbox is not new.
    #[serde(flatten)]
    left: Option<Left<'a>>,
}

#[derive(Serialize)]
struct Left<'a> {
    state: LifecycleState,
    facts: &'a Facts,
    ledger: &'a [Arc<Entry>],
}

/// What every sandbox of a system is made of.
pub(crate) struct Parts {
    pub(crate) ports: Ports,
    pub(crate) facts: Arc<dyn HostFacts>,
    pub(crate) store: Arc<dyn SandboxStore>,
    pub(crate) sink: Arc<dyn TraceSink>,
    pub(crate) intercepts: Vec<Intercept>,
    pub(crate) delays: Option<Delays>,
    pub(crate) rings: bool,
}

impl Parts {
    pub(crate) fn record_created(&self, spec: &SandboxSpec) {
        if self.sink.is_recording() {
            let place = Place::outside(&*self.sink, &spec.id);
            let state_dir = self.store.state_dir();
            self.sink.record(Event::Created { place, spec: &Beginning { spec, state_dir, left: None } });
        }
    }

    /// Records what a replay needs to start from a ledger that was there.
    pub(crate) fn record_opened(
        &self,
        how: Opening,
        spec: &SandboxSpec,
        state: LifecycleState,
        facts: &Facts,
        ledger: &[Arc<Entry>],
    ) {
        if self.sink.is_recording() {
            let place = Place::outside(&*self.sink, &spec.id);
            let state_dir = self.store.state_dir();
            let left = Some(Left { state, facts, ledger });
            self.sink.record(Event::Opened { place, how, spec: &Beginning { spec, state_dir, left } });
        }
    }

    /// Starts the six actors of a sandbox on this thread.
    pub(crate) fn make(
        self: &Arc<Self>,
        spec: SandboxSpec,
        ledger: Rc<dyn Ledger>,
        state: LifecycleState,
        facts: Arc<Facts>,
        registry: Registry,
    ) -> Result<SandboxHandle, SandboxError> {
        let SandboxSpec { id, config, cgroups_path } = spec;
        let dir = SandboxDir::new(self.store.state_dir(), &id);
        let vmm = self.ports.vmm.create(&id, dir.root(), &config).map_err(SandboxError::Store)?;
        let agent = self.ports.agent.create(&id).map_err(SandboxError::Store)?;
        let board = Board::default();
        let cause = CurrentCause::of_generation(1, board.clone());
        let bare = Bare { parts: self.clone(), id: id.clone(), dir: dir.clone(), config, ledger, vmm, agent, board };
        let bare = Rc::new(bare);
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
            journal: bare.journal(ActorName::Supervisor, &cause),
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
            daemons_are_known: watch::Sender::new(false),
            haste: Cell::new(false),
        };
        let (dump, helpers) = (dump(&crew, seen.clone()), bells::Helpers::of(&crew));
        let supervisor = Supervisor::new(crew, state, failure, facts);
        let supervisor = bare.spawn(supervisor, ActorName::Supervisor, cause, Published::default());
        if self.rings {
            tokio::task::spawn_local(bells::daemons(supervisor.clone(), helpers, vm_exit.clone()));
            tokio::task::spawn_local(bells::vm(supervisor.clone(), vm_exit));
        }
        let (agent, config) = (bare.agent.clone(), bare.config.clone());
        let (sink, board) = (self.sink.clone(), bare.board.clone());
        Ok(SandboxHandle { sandbox: id, supervisor, status: seen, agent, config, dump, sink, board, registry })
    }
}

fn dump(crew: &Crew, status: watch::Receiver<SandboxStatus>) -> Dump {
    let (device, network, share) = (crew.device.published(), crew.network.published(), crew.share.published());
    let (cgroup, cpu) = (crew.cgroup.published(), crew.cpu.published());
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
struct Bare {
    parts: Arc<Parts>,
    id: SandboxId,
    dir: SandboxDir,
    config: Arc<SandboxConfig>,
    ledger: Rc<dyn Ledger>,
    vmm: Arc<dyn Hypervisor>,
    agent: Arc<dyn GuestAgent>,
    /// Where the mailboxes show what they are at.
    board: Board,
}

impl Bare {
    /// Puts every interceptor around a port, the recorder outermost.
    fn wrap<P: ?Sized>(
        &self,
        actor: ActorName,
        cause: &CurrentCause,
        port: Arc<P>,
        proxy: impl Fn(Arc<P>, Around) -> Arc<P>,
    ) -> Arc<P> {
        let mut port = port;
        for intercept in &self.parts.intercepts {
            if let Some(interceptor) = intercept(&self.id, actor, cause) {
                port = proxy(port, Around::Interceptor(interceptor));
            }
        }
        match self.recorder(actor, cause).filter(|recorder| recorder.sink.hears_calls()) {
            Some(recorder) => proxy(port, Around::Witness(Arc::new(recorder))),
            None => port,
        }
    }

    fn recorder(&self, actor: ActorName, cause: &CurrentCause) -> Option<Recorder> {
        let (sandbox, cause, sink) = (self.id.clone(), cause.clone(), self.parts.sink.clone());
        sink.is_recording().then_some(Recorder { sandbox, actor, cause, sink })
    }

    fn vmm(&self, actor: ActorName, cause: &CurrentCause) -> Arc<dyn Hypervisor> {
        self.wrap(actor, cause, self.vmm.clone(), HypervisorProxy::wrap)
    }

    fn agent(&self, actor: ActorName, cause: &CurrentCause) -> Arc<dyn GuestAgent> {
        self.wrap(actor, cause, self.agent.clone(), GuestAgentProxy::wrap)
    }

    fn spawn<D: Domain>(
        &self,
        domain: D,
        actor: ActorName,
        cause: CurrentCause,
        published: Published<D::Snapshot>,
    ) -> Address<D> {
        let (sandbox, sink) = (self.id.clone(), self.parts.sink.clone());
        let hops = self.parts.delays.as_ref().map(|delays| delays(&self.id, actor));
        spawn_afar(domain, Identity { actor, sandbox, bound: MAILBOX_BOUND, sink, cause }, published, hops)
    }

    fn journal(&self, actor: ActorName, cause: &CurrentCause) -> Journal {
        let ledger = self.ledger.clone();
        match self.recorder(actor, cause) {
            Some(recorder) => Journal::new(Rc::new(RecordedLedger { ledger, recorder }), actor),
            None => Journal::new(ledger, actor),
        }
    }

    /// A seat whose actor can be made again.
    fn seat<D: Domain>(
        self: &Rc<Self>,
        actor: ActorName,
        make: impl Fn(&Self, &CurrentCause) -> D + 'static,
    ) -> Seat<D> {
        let bare = self.clone();
        Seat::new(actor, move |generation, published| {
            let cause = CurrentCause::of_generation(generation, bare.board.clone());
            bare.spawn(make(&bare, &cause), actor, cause, published)
        })
    }

    fn device(self: &Rc<Self>) -> Seat<DeviceActor> {
        self.seat(ActorName::Device, |bare, cause| {
            let host = bare.wrap(ActorName::Device, cause, bare.parts.ports.device.clone(), DeviceHostProxy::wrap);
            let vmm = bare.vmm(ActorName::Device, cause);
            let bridges = bare.config.hypervisor.default_bridges;
            let journal = bare.journal(ActorName::Device, cause);
            let vfio_devices = bare.config.hypervisor.vfio_devices.iter().cloned();
            DeviceActor::new(journal, vmm, host, bare.id.clone(), bridges, FIRST_BRIDGE_SLOT).allow_vfio(vfio_devices)
        })
    }

    fn network(self: &Rc<Self>) -> Seat<NetworkActor> {
        self.seat(ActorName::Network, |bare, cause| {
            let host = bare.wrap(ActorName::Network, cause, bare.parts.ports.network.clone(), NetworkHostProxy::wrap);
            NetworkActor::new(bare.journal(ActorName::Network, cause), host, bare.id.clone())
        })
    }

    fn share(self: &Rc<Self>) -> Seat<ShareFsActor> {
        self.seat(ActorName::ShareFs, |bare, cause| {
            let host = bare.wrap(ActorName::ShareFs, cause, bare.parts.ports.share.clone(), ShareFsHostProxy::wrap);
            ShareFsActor::new(bare.journal(ActorName::ShareFs, cause), host, bare.dir.clone(), bare.id.clone())
        })
    }

    fn cgroup(self: &Rc<Self>) -> Seat<CgroupActor> {
        self.seat(ActorName::Cgroup, |bare, cause| {
            let host = bare.wrap(ActorName::Cgroup, cause, bare.parts.ports.cgroup.clone(), CgroupHostProxy::wrap);
            CgroupActor::new(bare.journal(ActorName::Cgroup, cause), host, bare.id.clone())
        })
    }

    fn cpu(self: &Rc<Self>) -> Seat<CpuActor> {
        self.seat(ActorName::Cpu, |bare, cause| {
            let (vmm, agent) = (bare.vmm(ActorName::Cpu, cause), bare.agent(ActorName::Cpu, cause));
            CpuActor::new(bare.journal(ActorName::Cpu, cause), vmm, agent)
        })
    }
}
