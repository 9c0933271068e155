//! The actor on a simulated host: what it asks, what it keeps, what it gives back.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use cgroup_actor::host::{CgroupHost, CgroupHostProxy};
use cgroup_actor::{
    CgroupActor, CgroupError, CgroupsAreUp, Cpuset, CreateCgroups, PlaceVcpus, PlaceVm, UndoCgroups, UpdateCpuset,
};
use sandbox_model::ledger::{Journal, ProcessIdentity, Undo, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, ErrorKind, Instant, PortError, SandboxId};
use simulation::{Fault, Faults, MemoryLedger, SimulatedCgroupHost, World};

struct Lab {
    world: Arc<World>,
    ledger: Rc<MemoryLedger>,
    faults: Arc<Faults>,
    actor: Address<CgroupActor>,
}

impl Lab {
    fn new() -> Self {
        let world = Arc::new(World::new());
        Self::with(world.clone(), MemoryLedger::new(), Arc::new(SimulatedCgroupHost::new(world)))
    }

    fn with(world: Arc<World>, ledger: Rc<MemoryLedger>, host: Arc<dyn CgroupHost>) -> Self {
        let (faults, sandbox) = (Faults::new(), SandboxId::new("pod").expect("a valid id"));
        let journal = Journal::new(ledger.clone(), ActorName::Cgroup);
        let domain = CgroupActor::new(journal, CgroupHostProxy::wrap(host, faults.clone()), sandbox.clone());
        let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
        let identity = Identity { actor: ActorName::Cgroup, sandbox, bound: 16, sink, cause };
        Self { world, ledger, faults, actor: actor_shell::spawn(domain, identity) }
    }

    async fn create(&self, path: Option<&str>) -> Result<CgroupsAreUp, CgroupError> {
        let path = path.map(str::to_owned);
        self.actor.ask(CreateCgroups { path, sandbox_only: false, pin_vcpus: true }, soon()).await.expect("served")
    }

    async fn place(&self, vcpu_threads: &[i32]) -> Result<(), CgroupError> {
        let process = ProcessIdentity { pid: 10, start_ticks: 1 };
        self.actor.ask(PlaceVm { process, vcpu_threads: vcpu_threads.to_vec() }, soon()).await.expect("served")
    }

    async fn cpuset(&self, container: &str, cpus: &str, update: ResourceUpdate) -> Result<Cpuset, CgroupError> {
        let container = ContainerId::new(container).expect("a valid id");
        let request = UpdateCpuset { container, cpus: Some(cpus.into()), mems: None, update };
        self.actor.ask(request, soon()).await.expect("served")
    }

    async fn undo_all(&self, vm: VmFate) -> UndoReport {
        let entries = self.ledger.newest_first();
        self.actor.ask(UndoCgroups(Undo { entries, vm }), soon()).await.expect("served")
    }
}

fn soon() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(10), cause: None }
}

fn refusal() -> PortError {
    PortError::new(ErrorKind::Refused, "test", "cgroup", "injected")
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("complete");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

const SANDBOX: &str = "/sys/fs/cgroup/simulated/resource-actors/pod";

#[test]
fn groups_come_up_hold_the_vm_and_go() {
    run(async {
        let lab = Lab::new();
        assert_eq!(lab.place(&[11]).await, Err(CgroupError::NotUp));
        let up = lab.create(None).await.unwrap();
        assert_eq!(up.sandbox, [std::path::Path::new(SANDBOX)]);
        assert_eq!((up.overhead.len(), up.not_enforced.len()), (1, 0));
        assert_eq!(lab.create(None).await, Err(CgroupError::AlreadyUp));
        assert!(matches!(lab.place(&[]).await, Err(CgroupError::Invalid { .. })));
        lab.faults.take_calls();
        lab.place(&[11, 12]).await.unwrap();
        assert_eq!(lab.faults.take_calls(), ["place", "place", "pin_threads"]);
        lab.actor.ask(PlaceVcpus { vcpu_threads: vec![11, 12, 13] }, soon()).await.unwrap().unwrap();
        assert_eq!(lab.faults.take_calls(), ["place", "pin_threads"]);

        assert!(lab.undo_all(VmFate::Gone).await.is_clean());
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
        lab.create(None).await.unwrap();
    });
}

#[test]
fn the_cpuset_is_the_union_of_those_who_are_there() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        assert_eq!(lab.cpuset("a", "0-1", ResourceUpdate::Add).await.unwrap().cpus, "0-1");
        assert_eq!(lab.cpuset("b", "1-3", ResourceUpdate::Add).await.unwrap().cpus, "0-3");
        lab.faults.take_calls();
        assert_eq!(lab.cpuset("b", "1-3", ResourceUpdate::Update).await.unwrap().cpus, "0-3");
        assert!(lab.faults.take_calls().is_empty(), "nothing has changed");
        assert_eq!(lab.cpuset("b", "5", ResourceUpdate::Update).await.unwrap().cpus, "0-1,5");
        assert_eq!(lab.ledger.list().len(), 4, "one share for each container");
        assert_eq!(lab.cpuset("a", "", ResourceUpdate::Remove).await.unwrap().cpus, "5");
        assert_eq!(lab.ledger.list().len(), 3);
        assert!(matches!(lab.cpuset("c", "3-1", ResourceUpdate::Add).await, Err(CgroupError::Invalid { .. })));
    });
}

