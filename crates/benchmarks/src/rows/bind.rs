//! One volume shown to the guest by the share-fs actor, beside the system calls of a bind mount alone.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use resource_actors::SandboxSpec;
use resource_actors::ledger::{DirectoryStore, SandboxStore};
use rustix::fs::{CWD, Mode};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use sandbox_model::config::{SandboxConfig, VirtioFsCache};
use sandbox_model::device::Access;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Journal, Ledger, Scope, Undo, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ContainerId, SandboxId};
use sharefs_actor::{LinuxShareFsHost, SetUpShare, ShareFsActor, ShareVolume, UndoShares};
use simulation::{RealMountsSimulatedDaemon, World};

use super::{Row, on_one_thread};
use crate::kernel::in_private_namespaces;
use crate::{Pairs, Samples};

const ROUNDS: usize = 200;
const STATE_DIR: &str = "/run/bench";

/// The actor on the real kernel, with a ledger on tmpfs as in a runtime.
struct Lab {
    actor: Address<ShareFsActor>,
    ledger: Rc<dyn Ledger>,
    source: PathBuf,
}

impl Lab {
    async fn new() -> Result<Self, String> {
        let sandbox = SandboxId::new("bench").expect("a literal id");
        let spec = SandboxSpec { id: sandbox.clone(), config: SandboxConfig::default().into(), cgroups_path: None };
        let ledger = DirectoryStore::new(STATE_DIR).create(&spec).map_err(|error| error.to_string())?;
        let source = PathBuf::from("/run/volume");
        std::fs::create_dir_all(&source).map_err(|error| error.to_string())?;
        let host = RealMountsSimulatedDaemon::new(Arc::new(LinuxShareFsHost), Arc::new(World::new()));
        let journal = Journal::new(ledger.clone(), ActorName::ShareFs);
        let dir = SandboxDir::new(Path::new(STATE_DIR), &sandbox);
        let domain = ShareFsActor::new(journal, Arc::new(host), dir, sandbox.clone());
        let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
        let identity = Identity { actor: ActorName::ShareFs, sandbox, bound: 16, sink, cause };
        let lab = Self { actor: actor_shell::spawn(domain, identity), ledger, source };
        let share = SetUpShare {
            daemon: "/simulated/virtiofsd".into(),
            cache: VirtioFsCache::Auto,
            queue_size: 1024,
            bind_mounts: Vec::new(),
        };
        let up = lab.actor.ask(share, Self::ask()).await.map_err(|error| error.to_string())?;
        up.map_err(|error| error.to_string())?;
        Ok(lab)
    }

    fn ask() -> Ask {
        Ask { deadline: sandbox_model::Instant::now() + Duration::from_secs(60), cause: None }
    }

    async fn share(&self) -> Result<Duration, String> {
        let container = ContainerId::new("one").expect("a literal id");
        let (source, destination) = (self.source.clone(), "/data".to_owned());
        let volume = ShareVolume { container, source, destination, access: Access::ReadWrite };
        let begun = Instant::now();
        let shared = self.actor.ask(volume, Self::ask()).await.map_err(|error| error.to_string())?;
        shared.map(|_| begun.elapsed()).map_err(|error| error.to_string())
    }

    async fn take_away(&self, all: bool) -> Result<(), String> {
        let mut entries = self.ledger.live();
        entries.retain(|entry| all || entry.scope != Scope::Sandbox);
        entries.reverse();
        let undo = UndoShares(Undo { entries, vm: VmFate::Gone });
        let report = self.actor.ask(undo, Self::ask()).await.map_err(|error| error.to_string())?;
        if report.is_clean() { Ok(()) } else { Err(format!("{report:?}")) }
    }
}

/// The least that a bind mount takes: its place, and the mount.
fn floor(source: &Path) -> rustix::io::Result<Duration> {
    let place = Path::new("/run/floor");
    let begun = Instant::now();
    rustix::fs::mkdir(place, Mode::RWXU)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, source, flags)?;
    move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let took = begun.elapsed();
    unmount(place, UnmountFlags::DETACH)?;
    rustix::fs::rmdir(place)?;
    Ok(took)
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    let pairs = in_private_namespaces(|| on_one_thread(measure)?)?;
    let ours = Samples::median(&pairs.first).as_secs_f64() * 1e6;
    let detail = format!(
        "{}; mkdir, open_tree and move_mount alone: {}; ratio {:.1}",
        pairs.first.describe(),
        pairs.second.describe(),
        pairs.ratio
    );
    Ok(vec![Row {
        what: "one bind, with its four ledger records".into(),
        value: ours,
        unit: "us",
        target: None,
        detail,
    }])
}

async fn measure() -> Result<Pairs, String> {
    let lab = Lab::new().await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let ours = lab.share().await?;
        lab.take_away(false).await?;
        rounds.push((ours, floor(&lab.source).map_err(|error| error.to_string())?));
    }
    lab.take_away(true).await?;
    Ok(Pairs::of(&rounds))
}
