//! One attach with few and with many devices present: our own share, on a VMM that does nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use device_actor::{AttachDevice, DeviceActor, UndoDevices};
use hypervisor::FIRST_BRIDGE_SLOT;
use resource_actors::SandboxSpec;
use resource_actors::ledger::{MemoryStore, SandboxStore};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat};
use sandbox_model::ledger::{Journal, Ledger, Scope, Undo, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ContainerId, SandboxId};
use simulation::{SimulatedDeviceHost, SimulatedVmm, World};

use super::{Row, Target, on_one_thread};
use crate::Pairs;

/// As many as a VM can have: 150 slots.
const BRIDGES: u8 = 5;
/// Devices present in the full VM: with those that are timed, all of its slots are taken.
const MANY: usize = 130;
/// Containers that hold each of them.
const HOLDERS: usize = 2;
const ROUNDS: usize = 41;
const ATTACHES: usize = 20;

struct Lab {
    actor: Address<DeviceActor>,
    ledger: Rc<dyn Ledger>,
    disks: Cell<usize>,
}

impl Lab {
    fn new() -> Self {
        let world = Arc::new(World::new());
        let sandbox = SandboxId::new("bench").expect("a literal id");
        let spec = SandboxSpec { id: sandbox.clone(), config: SandboxConfig::default().into(), cgroups_path: None };
        let ledger = MemoryStore::new("/run/bench").create(&spec).expect("nothing of that name is there");
        let domain = DeviceActor::new(
            Journal::new(ledger.clone(), ActorName::Device),
            Arc::new(SimulatedVmm::new(world.clone(), sandbox.clone())),
            Arc::new(SimulatedDeviceHost::new(world)),
            sandbox.clone(),
            BRIDGES,
            FIRST_BRIDGE_SLOT,
        );
        let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
        let identity = Identity { actor: ActorName::Device, sandbox, bound: 16, sink, cause };
        Self { actor: actor_shell::spawn(domain, identity), ledger, disks: Cell::new(0) }
    }

    fn ask() -> Ask {
        Ask { deadline: sandbox_model::Instant::now() + Duration::from_secs(60), cause: None }
    }

    /// Attaches a disk that nobody has yet.
    async fn attach_new(&self, scope: Scope) -> Result<(), String> {
        self.disks.set(self.disks.get() + 1);
        self.attach(self.disks.get(), scope).await
    }

    async fn attach(&self, disk: usize, scope: Scope) -> Result<(), String> {
        let disk = BlockDevice {
            path: format!("/disks/{disk}.img").into(),
            access: Access::ReadWrite,
            format: DiskFormat::Raw,
            direct: false,
            serial: None,
        };
        let request = AttachDevice { config: DeviceConfig::Block(disk), holder: scope };
        let attached = self.actor.ask(request, Self::ask()).await.map_err(|error| error.to_string())?;
        attached.map(drop).map_err(|error| error.to_string())
    }

    /// Some attaches, timed, and taken back, not timed.
    async fn round(&self) -> Result<Duration, String> {
        let scope = scope("round");
        let begun = Instant::now();
        for _ in 0..ATTACHES {
            self.attach_new(scope.clone()).await?;
        }
        let took = begun.elapsed();
        let mut entries: Vec<_> = self.ledger.live().into_iter().filter(|entry| entry.scope == scope).collect();
        entries.reverse();
        let undo = UndoDevices(Undo { entries, vm: VmFate::Alive });
        let report = self.actor.ask(undo, Self::ask()).await.map_err(|error| error.to_string())?;
        if report.is_clean() { Ok(took) } else { Err(format!("{report:?}")) }
    }
}

fn scope(container: &str) -> Scope {
    Scope::Container(ContainerId::new(container).expect("a literal id"))
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    let rounds = on_one_thread(|| async {
        let (few, many) = (Lab::new(), Lab::new());
        few.attach_new(Scope::Sandbox).await?;
        for _ in 0..MANY {
            many.attach_new(scope("holder-0")).await?;
            for holder in 1..HOLDERS {
                many.attach(many.disks.get(), scope(&format!("holder-{holder}"))).await?;
            }
        }
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            rounds.push(if round % 2 == 0 {
                let many = many.round().await?;
                (many, few.round().await?)
            } else {
                let few = few.round().await?;
                (many.round().await?, few)
            });
        }
        Ok::<_, String>(rounds)
    })??;
    let times = Pairs::of(&rounds);
    let detail = format!("{ATTACHES} attaches: {}; with 1: {}", times.first.describe(), times.second.describe());
    let what = format!("attach, {MANY} devices present in {} uses / 1", MANY * HOLDERS);
    Ok(vec![Row::new(&what, times.ratio, "", Target::AtMost(1.1), detail)])
}
