//! The network actor on a simulated kernel: ledger entries, failures at every call, deadlines.
#![expect(clippy::unwrap_used, reason = "a test ends where a helper meets what it did not expect")]

#[path = "shared/ledger.rs"]
mod ledger;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use futures::future::BoxFuture;
use ledger::MemoryLedger;
use network_actor::view::{Link, NamespaceView};
use network_actor::{
    NetworkActor, NetworkError, NetworkHost, NetworkHostProxy, NetworkIsUp, SetUpNetwork, UndoNetwork,
};
use sandbox_model::ledger::{HostObject, Journal, Ledger, Undo, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};
use serde_json::Value;
use simulation::{SimulatedNetwork, World};

const POD: &str = "/run/netns/pod";
const OWN: &str = "/run/sandbox/netns";

/// What goes wrong at one call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is refused, and nothing has happened.
    Before,
    /// It happens, but the answer is lost.
    After,
    /// It happens, and the answer never comes.
    Silence,
}

/// Strikes at the call number `at`, from 0.
#[derive(Debug)]
struct Strike {
    at: usize,
    fault: Fault,
    calls: std::sync::Mutex<usize>,
}

impl Interceptor for Strike {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls - 1
        };
        if number != self.at {
            return inner;
        }
        let refused = PortError::new(ErrorKind::Refused, call.method, "simulated", "an injected fault");
        match self.fault {
            Fault::Before => Box::pin(async { Err(refused) }),
            Fault::After => Box::pin(async {
                inner.await?;
                Err(refused.doubtful())
            }),
            Fault::Silence => Box::pin(async {
                let _ = inner.await;
                std::future::pending().await
            }),
        }
    }
}

struct Bench {
    world: Arc<World>,
    kernel: Arc<dyn NetworkHost>,
    ledger: Rc<MemoryLedger>,
}

fn pod_view() -> NamespaceView {
    SimulatedNetwork::pod_view("10.0.0.2/24".parse().unwrap(), "10.0.0.1".parse().unwrap())
}

fn bench(view: NamespaceView) -> Bench {
    let world = Arc::new(World::new());
    let kernel = Arc::new(SimulatedNetwork::new(world.clone()).with_pod(POD, view).unwrap());
    Bench { world, kernel, ledger: Rc::default() }
}

impl Bench {
    fn actor(&self, strike: Option<(usize, Fault)>) -> Address<NetworkActor> {
        let host = match strike {
            None => self.kernel.clone(),
            Some((at, fault)) => {
                NetworkHostProxy::wrap(self.kernel.clone(), Arc::new(Strike { at, fault, calls: 0.into() }))
            }
        };
        let sandbox = SandboxId::new("pod-1").unwrap();
        let journal = Journal::new(self.ledger.clone(), ActorName::Network);
        let identity = Identity {
            actor: ActorName::Network,
            sandbox: sandbox.clone(),
            bound: 8,
            sink: Arc::new(NoTrace),
            cause: CurrentCause::default(),
        };
        actor_shell::spawn(NetworkActor::new(journal, host, sandbox), identity)
    }

    async fn undo(&self, actor: &Address<NetworkActor>) -> UndoReport {
        let mut entries = self.ledger.live();
        entries.reverse();
        actor.ask(UndoNetwork(Undo { entries, vm: VmFate::Gone }), ask()).await.unwrap()
    }
}

fn ask() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(5), cause: None }
}

async fn set_up(
    actor: &Address<NetworkActor>,
    source: NetworkSource,
    model: InterworkingModel,
    queue_pairs: u16,
) -> Result<NetworkIsUp, NetworkError> {
    let request = NetworkRequest { source, model, queue_pairs };
    actor.ask(SetUpNetwork { request, own_namespace: OWN.into() }, ask()).await.unwrap()
}

fn pod() -> NetworkSource {
    NetworkSource::Namespace { path: POD.into() }
}

fn own() -> NetworkSource {
    NetworkSource::Own { addresses: vec!["10.0.0.2/24".parse().unwrap()] }
}

