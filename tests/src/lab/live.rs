//! A life in a lab: the library on this kernel, with a fault on its way.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use nix::sys::signal::{Signal, kill, raise};
use resource_actors::system::Intercept;
use resource_actors::{Recovered, ResourceSystem, ResourceSystemBuilder, SandboxHandle};
use sandbox_model::SandboxId;
use sandbox_model::config::{Accelerator, SandboxConfig};
use sandbox_model::ledger::UndoReport;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{ErrorKind, PortError, PortResult};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use simulation::fault::{FaultPlan, Mode, Peer, PlannedFault, Site};

use super::World;
use super::children::{self, Helper};
use super::host::named;
use crate::lifecycles::{Act, Command, Setting, lifecycle};
use crate::real::Lab;

/// Clean-ups after which something that is left stays.
const CLEANUPS: u32 = 3;

/// What a life tells of itself when it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The sites that it met, in order.
    pub visits: Vec<Site>,
    /// The faults that have struck.
    pub struck: Vec<PlannedFault>,
    /// What was refused: name of the command, and why.
    pub errors: Vec<(String, String)>,
    /// The ledger's lines before the last clean-up.
    pub ledger: Vec<String>,
    /// What runs beside it before the VM is stopped.
    pub children: Vec<Helper>,
    /// What was wrong at the end.
    pub wrong: Vec<String>,
}

/// Lives it: exits by itself, or is killed by the fault or by the life.
///
/// # Errors
/// The lab is not as it should be.
pub fn live(world: &Path, life: &str, faults: &str) -> Result<()> {
    tell(world, life, faults, Part::First)
}

/// Goes on with a life whose process was killed: takes the sandbox over, or releases what is left of it.
///
/// # Errors
/// The lab is not as it should be.
pub fn resume(world: &Path, life: &str, faults: &str) -> Result<()> {
    tell(world, life, faults, Part::Second)
}

/// What a process lives of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// From the beginning, until it is killed.
    First,
    /// From there.
    Second,
}

