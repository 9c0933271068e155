//! A process dies at any point of a sandbox's life; the next one goes on as if nothing had happened,
//! or releases all that is left.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use lifecycle_tests::killed::{At, process};
use lifecycle_tests::simulated::{
    DISK, add_container, bind, container, create, in_virtual_time, limits, resources, system_on,
};
use resource_actors::ledger::{MemoryStore, SandboxStore};
use resource_actors::system::Intercept;
use resource_actors::{Recovered, ResourceSystem, SandboxError, SandboxHandle};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::{ResourceUpdate, RootfsRequest, RootfsSource, VolumesRequest};
use serde_json::Value;
use simulation::World;

const NAME: &str = "left";

fn id() -> SandboxId {
    SandboxId::new(NAME).unwrap()
}

/// What a host has: its kernel, and the state directory.
struct Host {
    world: Arc<World>,
    store: MemoryStore,
}

impl Host {
    fn new() -> Self {
        Self { world: Arc::new(World::new()), store: MemoryStore::new("/run/simulated") }
    }

    fn system(&self, intercept: Option<Intercept>) -> ResourceSystem {
        system_on(&self.world, &self.store, None, intercept)
    }
}

/// The steps of a life that touches every actor.
const STEPS: usize = 10;

async fn step(sandbox: &SandboxHandle, n: usize) -> Result<(), SandboxError> {
    match n {
        0 => sandbox.prepare_before_start_vm(resources()).await,
        1 => sandbox.start_vm().await,
        2 => sandbox.setup_after_start_vm().await,
        3 => add_disks(sandbox, "block").await,
        4 => add_container(sandbox, "one").await,
        5 => add_container(sandbox, "two").await,
        6 => {
            let limits = limits(250_000, 400 << 20);
            sandbox.update_linux_resources(container("two"), Some(limits), ResourceUpdate::Update).await.map(drop)
        }
        7 => sandbox.release_container(container("one")).await.map(|report| assert!(report.is_clean(), "{report:?}")),
        8 => sandbox.release_container(container("block")).await.map(|report| assert!(report.is_clean(), "{report:?}")),
        9 => add_disks(sandbox, "again").await,
        _ => unreachable!("there are {STEPS} steps"),
    }
}

/// A container on a disk of its own, with one that others may use.
async fn add_disks(sandbox: &SandboxHandle, name: &str) -> Result<(), SandboxError> {
    let source =
        RootfsSource::Block { path: format!("/images/{name}.raw").into(), fstype: "ext4".into(), options: vec![] };
    sandbox.set_up_rootfs(RootfsRequest { container: container(name), source, read_only: true }).await?;
    let mounts = vec![bind(DISK, "/disk", &["rbind", "rw"]), bind("/srv/common", "/common", &["rbind", "rw"])];
    sandbox.set_up_volumes(VolumesRequest { container: container(name), mounts }).await.map(drop)
}

/// What a sandbox looks like. Left out are what no later process can know again: how often it was
/// published, and descriptors of taps; and the VM's size, which a VMM does not take back.
fn look(sandbox: &SandboxHandle, host: &Host) -> (Value, Vec<String>) {
    let mut dump = sandbox.dump();
    dump["status"].as_object_mut().unwrap().remove("revision");
    dump["network"].as_object_mut().unwrap().remove("tuns");
    dump["cpu"].as_object_mut().unwrap().remove("now");
    dump["cgroup"].as_object_mut().unwrap().remove("vcpu_threads");
    (dump, host.world.list())
}

/// The same after each step of a life that nobody disturbs, and how many calls each step makes.
struct Undisturbed {
    after: Vec<(Value, Vec<String>)>,
    calls: usize,
}

fn undisturbed() -> Undisturbed {
    let host = Host::new();
    let (after, calls) = process(None, |intercept| async {
        let system = host.system(Some(intercept));
        let sandbox = create(&system, NAME).await.unwrap();
        let mut after = vec![look(&sandbox, &host)];
        for n in 0..STEPS {
            step(&sandbox, n).await.unwrap();
            after.push(look(&sandbox, &host));
        }
        after
    });
    Undisturbed { after: after.unwrap(), calls }
}

/// A life that dies at a point; returns the number of steps that have succeeded.
fn live_until(host: &Host, at: At) -> usize {
    let succeeded = Rc::new(Cell::new(0));
    let (outcome, _) = process(Some(at), |intercept| {
        let (succeeded, system) = (succeeded.clone(), host.system(Some(intercept)));
        async move {
            let sandbox = create(&system, NAME).await.unwrap();
            for n in 0..STEPS {
                step(&sandbox, n).await.unwrap();
                succeeded.set(n + 1);
            }
        }
    });
    assert!(outcome.is_none(), "{at:?} is beyond the end");
    succeeded.get()
}

