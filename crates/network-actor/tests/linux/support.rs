//! What the tests on the real kernel share: a ledger in memory, namespaces like a CNI plugin's, and
//! `ip` and `tc` as second witnesses.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use network_actor::{LinuxNetworkHost, NetworkActor, NetworkIsUp, SetUpNetwork, UndoNetwork};
use sandbox_model::ledger::{Entry, Journal, Ledger, Undo, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::{Instant, SandboxId};
use serde_json::Value;

use crate::ledger::MemoryLedger;

/// An actor with its ledger.
pub(crate) struct Sandbox {
    pub(crate) ledger: Rc<MemoryLedger>,
    pub(crate) id: SandboxId,
    pub(crate) actor: Address<NetworkActor>,
}

impl Sandbox {
    pub(crate) fn new(name: &str) -> Self {
        Self::on(Rc::new(MemoryLedger::default()), SandboxId::new(name).unwrap())
    }

    fn on(ledger: Rc<MemoryLedger>, id: SandboxId) -> Self {
        let journal = Journal::new(ledger.clone(), ActorName::Network);
        let actor = NetworkActor::new(journal, Arc::new(LinuxNetworkHost::new()), id.clone());
        let identity = Identity {
            actor: ActorName::Network,
            sandbox: id.clone(),
            bound: 8,
            sink: Arc::new(NoTrace),
            cause: CurrentCause::default(),
        };
        Self { ledger, id, actor: actor_shell::spawn(actor, identity) }
    }

    /// The actor is gone with all that it held; a fresh one gets the same ledger.
    pub(crate) async fn crash(self) -> Self {
        let Self { ledger, id, actor } = self;
        drop(actor);
        // The shell ends, and drops its domain, when it is polled next.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Self::on(ledger, id)
    }

    pub(crate) async fn set_up(&self, source: NetworkSource, queue_pairs: u16) -> Result<NetworkIsUp, String> {
        self.set_up_at(source, queue_pairs, PathBuf::from("/nonexistent/netns")).await
    }

    pub(crate) async fn set_up_at(
        &self,
        source: NetworkSource,
        queue_pairs: u16,
        own_namespace: PathBuf,
    ) -> Result<NetworkIsUp, String> {
        let request = NetworkRequest { source, model: InterworkingModel::TcFilter, queue_pairs };
        let answer = self.actor.ask(SetUpNetwork { request, own_namespace }, ask()).await;
        answer.unwrap().map_err(|error| error.to_string())
    }

    /// Undoes all entries, newest first.
    pub(crate) async fn undo(&self) -> UndoReport {
        let mut entries = self.ledger.live();
        entries.reverse();
        self.undo_entries(entries).await
    }

    pub(crate) async fn undo_entries(&self, entries: Vec<Arc<Entry>>) -> UndoReport {
        self.actor.ask(UndoNetwork(Undo { entries, vm: VmFate::Gone }), ask()).await.unwrap()
    }
}

fn ask() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(20), cause: None }
}

/// Two namespaces with a veth between them, as CNI's `ptp` leaves them.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) peer: String,
}

static PODS: AtomicU32 = AtomicU32::new(0);