#[test]
fn a_refused_cpuset_leaves_the_one_before() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.cpuset("a", "0", ResourceUpdate::Add).await.unwrap();
        lab.faults.take_calls();
        lab.faults.on("set_cpuset", Fault::HappensAndFails(refusal().doubtful()));
        lab.cpuset("b", "1", ResourceUpdate::Add).await.unwrap_err();
        assert_eq!(lab.faults.take_calls(), ["set_cpuset", "set_cpuset"], "the old one is written again");
        // The failed share's entry is the supervisor's to undo; the union has not grown by it.
        let entries: Vec<_> = lab.ledger.newest_first().into_iter().take(1).collect();
        let undo = UndoCgroups(Undo { entries, vm: VmFate::Alive });
        assert!(lab.actor.ask(undo, soon()).await.unwrap().is_clean());
        assert_eq!(lab.cpuset("c", "2", ResourceUpdate::Add).await.unwrap().cpus, "0,2");
    });
}

#[test]
fn a_cpuset_of_unknown_outcome_is_written_again() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.cpuset("a", "0", ResourceUpdate::Add).await.unwrap();
        for fault in [Fault::Hangs, Fault::HappensAndHangs] {
            lab.faults.on("set_cpuset", fault);
            assert_eq!(lab.cpuset("b", "1", ResourceUpdate::Add).await, Err(CgroupError::DeadlinePassed));
            assert!(lab.actor.snapshot().borrow().doubtful_cpuset);
            lab.faults.take_calls();
            // Its undo does not find it in the table, but the kernel may have it.
            let entries: Vec<_> = lab.ledger.newest_first().into_iter().take(1).collect();
            let undo = UndoCgroups(Undo { entries, vm: VmFate::Alive });
            assert!(lab.actor.ask(undo, soon()).await.unwrap().is_clean());
            assert_eq!(lab.faults.take_calls(), ["set_cpuset"]);
            assert!(!lab.actor.snapshot().borrow().doubtful_cpuset);
        }
        lab.faults.on("set_cpuset", Fault::HappensAndHangs);
        assert_eq!(lab.cpuset("a", "1", ResourceUpdate::Update).await, Err(CgroupError::DeadlinePassed));
        lab.faults.take_calls();
        assert_eq!(lab.cpuset("a", "0", ResourceUpdate::Update).await.unwrap().cpus, "0");
        assert_eq!(lab.faults.take_calls(), ["set_cpuset"], "what the table says may not be what is in force");
    });
}

#[test]
fn a_container_without_a_cpuset_changes_no_group() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.faults.take_calls();
        lab.cpuset("a", "", ResourceUpdate::Add).await.unwrap();
        let entries: Vec<_> = lab.ledger.newest_first().into_iter().take(1).collect();
        let undo = UndoCgroups(Undo { entries, vm: VmFate::Alive });
        assert!(lab.actor.ask(undo, soon()).await.unwrap().is_clean());
        lab.cpuset("b", "", ResourceUpdate::Add).await.unwrap();
        assert!(lab.faults.take_calls().is_empty());
    });
}

#[test]
fn a_group_of_our_name_that_is_there_is_not_joined() {
    run(async {
        let lab = Lab::new();
        lab.world.make("mkdir", "cgroup", SANDBOX).unwrap();
        let refused = lab.create(None).await;
        assert!(matches!(&refused, Err(CgroupError::Host(error)) if error.kind == ErrorKind::Exists), "{refused:?}");
        assert_eq!((lab.world.list().len(), lab.ledger.list().len()), (1, 0), "nothing is ours");
    });
}

#[test]
fn a_failed_start_can_be_tried_again() {
    run(async {
        let lab = Lab::new();
        // The sandbox's group comes up, the overhead's does not.
        lab.world.make("mkdir", "cgroup", SANDBOX.replace("actors/", "actors-overhead/")).unwrap();
        lab.create(None).await.unwrap_err();
        assert_eq!(lab.ledger.list().len(), 1);
        assert!(lab.undo_all(VmFate::Gone).await.is_clean());
        lab.world.remove("rmdir", "cgroup", &SANDBOX.replace("actors/", "actors-overhead/")).unwrap();
        lab.create(None).await.unwrap();

        let world = Arc::new(World::new());
        let lab = Lab::with(world.clone(), MemoryLedger::new(), Arc::new(SimulatedCgroupHost::read_only(world)));
        assert_eq!(lab.create(None).await, lab.create(None).await, "an undo leaves no trace of what was not made");
    });
}

