//! The whole manager against a small model of what a sandbox should have.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle_tests::simulated::{bind, container, create, in_virtual_time, limits, resources};
use proptest::prelude::*;
use resource_actors::{SandboxError, SandboxHandle};
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::{ResourceUpdate, RootfsRequest, RootfsSource, VolumesRequest};
use simulation::SimulatedHost;
use simulation::fault::FaultPlan;

/// What can be asked, of two containers, two shared directories and two disks.
#[derive(Debug, Clone, Copy)]
enum Op {
    Prepare,
    Start,
    SetUp,
    Rootfs(u8),
    Volume(u8, u8),
    Disk(u8, u8),
    Join(u8, u8),
    Update(u8, u8),
    Release(u8),
    Save,
    Stop,
    Cleanup,
}

fn op() -> impl Strategy<Value = Op> {
    let (container, number) = (0..2_u8, 0..2_u8);
    prop_oneof![
        1 => Just(Op::Prepare),
        1 => Just(Op::Start),
        1 => Just(Op::SetUp),
        3 => container.clone().prop_map(Op::Rootfs),
        4 => (container.clone(), number.clone()).prop_map(|(c, n)| Op::Volume(c, n)),
        3 => (container.clone(), number.clone()).prop_map(|(c, n)| Op::Disk(c, n)),
        3 => (container.clone(), number.clone()).prop_map(|(c, n)| Op::Join(c, n)),
        2 => (container.clone(), number).prop_map(|(c, n)| Op::Update(c, n)),
        3 => container.prop_map(Op::Release),
        1 => Just(Op::Save),
        1 => Just(Op::Stop),
        1 => Just(Op::Cleanup),
    ]
}

/// What a sandbox should have.
#[derive(Debug, Clone)]
struct Model {
    state: LifecycleState,
    /// Whether it was ever prepared: a stop keeps what that made, and makes nothing.
    is_up: bool,
    rootfs: BTreeSet<u8>,
    /// Who holds a shared directory.
    shares: BTreeMap<u8, BTreeSet<u8>>,
    /// Who holds a disk.
    disks: BTreeMap<u8, BTreeSet<u8>>,
    /// vCPUs that containers ask for.
    joined: BTreeMap<u8, u32>,
    /// vCPUs that the VM has: it never becomes smaller (QEMU keeps what it has).
    vcpus: u32,
}

impl Model {
    fn new() -> Self {
        let (rootfs, shares, disks, joined) = Default::default();
        Self { state: LifecycleState::Created, is_up: false, rootfs, shares, disks, joined, vcpus: 1 }
    }

    /// Whether the request is granted, and what it makes of the sandbox.
    fn take(&mut self, op: Op) -> bool {
        use LifecycleState::{Created, Prepared, Released, Running, Started, Stopped};
        let runs = self.state == Running;
        let may = match op {
            Op::Prepare => self.state == Created,
            Op::Start => self.state == Prepared,
            Op::SetUp => self.state == Started,
            Op::Rootfs(c) => runs && !self.rootfs.contains(&c),
            Op::Volume(..) | Op::Disk(..) => runs,
            Op::Join(c, _) => runs && !self.joined.contains_key(&c),
            Op::Update(c, _) => runs && self.joined.contains_key(&c),
            Op::Release(_) => runs || self.state == Stopped,
            Op::Save => self.state != Released,
            Op::Stop => self.state != Released,
            Op::Cleanup => true,
        };
        if !may {
            return false;
        }
        match op {
            Op::Prepare => (self.state, self.is_up) = (Prepared, true),
            Op::Start => self.state = Started,
            Op::SetUp => self.state = Running,
            Op::Rootfs(c) => drop(self.rootfs.insert(c)),
            Op::Volume(c, n) => drop(self.shares.entry(n).or_default().insert(c)),
            Op::Disk(c, n) => drop(self.disks.entry(n).or_default().insert(c)),
            Op::Join(c, n) | Op::Update(c, n) => {
                self.joined.insert(c, u32::from(n) + 1);
                self.vcpus = self.vcpus.max(1 + self.joined.values().sum::<u32>());
            }
            Op::Release(c) => {
                self.rootfs.remove(&c);
                self.joined.remove(&c);
                for holders in self.shares.values_mut().chain(self.disks.values_mut()) {
                    holders.remove(&c);
                }
                self.shares.retain(|_, holders| !holders.is_empty());
                self.disks.retain(|_, holders| !holders.is_empty());
            }
            Op::Save => {}
            Op::Stop => self.state = Stopped,
            Op::Cleanup => *self = Self { state: Released, ..Self::new() },
        }
        true
    }