async fn recover(system: &ResourceSystem) -> Option<SandboxHandle> {
    match system.recover(&id()).await.unwrap() {
        Recovered::Adopted(sandbox) => Some(sandbox),
        Recovered::Released { report, .. } => {
            assert!(report.is_clean(), "{report:#?}");
            None
        }
    }
}

/// Whether what was found is what an undisturbed life has after `steps` steps, or would have if the
/// part of the next one that had been committed were all of it.
fn assert_same(found: &(Value, Vec<String>), life: &Undisturbed, steps: usize, at: At) -> usize {
    let is_after = |n: &usize| life.after.get(*n) == Some(found);
    // A release that had begun has been brought to its end.
    if let Some(n) = [steps, steps + 1].into_iter().find(is_after) {
        return n;
    }
    // Some steps of this life are several messages; those that were committed stay.
    assert!([3, 4, 5, 9].contains(&steps), "{at:?} in step {steps}: {found:#?}\nnot {:#?}", life.after[steps]);
    steps
}

#[test]
fn a_sandbox_goes_on_wherever_its_process_died() {
    let life = undisturbed();
    assert!(life.calls > 80, "{} calls", life.calls);
    let mut adopted = 0;
    for at in At::every(life.calls) {
        let host = Host::new();
        let succeeded = live_until(&host, at);
        in_virtual_time(|| async {
            let system = host.system(None);
            let Some(sandbox) = recover(&system).await else {
                assert!(succeeded < 2, "{at:?}: released after step {succeeded}");
                assert_eq!(host.world.list(), Vec::<String>::new(), "{at:?}");
                assert_eq!(host.store.list().unwrap(), [], "{at:?}");
                return;
            };
            adopted += 1;
            let next = assert_same(&look(&sandbox, &host), &life, succeeded, at);
            // What the cut-off step had committed is done again by no caller; the rest is.
            for name in ["block", "one", "two", "again"] {
                let is_half =
                    next == succeeded && [(3, "block"), (4, "one"), (5, "two"), (9, "again")].contains(&(next, name));
                if is_half {
                    let report = sandbox.release_container(container(name)).await.unwrap();
                    assert!(report.is_clean(), "{at:?}: {report:#?}");
                    assert_eq!(look(&sandbox, &host).1, life.after[next].1, "{at:?}");
                }
            }
            for n in next..STEPS {
                step(&sandbox, n).await.unwrap_or_else(|error| panic!("{at:?}: step {n}: {error}"));
            }
            assert_eq!(sandbox.status().state, LifecycleState::Running);
            assert_eq!(sandbox.status().containers, life.after[STEPS].0["status"]["containers"], "{at:?}");
            let report = sandbox.cleanup().await.unwrap();
            assert!(report.is_clean(), "{at:?}: {report:#?}");
            assert_eq!(host.world.list(), Vec::<String>::new(), "{at:?}");
        });
    }
    assert!(adopted > 60, "{adopted} of {} points", life.calls * 2);
}

#[test]
fn recovering_twice_is_as_good_as_once() {
    let life = undisturbed();
    for at in At::every(life.calls).step_by(5) {
        let host = Host::new();
        live_until(&host, at);
        let once = || {
            in_virtual_time(|| async {
                let system = host.system(None);
                let sandbox = recover(&system).await?;
                let again = recover(&system).await.unwrap();
                assert_eq!(look(&again, &host), look(&sandbox, &host), "in one process");
                Some(look(&sandbox, &host))
            })
        };
        let Some(first) = once() else { continue };
        assert_eq!(once(), Some(first), "{at:?}");
    }
}

#[test]
fn a_process_that_dies_while_it_recovers_leaves_nothing_to_the_next() {
    let life = undisturbed();
    let mut deaths = 0;
    for at in At::every(life.calls).step_by(11) {
        let host = Host::new();
        live_until(&host, at);
        let mut call = 0;
        loop {
            for done in [false, true] {
                let host = Host::new();
                let succeeded = live_until(&host, at);
                let (outcome, _) = process(Some(At { call, done }), |intercept| {
                    let system = host.system(Some(intercept));
                    async move { recover(&system).await.is_some() }
                });
                deaths += usize::from(outcome.is_none());
                in_virtual_time(|| async {
                    let system = host.system(None);
                    if host.store.list().unwrap().is_empty() {
                        assert_eq!(host.world.list(), Vec::<String>::new(), "{at:?}, then {call}");
                        return;
                    }
                    match recover(&system).await {
                        Some(sandbox) => {
                            assert_same(&look(&sandbox, &host), &life, succeeded, at);
                            assert!(sandbox.cleanup().await.unwrap().is_clean());
                        }
                        None => assert!(succeeded < 2, "{at:?}, then {call}"),
                    }
                    assert_eq!(host.world.list(), Vec::<String>::new(), "{at:?}, then {call}");
                });
            }
            let host = Host::new();
            live_until(&host, at);
            let (outcome, _) = process(Some(At { call: call + 1, done: false }), |intercept| {
                let system = host.system(Some(intercept));
                async move { recover(&system).await.is_some() }
            });
            if outcome.is_some() {
                break;
            }
            call += 1;
        }
    }
    assert!(deaths > 100, "{deaths}");
}

