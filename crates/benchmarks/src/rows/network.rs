//! One pod's network set up by the network actor, beside the system calls alone.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use network_actor::{LinuxNetworkHost, NetworkActor, SetUpNetwork, UndoNetwork};
use resource_actors::SandboxSpec;
use resource_actors::ledger::{MemoryStore, SandboxStore};
use sandbox_model::SandboxId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::ledger::{Journal, Ledger, Undo, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};

use super::{Row, Target, on_one_thread};
use crate::Pairs;
use crate::floor::Floor;
use crate::kernel::{Pods, in_private_namespaces};

const ROUNDS: usize = 60;
/// Set-ups before the first that counts.
const WARM_UP: usize = 5;

struct Lab {
    actor: Address<NetworkActor>,
    ledger: Rc<dyn Ledger>,
}

impl Lab {
    fn new() -> Self {
        let sandbox = SandboxId::new("bench").expect("a literal id");
        let spec = SandboxSpec { id: sandbox.clone(), config: SandboxConfig::default().into(), cgroups_path: None };
        let ledger = MemoryStore::new("/run/bench").create(&spec).expect("nothing of that name is there");
        let journal = Journal::new(ledger.clone(), ActorName::Network);
        let domain = NetworkActor::new(journal, Arc::new(LinuxNetworkHost::new()), sandbox.clone());
        let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
        let identity = Identity { actor: ActorName::Network, sandbox, bound: 16, sink, cause };
        Self { actor: actor_shell::spawn(domain, identity), ledger }
    }

    fn ask() -> Ask {
        Ask { deadline: sandbox_model::Instant::now() + Duration::from_secs(60), cause: None }
    }

    async fn set_up(&self, pods: &Pods) -> Result<Duration, String> {
        let source = NetworkSource::Namespace { path: pods.path(0) };
        let request = NetworkRequest { source, model: InterworkingModel::TcFilter, queue_pairs: 1 };
        let message = SetUpNetwork { request, own_namespace: "/run/unused".into() };
        let begun = Instant::now();
        let up = self.actor.ask(message, Self::ask()).await.map_err(|error| error.to_string())?;
        let took = begun.elapsed();
        let up = up.map_err(|error| error.to_string())?;
        if up.nics.len() == 1 { Ok(took) } else { Err(format!("{} NICs", up.nics.len())) }
    }

    async fn take_down(&self) -> Result<Duration, String> {
        let mut entries = self.ledger.live();
        entries.reverse();
        let undo = UndoNetwork(Undo { entries, vm: VmFate::Gone });
        let begun = Instant::now();
        let report = self.actor.ask(undo, Self::ask()).await.map_err(|error| error.to_string())?;
        if report.is_clean() { Ok(begun.elapsed()) } else { Err(format!("{report:?}")) }
    }
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    in_private_namespaces(|| {
        let pods = Pods::make(1)?;
        on_one_thread(|| measure(&pods))?
    })
}

/// Threads of this process that enter namespaces. Those of the pool are bounded, and how far it has grown
/// depends on which calls happened to meet.
fn entering() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "enter-netns").count()
}

async fn measure(pods: &Pods) -> Result<Vec<Row>, String> {
    let lab = Lab::new();
    // The thread that enters exists from now on, and the index of the next tap is known.
    lab.set_up(pods).await?;
    let (link, mut tap) = (pods.index_of("eth0")?, pods.index_of("tap0_kata")?);
    lab.take_down().await?;
    for _ in 0..WARM_UP {
        lab.set_up(pods).await?;
        lab.take_down().await?;
        tap += 1;
    }
    let (mut set_ups, mut take_downs) = (Vec::new(), crate::Samples::default());
    let before = entering();
    for _ in 0..ROUNDS {
        let ours = lab.set_up(pods).await?;
        take_downs.add(lab.take_down().await?);
        // Let the kernel come to rest: it still waits for readers of the tap that is gone.
        tokio::time::sleep(Duration::from_millis(60)).await;
        tap += 2;
        let floor = Floor::new(link, tap)?;
        let begun = Instant::now();
        let up = floor.set_up(&pods.path(0))?;
        set_ups.push((ours, begun.elapsed()));
        floor.take_down(&up)?;
    }
    let threads = entering().saturating_sub(before);
    let pairs = Pairs::of(&set_ups);
    let detail = format!("{}; floor: {}", pairs.first.describe(), pairs.second.describe());
    let down = take_downs.median().as_secs_f64() * 1e3;
    Ok(vec![
        Row::new("network set-up / system calls alone", pairs.ratio, "", Target::AtMost(1.5), detail),
        Row::new(
            "new threads that enter namespaces",
            threads as f64,
            "",
            Target::AtMost(0.0),
            format!("{ROUNDS} set-ups"),
        ),
        Row { what: "network taken away".into(), value: down, unit: "ms", target: None, detail: take_downs.describe() },
    ])
}