    fn has_vm(&self) -> bool {
        matches!(self.state, LifecycleState::Started | LifecycleState::Running)
    }

    /// Mounts, disks of the VM, processes.
    fn counts(&self) -> (usize, usize, usize) {
        let mounts = usize::from(self.is_up) + self.rootfs.len() + self.shares.len();
        let disks = if self.has_vm() { self.disks.len() } else { 0 };
        let helpers = if self.is_up { 2 } else { 0 };
        (mounts, disks, helpers + usize::from(self.has_vm()))
    }
}

async fn ask(sandbox: &SandboxHandle, op: Op) -> Result<(), SandboxError> {
    let id = |c: u8| container(if c == 0 { "one" } else { "two" });
    let volume = |c, source: String| {
        let mounts = vec![bind(&source, "/volume", &["rbind", "rw"])];
        sandbox.set_up_volumes(VolumesRequest { container: id(c), mounts })
    };
    let size = |c, n: u8, update| {
        sandbox.update_linux_resources(id(c), Some(limits((i64::from(n) + 1) * 100_000, 1 << 20)), update)
    };
    match op {
        Op::Prepare => sandbox.prepare_before_start_vm(resources()).await,
        Op::Start => sandbox.start_vm().await,
        Op::SetUp => sandbox.setup_after_start_vm().await,
        Op::Rootfs(c) => {
            let source = RootfsSource::Directory { path: format!("/images/{c}").into() };
            sandbox.set_up_rootfs(RootfsRequest { container: id(c), source, read_only: false }).await.map(drop)
        }
        Op::Volume(c, n) => volume(c, format!("/srv/{n}")).await.map(drop),
        Op::Disk(c, n) => volume(c, format!("/dev/disk{n}")).await.map(drop),
        Op::Join(c, n) => size(c, n, ResourceUpdate::Add).await.map(drop),
        Op::Update(c, n) => size(c, n, ResourceUpdate::Update).await.map(drop),
        Op::Release(c) => sandbox.release_container(id(c)).await.map(|report| assert!(report.is_clean())),
        Op::Save => sandbox.save().await.map(drop),
        Op::Stop => sandbox.stop().await,
        Op::Cleanup => sandbox.cleanup().await.map(|report| assert!(report.is_clean(), "{report:?}")),
    }
}

fn host() -> SimulatedHost {
    let mut host = SimulatedHost::new(FaultPlan::default());
    for n in 0..2 {
        host.set_kind(format!("/dev/disk{n}"), Some(resource_actors::host::PathKind::BlockDevice));
    }
    host
}

fn count(host: &SimulatedHost, kind: &str, prefix: &str) -> usize {
    host.world.objects().keys().filter(|(k, name)| *k == kind && name.starts_with(prefix)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// P2: after each request the sandbox has what the model says, and grants what the model grants.
    #[test]
    fn a_sandbox_has_what_its_model_has(
        begins in prop::bool::weighted(0.9),
        ops in prop::collection::vec(op(), 0..25),
    ) {
        let begin = if begins { &[Op::Prepare, Op::Start, Op::SetUp][..] } else { &[] };
        let ops: Vec<Op> = begin.iter().copied().chain(ops).collect();
        in_virtual_time(|| async {
            let host = host();
            let system = host.process(None);
            let sandbox = create(&system, "model").await.unwrap();
            let mut model = Model::new();
            for (n, op) in ops.iter().enumerate() {
                let granted = model.take(*op);
                let reply = ask(&sandbox, *op).await;
                assert_eq!(reply.is_ok(), granted, "{n}: {op:?}: {reply:?}");
                assert_eq!(sandbox.status().state, model.state, "{n}: {op:?}");
                let found =
                    (count(&host, "mount", ""), count(&host, "vm-device", "model/blk"), count(&host, "process", ""));
                assert_eq!(found, model.counts(), "{n}: {op:?}: {:?}", host.world.list());
                if model.has_vm() {
                    let vcpus = sandbox.dump()["cpu"]["now"]["vcpus"].as_u64();
                    assert_eq!(vcpus, Some(u64::from(model.vcpus)), "{n}: {op:?}");
                }
            }
            assert!(sandbox.cleanup().await.unwrap().is_clean());
            assert_eq!(host.world.list(), Vec::<String>::new());
        });
    }
}