fn on_paused_clock(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

#[test]
fn a_pod_gets_a_tap_and_a_redirect_in_the_ledger_and_loses_them_again() {
    on_paused_clock(async || {
        let bench = bench(pod_view());
        let before = bench.world.list();
        let actor = bench.actor(None);
        let up = set_up(&actor, pod(), InterworkingModel::TcFilter, 2).await.unwrap();
        assert_eq!((up.nics[0].tap.as_str(), up.nics[0].queues.len()), ("tap0_kata", 2));
        let objects: Vec<_> = bench.ledger.live().into_iter().map(|entry| entry.object.clone()).collect();
        let namespace = PathBuf::from(POD);
        let tap = HostObject::Tap {
            namespace: namespace.clone(),
            name: "tap0_kata".to_owned(),
            alias: "resource-actors:pod-1".to_owned(),
        };
        assert_eq!(objects, [tap, HostObject::IngressQdisc { namespace, link: "eth0".to_owned() }]);
        assert!(bench.ledger.live().iter().all(|entry| entry.identity.is_some()));
        let again = set_up(&actor, pod(), InterworkingModel::TcFilter, 2).await;
        assert_eq!(again.unwrap_err(), NetworkError::AlreadyUp);
        assert_eq!(actor.snapshot().borrow().tuns, 2);
        assert!(bench.undo(&actor).await.is_clean());
        assert_eq!(bench.world.list(), before);
        assert_eq!(actor.snapshot().borrow().namespace, None);
    });
}

#[test]
fn what_makes_no_sense_touches_nothing() {
    on_paused_clock(async || {
        let bench = bench(pod_view());
        let before = bench.world.list();
        let actor = bench.actor(None);
        let relative = NetworkSource::Namespace { path: "pod".into() };
        let nowhere = NetworkSource::Namespace { path: "/run/netns/other".into() };
        let nobody = NetworkSource::Own { addresses: Vec::new() };
        for (source, queue_pairs) in [(pod(), 0), (pod(), 257), (relative, 1), (nowhere, 1), (nobody, 1)] {
            let refused = set_up(&actor, source, InterworkingModel::TcFilter, queue_pairs).await;
            assert!(refused.is_err(), "{refused:?}");
        }
        let none = set_up(&actor, pod(), InterworkingModel::None, 1).await.unwrap();
        assert_eq!(none, NetworkIsUp::default());
        assert!(bench.ledger.live().is_empty());
        assert_eq!(bench.world.list(), before);
        assert!(set_up(&actor, pod(), InterworkingModel::TcFilter, 1).await.is_ok());
    });
}

#[test]
fn a_failure_at_any_call_leaves_only_what_the_ledger_knows() {
    on_paused_clock(async || {
        for source in [pod(), own()] {
            for fault in [Fault::Before, Fault::After, Fault::Silence] {
                for at in 0.. {
                    let bench = bench(pod_view());
                    let before = bench.world.list();
                    let actor = bench.actor(Some((at, fault)));
                    if set_up(&actor, source.clone(), InterworkingModel::TcFilter, 1).await.is_ok() {
                        assert!(at >= 3, "each set-up makes three calls at least");
                        break;
                    }
                    // Half of them with an actor that knows nothing.
                    let actor = if at % 2 == 0 { bench.actor(None) } else { actor };
                    let report = bench.undo(&actor).await;
                    assert!(report.is_clean(), "{fault:?} at call {at}: {report:?}");
                    assert_eq!(bench.world.list(), before, "{fault:?} at call {at}");
                    assert!(bench.ledger.live().is_empty());
                    let again = set_up(&actor, source.clone(), InterworkingModel::TcFilter, 1).await;
                    assert!(again.is_ok(), "{fault:?} at call {at}: {again:?}");
                }
            }
        }
    });
}

#[test]
fn a_failure_of_any_undo_is_reported_and_the_next_one_finishes() {
    on_paused_clock(async || {
        for source in [pod(), own()] {
            for outcomes_known in [true, false] {
                for fault in [Fault::Before, Fault::After, Fault::Silence] {
                    for at in 0..5 {
                        let bench = bench(pod_view());
                        let before = bench.world.list();
                        let first = bench.actor(None);
                        set_up(&first, source.clone(), InterworkingModel::TcFilter, 1).await.unwrap();
                        drop(first);
                        if !outcomes_known {
                            bench.ledger.forget_outcomes();
                        }
                        let _ = bench.undo(&bench.actor(Some((at, fault)))).await;
                        let report = bench.undo(&bench.actor(None)).await;
                        assert!(report.is_clean(), "{fault:?} at call {at}: {report:?}");
                        assert_eq!(bench.world.list(), before, "{fault:?} at call {at}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_strangers_tap_is_an_error_and_our_own_leftover_is_replaced() {
    on_paused_clock(async || {
        let mut view = pod_view();
        view.links.push(Link { index: 9, name: "tap0_kata".to_owned(), ..Link::default() });
        let strange = bench(view);
        let error = set_up(&strange.actor(None), pod(), InterworkingModel::TcFilter, 1).await.unwrap_err();
        assert!(matches!(&error, NetworkError::Host(e) if e.kind == ErrorKind::Exists), "{error}");

        let left = bench(pod_view());
        set_up(&left.actor(None), pod(), InterworkingModel::TcFilter, 1).await.unwrap();
        let before = left.world.list();
        // The run directory was lost with the ledger, the namespace was not.
        let later = Bench { world: left.world.clone(), kernel: left.kernel.clone(), ledger: Rc::default() };
        let up = set_up(&later.actor(None), pod(), InterworkingModel::TcFilter, 1).await.unwrap();
        assert!(up.skipped.iter().all(|reason| !reason.contains("tap0_kata")), "{:?}", up.skipped);
        assert_eq!(later.world.list(), before);
        assert!(later.undo(&later.actor(None)).await.is_clean());
    });
}

#[test]
fn a_silent_kernel_is_given_up_at_the_deadline_and_at_an_interruption() {
    on_paused_clock(async || {
        let silent = bench(pod_view());
        let actor = silent.actor(Some((1, Fault::Silence)));
        let start = Instant::now();
        let error = set_up(&actor, pod(), InterworkingModel::TcFilter, 1).await.unwrap_err();
        assert_eq!((error, start.elapsed()), (NetworkError::DeadlinePassed, Duration::from_secs(5)));
        assert_eq!(silent.ledger.live().len(), 1);
        let again = set_up(&actor, pod(), InterworkingModel::TcFilter, 1).await;
        assert_eq!(again.unwrap_err(), NetworkError::AlreadyUp, "the doubtful tap is undone first");

        let silent = bench(pod_view());
        let actor = silent.actor(Some((1, Fault::Silence)));
        let interrupted = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            actor.interrupt();
        };
        let waiting = set_up(&actor, pod(), InterworkingModel::TcFilter, 1);
        let (answer, ()) = tokio::join!(waiting, interrupted);
        assert_eq!(answer.unwrap_err(), NetworkError::Interrupted);
        assert!(silent.undo(&actor).await.is_clean());
    });
}
