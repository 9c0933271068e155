//! A simulated host as a whole: what outlives our process, and what can befall it.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use network_actor::view::{Address, Link, NamespaceView, Neighbor, Route};
use resource_actors::host::PathKind;
use resource_actors::system::Intercept;
use resource_actors::{Ports, ResourceSystem, ResourceSystemBuilder};
use sandbox_model::ledger::Ledger;
use sandbox_model::network::{IpNet, MacAddress};
use sandbox_model::trace::TraceSink;
use sandbox_model::{PortResult, SandboxId};

use crate::fault::{FaultPlan, Peer};
use crate::{
    Injector, SeededDelays, SimulatedAgentFactory, SimulatedCgroupHost, SimulatedDeviceHost, SimulatedFacts,
    SimulatedNetwork, SimulatedShareFs, SimulatedStore, SimulatedVmmFactory, World,
};

/// A world, a store and the parties in it. A process of ours is a [`ResourceSystem`] on it; when one
/// dies, the next finds the host as it was left.
pub struct SimulatedHost {
    /// What exists.
    pub world: Arc<World>,
    /// Ledgers and saved states.
    pub store: SimulatedStore,
    /// What goes wrong.
    pub faults: Arc<Injector>,
    ports: Ports,
    vmms: SimulatedVmmFactory,
    facts: SimulatedFacts,
    intercepts: Intercepts,
    ledgers: Option<WrapLedger>,
}

/// Puts a ledger of a test's own around one of the store's.
pub type WrapLedger = Arc<dyn Fn(Rc<dyn Ledger>) -> Rc<dyn Ledger> + Send + Sync>;

#[derive(Clone, Default)]
struct Intercepts(Vec<Intercept>);

impl std::fmt::Debug for Intercepts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} interceptors", self.0.len())
    }
}

impl std::fmt::Debug for SimulatedHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimulatedHost({:?}, {:?})", self.faults, self.intercepts)
    }
}

impl SimulatedHost {
    /// An empty host whose faults are those of `plan`.
    pub fn new(plan: FaultPlan) -> Self {
        let world = Arc::new(World::new());
        let network = SimulatedNetwork::new(world.clone());
        Self::with(world, network, plan)
    }

    /// A host with a pod's namespace at `path` that looks like `view`.
    ///
    /// # Errors
    /// There is something at that path.
    pub fn with_pod(plan: FaultPlan, path: impl Into<PathBuf>, view: NamespaceView) -> PortResult<Self> {
        let world = Arc::new(World::new());
        let network = SimulatedNetwork::new(world.clone()).with_pod(path, view)?;
        Ok(Self::with(world, network, plan))
    }

    /// A host on `world`, with the namespaces of `network`.
    pub fn with(world: Arc<World>, network: SimulatedNetwork, plan: FaultPlan) -> Self {
        let faults = Injector::new(plan);
        let vmms = SimulatedVmmFactory::new(world.clone());
        let ports = Ports {
            vmm: Arc::new(vmms.clone()),
            agent: Arc::new(SimulatedAgentFactory::new(world.clone())),
            network: Arc::new(network),
            share: Arc::new(SimulatedShareFs::new(world.clone())),
            cgroup: Arc::new(SimulatedCgroupHost::new(world.clone())),
            device: Arc::new(SimulatedDeviceHost::new(world.clone())),
        };
        let (hook_world, undertaker) = (world.clone(), vmms.clone());
        faults.on_death(Box::new(move |sandbox, peer| bury(&hook_world, &undertaker, sandbox, peer)));
        let store = SimulatedStore::new("/run/simulated", faults.clone());
        let facts = SimulatedFacts::default();
        Self { world, store, faults, ports, vmms, facts, intercepts: Intercepts::default(), ledgers: None }
    }

    /// Lets a path be something else than a directory; `None` is not there.
    pub fn set_kind(&mut self, path: impl Into<PathBuf>, kind: Option<PathKind>) {
        self.facts.kinds.insert(path.into(), kind);
    }