impl Pod {
    /// Addresses `10.9.0.2/24` and `fd09::2/64` on `eth0`, a default route each, one permanent
    /// neighbour.
    pub(crate) fn new() -> Self {
        let number = format!("{}-{}", std::process::id(), PODS.fetch_add(1, Ordering::Relaxed));
        let pod = Self { name: format!("netactor-{number}"), peer: format!("netactor-{number}-peer") };
        let (name, peer) = (&pod.name, &pod.peer);
        for ns in [name, peer] {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
        }
        ip(&format!("-n {name} link add eth0 mtu 1400 type veth peer name gw0 netns {peer}"));
        ip(&format!("-n {peer} link set gw0 up"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {peer} addr add 10.9.0.1/24 dev gw0"));
        ip(&format!("-n {name} addr add 10.9.0.2/24 dev eth0"));
        ip(&format!("-n {name} addr add fd09::2/64 dev eth0 nodad"));
        ip(&format!("-n {name} route add 10.77.0.0/16 via 10.9.0.1 mtu 1300 src 10.9.0.2"));
        ip(&format!("-n {name} route add 10.88.0.1/32 dev eth0 scope link"));
        ip(&format!("-n {name} route add default via 10.9.0.1 dev eth0 onlink"));
        ip(&format!("-n {name} -6 route add default via fd09::1 dev eth0"));
        ip(&format!("-n {name} neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent"));
        ip(&format!("-n {name} neigh add 10.9.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud stale"));
        pod.settle();
        pod
    }

    pub(crate) fn source(&self) -> NetworkSource {
        NetworkSource::Namespace { path: self.path() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Another veth, with an address.
    pub(crate) fn add_veth(&self, name: &str, address: &str, mtu: u32) {
        let (ns, peer) = (&self.name, &self.peer);
        ip(&format!("-n {ns} link add {name} mtu {mtu} type veth peer name p-{name} netns {peer}"));
        ip(&format!("-n {peer} link set p-{name} mtu {mtu} up"));
        ip(&format!("-n {ns} link set {name} up"));
        ip(&format!("-n {ns} addr add {address} dev {name}"));
        self.settle();
    }

    /// Waits until the kernel has found the link-local addresses to be nobody else's.
    #[expect(clippy::disallowed_methods, reason = "no actor waits on this thread yet")]
    fn settle(&self) {
        for _ in 0..100 {
            if !run("ip", &format!("-n {} addr", self.name)).contains("tentative") {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn json(&self, program: &str, arguments: &str) -> Value {
        json(program, &self.name, arguments)
    }

    /// All that a stranger could notice of us.
    pub(crate) fn snapshot(&self) -> String {
        let mut all = String::new();
        for (program, arguments) in [
            ("ip", "-d link"),
            ("ip", "addr"),
            ("ip", "route show table all"),
            ("ip", "-6 route show table all"),
            ("ip", "neigh show nud permanent"),
            ("tc", "qdisc"),
        ] {
            let text = run(program, &format!("-n {} {arguments}", self.name));
            all += &format!("== {program} {arguments}\n{text}");
        }
        for link in self.json("ip", "link").as_array().unwrap() {
            let name = link["ifname"].as_str().unwrap();
            all += &run("tc", &format!("-n {} filter show dev {name} ingress", self.name));
        }
        all
    }

    pub(crate) fn has_link(&self, name: &str) -> bool {
        self.json("ip", "link").as_array().unwrap().iter().any(|link| link["ifname"] == name)
    }

    /// Netlink route sockets of processes (the kernel's own have port 0).
    pub(crate) fn route_sockets(&self) -> usize {
        let text = run("ip", &format!("netns exec {} cat /proc/net/netlink", self.name));
        let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines().skip(1).map(fields).filter(|f| f[1] == "0" && f[2] != "0").count()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for ns in [&self.name, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn json(program: &str, ns: &str, arguments: &str) -> Value {
    let text = run(program, &format!("-n {ns} -d -j {arguments}"));
    if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).unwrap() }
}

/// Runs a test that needs root, `ip` and `tc`, or says that it did not.
pub(crate) fn as_root(test: impl AsyncFnOnce()) {
    let is_root = rustix::process::geteuid().is_root();
    let missing = ["ip", "tc", "ping"].into_iter().find(|program| Command::new(program).arg("-V").output().is_err());
    let why = match (is_root, missing) {
        (true, None) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            return tokio::task::LocalSet::new().block_on(&runtime, test());
        }
        (false, _) => "it needs root".to_owned(),
        (_, Some(program)) => format!("{program} is not installed"),
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "not run: {why}");
    eprintln!("SKIPPED: {why}");
}