fn tell(world: &Path, life: &str, faults: &str, part: Part) -> Result<()> {
    let world: World = serde_json::from_slice(&fs::read(world)?)?;
    let faults: FaultPlan = faults.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = runtime.block_on(live_in(&world, life, faults, part))?;
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

async fn live_in(world: &World, life: &str, faults: FaultPlan, part: Part) -> Result<Told> {
    let mut life = lifecycle(life, &world.setting()).with_context(|| format!("no life {life} here"))?;
    life.spec.id = SandboxId::new(world.name.clone())?;
    let own = Own::look();
    let striker = Arc::new(Striker::new(faults));
    let system = builder(world).intercept(striker.intercept()).start()?;
    let mut told = Told::default();
    let mut acts = life.acts;
    let sandbox = match part {
        Part::First => Some(system.create_sandbox(life.spec).await?),
        Part::Second => {
            let taken = acts.iter().position(|act| *act == Act::TakeOver).context("nobody takes this life over")?;
            acts.drain(..=taken);
            take_over(&system, &life.spec.id, &mut told).await
        }
    };
    // Nothing is asked of one that is gone.
    for (sandbox, act) in sandbox.iter().cycle().zip(acts) {
        let name = act.to_string();
        match act {
            Act::Ask(Command::Cleanup) => {
                told.ledger = ledger(world);
                clean_up(sandbox, &mut told).await;
            }
            Act::Ask(command) => {
                if command == Command::Stop {
                    told.children = children::look();
                }
                if let Err(error) = command.send(sandbox).await {
                    told.errors.push((name, error.to_string()));
                }
            }
            Act::Kill | Act::TakeOver => {
                (told.visits, told.struck) = striker.told();
                println!("{}", serde_json::to_string(&told)?);
                die();
            }
            Act::Dies(peer) => strike_dead(peer),
        }
    }
    drop(sandbox);
    let unclean = system.shutdown().await;
    told.wrong.extend(unclean.into_iter().map(|(id, outcome)| format!("shutdown of {id}: {outcome:?}")));
    told.wrong.extend(own.difference().await);
    (told.visits, told.struck) = striker.told();
    Ok(told)
}

/// The sandbox as the process before has left it; `None` if it could only be released.
async fn take_over(system: &ResourceSystem, id: &SandboxId, told: &mut Told) -> Option<SandboxHandle> {
    let why = match system.recover(id).await {
        Ok(Recovered::Adopted(sandbox)) => return Some(sandbox),
        Ok(Recovered::Released { why, .. }) => why,
        Err(error) => error.to_string(),
    };
    told.errors.push(("recover".to_owned(), why));
    None
}

/// A system on this kernel.
fn builder(world: &World) -> ResourceSystemBuilder {
    ResourceSystem::builder(Lab::ports()).state_dir(&world.state)
}

async fn clean_up(sandbox: &SandboxHandle, told: &mut Told) {
    for _ in 0..CLEANUPS {
        match sandbox.cleanup().await {
            Ok(report) if report.is_clean() => return,
            Ok(report) => told.errors.push(("cleanup".to_owned(), left(&report))),
            Err(error) => told.errors.push(("cleanup".to_owned(), error.to_string())),
        }
    }
    told.wrong.push(format!("{CLEANUPS} clean-ups were not enough"));
}

fn left(report: &UndoReport) -> String {
    report.failed().map(|(item, error)| format!("{}: {error}", item.object)).collect::<Vec<_>>().join("; ")
}

fn ledger(world: &World) -> Vec<String> {
    let file = world.state.join(&world.name).join("ledger.jsonl");
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Kills a party, which a lab has one of at most.
fn strike_dead(peer: Peer) {
    let names: &[&str] = match peer {
        Peer::Vmm => &["fake-vmm", "qemu-system"],
        Peer::Virtiofsd => &["virtiofsd"],
        Peer::Agent | Peer::VsockDaemon => &["fake-vsock", "vhost-device"],
    };
    for pid in names.iter().filter_map(|name| named(name).ok()).flatten() {
        // It may have died before.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Descriptors and threads of this process.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    descriptors: Vec<String>,
    threads: Vec<String>,
}

impl Own {
    fn look() -> Self {
        let targets = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let descriptors = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
        let mut descriptors: Vec<String> = descriptors.map(|target| kind(&target)).collect();
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let threads = tasks.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
        let mut threads: Vec<String> = threads.map(|name| name.trim().to_owned()).collect();
        descriptors.sort();
        threads.sort();
        Self { descriptors, threads }
    }

    /// What there is more of now. A thread that is told to end takes a moment for it.
    async fn difference(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for _ in 0..50 {
            let now = Self::look();
            wrong = surplus("descriptor", &self.descriptors, &now.descriptors);
            wrong.extend(surplus("thread", &self.threads, &now.threads));
            if wrong.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        wrong
    }
}

/// `socket:[123]` without its number.
fn kind(target: &Path) -> String {
    let text = target.display().to_string();
    text.split_once(":[").map_or(text.clone(), |(kind, _)| kind.to_owned())
}

fn surplus(what: &str, before: &[String], after: &[String]) -> Vec<String> {
    let count = |list: &[String], name: &String| list.iter().filter(|other| *other == name).count();
    let mut names: Vec<&String> = after.iter().collect();
    names.dedup();
    let more = names.into_iter().filter(|name| count(after, name) > count(before, name));
    more.map(|name| format!("{what} {name}: {} before, {} now", count(before, name), count(after, name))).collect()
}

/// Refuses chosen calls, or kills this process at them.
struct Striker {
    plan: FaultPlan,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<(ActorName, &'static str, &'static str), u32>,
    visits: Vec<Site>,
    struck: Vec<PlannedFault>,
}

impl Striker {
    fn new(plan: FaultPlan) -> Self {
        Self { plan, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> (Vec<Site>, Vec<PlannedFault>) {
        let state = self.state();
        (state.visits.clone(), state.struck.clone())
    }

    fn intercept(self: &Arc<Self>) -> Intercept {
        let striker = self.clone();
        Arc::new(move |_, actor, _| Some(Arc::new(Tap { striker: striker.clone(), actor })))
    }

    fn meet(&self, actor: ActorName, call: &PortCall) -> Option<Mode> {
        let mut state = self.state();
        let count = state.counts.entry((actor, call.port, call.method)).or_default();
        *count += 1;
        let (port, method) = (call.port.to_owned(), call.method.to_owned());
        let site = Site { sandbox: None, actor, port, method, nth: *count };
        state.visits.push(site.clone());
        let fault = self.plan.faults.iter().find(|fault| fault.site == site)?.clone();
        let mode = fault.mode;
        state.struck.push(fault);
        Some(mode)
    }
}

struct Tap {
    striker: Arc<Striker>,
    actor: ActorName,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tap({})", self.actor)
    }
}

/// Ends this process as a crash does.
fn die() -> ! {
    let _ = raise(Signal::SIGKILL);
    unreachable!("SIGKILL cannot be put off")
}

impl Interceptor for Tap {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        let mode = self.striker.meet(self.actor, &call);
        Box::pin(async move {
            match mode {
                Some(Mode::Error) => {
                    return Err(PortError::new(ErrorKind::Refused, call.method, call.port, "injected: refused"));
                }
                Some(Mode::Resource(errno)) => return Err(errno.refuse(call.method, call.port)),
                Some(Mode::CrashBefore) => die(),
                Some(Mode::Dies(peer)) => strike_dead(peer),
                _ => {}
            }
            let answer = inner.await;
            if mode == Some(Mode::CrashAfter) {
                die();
            }
            answer
        })
    }
}

impl World {
    /// What a life needs to know of it.
    pub fn setting(&self) -> Setting {
        let mut config = SandboxConfig::default();
        config.hypervisor.path.clone_from(&self.programs.vmm);
        config.hypervisor.kernel.clone_from(&self.programs.kernel);
        config.hypervisor.initrd = Some(self.programs.initrd.clone());
        config.hypervisor.virtio_fs_daemon.clone_from(&self.programs.virtiofsd);
        config.hypervisor.vsock_daemon.clone_from(&self.programs.vsock_daemon);
        config.hypervisor.accelerator = Accelerator::Tcg;
        config.hypervisor.default_memory = 256;
        config.hypervisor.default_maxmemory = 1024;
        config.hypervisor.default_maxvcpus = 4;
        let number = fs::metadata(&self.node).map_or(0, |found| std::os::unix::fs::MetadataExt::rdev(&found));
        let node = (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
        Setting {
            config,
            cgroups_path: None,
            pod: Self::POD_OF_THREE.into(),
            images: self.images(),
            volumes: self.volumes(),
            root_disk: self.root_disk(),
            volume_disk: self.disk.clone(),
            node: Some(node),
            vfio: None,
        }
    }
}