#[test]
fn what_the_kernel_does_not_confirm_is_released() {
    let lose = |what: &str| -> Box<dyn Fn(&World)> {
        let what = what.to_owned();
        Box::new(move |world| {
            let lost =
                world.list().into_iter().find(|line| line.contains(&what)).unwrap_or_else(|| panic!("no {what}"));
            let (kind, name) = lost.split_once(' ').unwrap();
            let kinds = ["tap", "directory", "mount", "cgroup", "process", "vm-device", "netns"];
            let kind = kinds.into_iter().find(|known| *known == kind).unwrap();
            world.remove("lose", kind, name).unwrap();
        })
    };
    for what in
        ["tap ", "directory /run/simulated/left/rw/passthrough/sandbox-", "mount ", "cgroup ", "process virtiofsd"]
    {
        let host = Host::new();
        process(None, |_| async {
            let system = host.system(None);
            let sandbox = create(&system, NAME).await.unwrap();
            for n in 0..5 {
                step(&sandbox, n).await.unwrap();
            }
        });
        lose(what)(&host.world);
        in_virtual_time(|| async {
            let system = host.system(None);
            let Recovered::Released { report, why } = system.recover(&id()).await.unwrap() else {
                panic!("adopted without its {what}");
            };
            assert!(why.contains("Adopt"), "{why}");
            assert!(report.is_clean(), "{what}: {report:#?}");
            assert_eq!(host.world.list(), Vec::<String>::new(), "{what}");
        });
    }
}

#[test]
fn a_sandbox_whose_clean_up_had_begun_is_not_taken_over() {
    for call in 0..3 {
        let host = Host::new();
        let calls = process(None, |intercept| async {
            let system = host.system(Some(intercept));
            let sandbox = create(&system, NAME).await.unwrap();
            for n in 0..5 {
                step(&sandbox, n).await.unwrap();
            }
        })
        .1;
        let host = Host::new();
        let (outcome, _) = process(Some(At { call: calls + call, done: false }), |intercept| async {
            let system = host.system(Some(intercept));
            let sandbox = create(&system, NAME).await.unwrap();
            for n in 0..5 {
                step(&sandbox, n).await.unwrap();
            }
            sandbox.cleanup().await
        });
        assert!(outcome.is_none());
        in_virtual_time(|| async {
            assert!(recover(&host.system(None)).await.is_none());
            assert_eq!(host.world.list(), Vec::<String>::new());
        });
    }
}

/// C7: a hundred sandboxes through six restarts; each is adopted or released, and none is lost.
#[test]
fn a_hundred_sandboxes_go_on_through_six_restarts() {
    const RESTARTS: usize = 6;
    let host = Host::new();
    let name = |n: usize| format!("many-{n}");
    process(None, |_| async {
        let system = host.system(None);
        for sandbox in 0..100 {
            let steps = if sandbox % 5 == 0 { 1 } else { 4 };
            let sandbox = create(&system, &name(sandbox)).await.unwrap();
            for n in 0..steps {
                step(&sandbox, n).await.unwrap();
            }
        }
    });
    for restart in 1..=RESTARTS {
        let (outcome, _) = process(None, |_| async {
            let system = host.system(None);
            let recovered = system.recover_all().await.unwrap();
            let adopted = recovered.values().filter(|one| matches!(one, Ok(Recovered::Adopted(_)))).count();
            let is_clean = |one: &&_| matches!(one, Ok(Recovered::Released { report, .. }) if report.is_clean());
            let released = recovered.values().filter(is_clean).count();
            // Every fifth had no VM yet, so there was nothing to go on with.
            assert_eq!((adopted, released), (80, if restart == 1 { 20 } else { 0 }), "{recovered:?}");
            assert_eq!(system.sandboxes().len(), 80);
            // Those that go on do so in earnest.
            let one = SandboxId::new(name(restart * 5 + 1)).unwrap();
            step(&system.sandbox(&one).unwrap(), 4).await.unwrap();
            system.leave().await;
        });
        assert!(outcome.is_some());
    }
    in_virtual_time(|| async {
        let system = host.system(None);
        assert_eq!(system.recover_all().await.unwrap().len(), 80);
        let left = system.shutdown().await;
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(host.world.list(), Vec::<String>::new());
    });
}