#[test]
fn the_state_is_seen_without_asking() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.place(&[11, 12]).await.unwrap();
        lab.cpuset("a", "0-1", ResourceUpdate::Add).await.unwrap();
        let brief = serde_json::to_value(&*lab.actor.snapshot().borrow()).unwrap();
        assert_eq!(brief["sandbox"][0], SANDBOX);
        assert_eq!((&brief["vcpu_threads"][1], &brief["cpuset"]["cpus"]), (&12.into(), &"0-1".into()));
        lab.undo_all(VmFate::Gone).await;
        assert_eq!(*lab.actor.snapshot().borrow(), cgroup_actor::CgroupsInBrief::default());
    });
}

#[test]
fn an_undone_share_is_taken_out_of_the_cpuset_in_force() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.cpuset("a", "0", ResourceUpdate::Add).await.unwrap();
        lab.cpuset("b", "1", ResourceUpdate::Add).await.unwrap();
        lab.faults.take_calls();
        let entries: Vec<_> = lab.ledger.newest_first().into_iter().take(1).collect();
        let undo = UndoCgroups(Undo { entries, vm: VmFate::Alive });
        assert!(lab.actor.ask(undo, soon()).await.unwrap().is_clean());
        assert_eq!(lab.faults.take_calls(), ["set_cpuset"]);
        assert_eq!(lab.cpuset("c", "2", ResourceUpdate::Add).await.unwrap().cpus, "0,2");
    });
}

#[test]
fn vcpus_are_unpinned_when_one_of_them_cannot_be_pinned() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.place(&[11]).await.unwrap();
        lab.faults.take_calls();
        lab.faults.on("pin_threads", Fault::Fails(refusal()));
        lab.cpuset("a", "0", ResourceUpdate::Add).await.unwrap_err();
        assert_eq!(lab.faults.take_calls(), ["set_cpuset", "pin_threads", "pin_threads", "set_cpuset"]);
    });
}

#[test]
fn a_host_without_cgroups_says_so_and_later_messages_do_nothing() {
    run(async {
        let world = Arc::new(World::new());
        let lab = Lab::with(world.clone(), MemoryLedger::new(), Arc::new(SimulatedCgroupHost::read_only(world)));
        let up = lab.create(None).await.unwrap();
        assert!(up.sandbox.is_empty() && up.not_enforced[0].contains("not writable"), "{up:?}");
        lab.faults.take_calls();
        lab.place(&[11]).await.unwrap();
        assert_eq!(lab.cpuset("a", "0", ResourceUpdate::Add).await.unwrap(), Cpuset::default());
        assert_eq!((lab.faults.take_calls().len(), lab.ledger.list().len()), (0, 0));
    });
}

#[test]
fn paths_that_cannot_be_are_refused_before_anything_is_made() {
    run(async {
        let lab = Lab::new();
        for path in ["/../root", "system.slice:kata:pod"] {
            assert!(matches!(lab.create(Some(path)).await, Err(CgroupError::Invalid { .. })), "{path}");
        }
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
        lab.create(Some("/kubepods/pod1")).await.unwrap();
    });
}

#[test]
fn a_making_that_hangs_is_undone_from_its_intent_by_a_fresh_actor() {
    run(async {
        for fault in [Fault::Hangs, Fault::HappensAndHangs] {
            let lab = Lab::new();
            lab.faults.on("make_group", fault);
            assert_eq!(lab.create(None).await, Err(CgroupError::DeadlinePassed));
            assert!(lab.ledger.newest_first()[0].identity.is_none());
            let host = Arc::new(SimulatedCgroupHost::new(lab.world.clone()));
            let reborn = Lab::with(lab.world.clone(), lab.ledger.clone(), host);
            assert!(reborn.undo_all(VmFate::Gone).await.is_clean());
            assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
        }
    });
}

#[test]
fn a_group_that_is_another_one_now_is_left_alone() {
    run(async {
        let lab = Lab::new();
        lab.create(None).await.unwrap();
        lab.world.remove("rmdir", "cgroup", SANDBOX).unwrap();
        lab.world.make("mkdir", "cgroup", SANDBOX).unwrap();
        let report = lab.undo_all(VmFate::Gone).await;
        let kinds: Vec<_> = report.failed().map(|(_, error)| error.kind).collect();
        assert_eq!((kinds, lab.world.list().len()), (vec![ErrorKind::Foreign], 1));
    });
}