    /// Lets VMs want a control socket, as QEMU does.
    pub fn give_vmms_a_socket(&self) {
        self.vmms.give_a_socket();
    }

    /// Puts an interceptor around all ports, outside of the faults: for processes that begin later.
    pub fn intercept(&mut self, intercept: Intercept) {
        self.intercepts.0.push(intercept);
    }

    /// Puts something around every ledger: for processes that begin later.
    pub fn wrap_ledgers(&mut self, wrap: WrapLedger) {
        self.ledgers = Some(wrap);
    }

    /// A process of ours on the `LocalSet` of the caller.
    pub fn process(&self, sink: Option<Arc<dyn TraceSink>>) -> ResourceSystem {
        let mut builder = self.builder();
        if let Some(sink) = sink {
            builder = builder.trace(sink);
        }
        builder.here()
    }

    /// A process of ours whose every message and port call is on its way for as long as `seed` says. In
    /// virtual time the same commands and the same seed give the same trace.
    pub fn delayed_process(&self, seed: u64, sink: Arc<dyn TraceSink>) -> ResourceSystem {
        let delays = SeededDelays::new(seed);
        self.builder().intercept(delays.intercept()).delays(delays.hops()).trace(sink).here()
    }

    fn builder(&self) -> ResourceSystemBuilder {
        let mut builder = ResourceSystem::builder(self.ports.clone())
            .store(Arc::new(self.store.clone().wrapped(self.ledgers.clone())))
            .facts(Arc::new(self.facts.clone()))
            .intercept(self.faults.intercept());
        for intercept in &self.intercepts.0 {
            builder = builder.intercept(intercept.clone());
        }
        builder
    }
}

/// What the death of a party does to the world.
fn bury(world: &World, vmms: &SimulatedVmmFactory, sandbox: &SandboxId, peer: Peer) {
    let whose = match peer {
        Peer::Vmm => {
            vmms.crash(sandbox);
            return;
        }
        Peer::Virtiofsd => format!("virtiofsd {sandbox}/"),
        Peer::VsockDaemon => format!("vsock {sandbox}/"),
        // It lives in the guest.
        Peer::Agent => return,
    };
    world.remove_below("process", &whose);
}

/// A pod's namespace with an endpoint of each of `kinds` (`veth`, `macvlan`, `vlan`), named `eth0`,
/// `eth1`, …, and a default route through the first.
pub fn pod_view(kinds: &[&str]) -> NamespaceView {
    let lo = Link { index: 1, name: "lo".to_owned(), mtu: 65536, flags: 0x49, ..Link::default() };
    let mut view = NamespaceView { links: vec![lo], ..NamespaceView::default() };
    for (number, kind) in (0_u8..).zip(kinds) {
        let index = u32::from(number) + 2;
        view.links.push(Link {
            index,
            name: format!("eth{number}"),
            kind: Some((*kind).to_owned()),
            mac: Some(MacAddress([0x02, 0, 0, 0, 1, number])),
            mtu: 1500,
            flags: 0x43,
            ..Link::default()
        });
        let address = std::net::Ipv4Addr::new(10, 20, number, 2).into();
        view.addresses.push(Address { link: index, net: IpNet { address, prefix: 24 } });
    }
    view.neighbors.push(Neighbor {
        link: 2,
        address: std::net::Ipv4Addr::new(10, 20, 0, 1).into(),
        mac: MacAddress([0x02, 0, 0, 0, 0, 1]),
        state: 0x80,
        flags: 0,
    });
    view.routes.push(Route {
        link: 2,
        destination: None,
        gateway: Some(std::net::Ipv4Addr::new(10, 20, 0, 1).into()),
        source: None,
        scope: 0,
        is_ipv6: false,
        flags: 0,
        mtu: 0,
    });
    view
}
