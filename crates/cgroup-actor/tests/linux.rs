//! The actor on this host's cgroups, with a child process as the VM. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use cgroup_actor::{
    CgroupActor, CgroupError, CgroupsAreUp, CreateCgroups, LinuxCgroupHost, PlaceVm, UndoCgroups, UpdateCpuset,
};
use sandbox_model::ledger::{Entry, HostObject, Journal, Ledger, Undo, UndoReport, Undone, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, ErrorKind, Instant, SandboxId};
use simulation::MemoryLedger;

/// Where the v1 controller is mounted that these tests look at.
const CPUSET: &str = "/sys/fs/cgroup/cpuset";
/// Where hybrid hosts mount v2.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Whether the test can run. Without its means it is skipped by hand and fails in CI.
fn can_run(what: &str, is_met: bool) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && is_met {
        return true;
    }
    let why = if is_root { what } else { "root" };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs {why}");
    eprintln!("skipped: needs {why}");
    false
}

fn on_v1() -> bool {
    can_run("cgroup v1 with cpuset", Path::new(CPUSET).join("cpuset.cpus").exists())
}

struct Lab {
    sandbox: SandboxId,
    ledger: Rc<MemoryLedger>,
    host: LinuxCgroupHost,
    actor: Address<CgroupActor>,
    /// A process that does nothing.
    vm: Child,
}

/// Not even a test that fails leaves anything behind.
impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.vm.kill();
        let _ = self.vm.wait();
        for path in self.made().iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

fn actor(host: LinuxCgroupHost, ledger: &Rc<MemoryLedger>, sandbox: &SandboxId) -> Address<CgroupActor> {
    let journal = Journal::new(ledger.clone(), ActorName::Cgroup);
    let domain = CgroupActor::new(journal, Arc::new(host), sandbox.clone());
    let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
    actor_shell::spawn(domain, Identity { actor: ActorName::Cgroup, sandbox: sandbox.clone(), bound: 16, sink, cause })
}

impl Lab {
    fn new(name: &str, host: LinuxCgroupHost) -> Self {
        let sandbox = SandboxId::new(format!("test-{name}-{}", std::process::id())).expect("a valid id");
        let ledger = MemoryLedger::new();
        let actor = actor(host.clone(), &ledger, &sandbox);
        // Two threads, as a VMM has a main loop and vCPUs.
        let program =
            "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\ntime.sleep(300)";
        let vm = Command::new("python3").args(["-c", program]).spawn().expect("python3 starts");
        Self { sandbox, ledger, host, actor, vm }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.vm.id()).expect("a pid")
    }

    /// The second thread of the VM, once it is there.
    async fn vcpu(&self) -> i32 {
        for _ in 0..200 {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the VM runs");
            let threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
            if let Some(thread) = threads.filter(|thread: &i32| *thread != self.pid()).max() {
                return thread;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the VM has no second thread");
    }

    async fn create(&self, path: Option<&str>) -> Result<CgroupsAreUp, CgroupError> {
        let path = path.map(str::to_owned);
        let request = CreateCgroups { path, sandbox_only: false, pin_vcpus: false };
        self.actor.ask(request, soon()).await.expect("served")
    }

    async fn place(&self, vcpu_threads: Vec<i32>) -> Result<(), CgroupError> {
        let process = helper_process::identify(self.pid()).expect("the VM runs");
        self.actor.ask(PlaceVm { process, vcpu_threads }, soon()).await.expect("served")
    }

    async fn cpuset(&self, cpus: &str, update: ResourceUpdate) -> Result<String, CgroupError> {
        let container = ContainerId::new("web").expect("a valid id");
        let request = UpdateCpuset { container, cpus: Some(cpus.into()), mems: None, update };
        self.actor.ask(request, soon()).await.expect("served").map(|cpuset| cpuset.cpus)
    }

    async fn undo(&self, entries: Vec<Arc<Entry>>) -> UndoReport {
        // As after a crash: an actor that knows nothing but the entries.
        let fresh = actor(self.host.clone(), &self.ledger, &self.sandbox);
        fresh.ask(UndoCgroups(Undo { entries, vm: VmFate::Gone }), soon()).await.expect("served")
    }

    fn made(&self) -> Vec<PathBuf> {
        let entries = self.ledger.newest_first().into_iter();
        let paths = entries.filter_map(|entry| match &entry.object {
            HostObject::Cgroup { paths } => Some(paths.clone()),
            _ => None,
        });
        paths.flatten().collect()
    }

    fn end_vm(&mut self) {
        let _ = self.vm.kill();
        self.vm.wait().expect("the VM is our child");
    }
}

fn soon() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(10), cause: None }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn numbers(path: &Path) -> BTreeSet<i32> {
    fs::read_to_string(path).expect("readable").lines().filter_map(|line| line.parse().ok()).collect()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("readable").trim().to_owned()
}

fn sandbox_cpuset(up: &CgroupsAreUp) -> PathBuf {
    up.sandbox.iter().find(|path| path.starts_with(CPUSET)).expect("a cpuset group").clone()
}

#[test]
fn vcpus_are_in_the_sandbox_and_the_rest_beside_it_and_nothing_is_left() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("place", LinuxCgroupHost::new());
        let up = lab.create(None).await.unwrap();
        assert!(up.sandbox.len() >= 3 && up.overhead.len() == up.sandbox.len(), "{up:?}");
        let vcpu = lab.vcpu().await;
        lab.place(vec![vcpu]).await.unwrap();
        for (sandbox, overhead) in up.sandbox.iter().zip(&up.overhead) {
            assert_eq!(numbers(&sandbox.join("tasks")), BTreeSet::from([vcpu]), "{}", sandbox.display());
            assert_eq!(numbers(&overhead.join("tasks")), BTreeSet::from([lab.pid()]), "{}", overhead.display());
        }
        let made = lab.made();
        lab.end_vm();
        let report = lab.undo(lab.ledger.newest_first()).await;
        assert!(report.is_clean(), "{report:?}");
        let own = made.iter().filter(|path| path.ends_with(lab.sandbox.as_str()));
        assert!(own.clone().count() > 0 && own.clone().all(|path| !path.exists()));
        assert_eq!(lab.ledger.list(), Vec::<String>::new());
    });
}

#[test]
fn the_cpuset_is_in_force_and_a_refused_one_changes_nothing() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("cpuset", LinuxCgroupHost::new());
        let up = lab.create(None).await.unwrap();
        let group = sandbox_cpuset(&up);
        let all = text(&Path::new(CPUSET).join("cpuset.cpus"));
        assert_eq!(text(&group.join("cpuset.cpus")), all, "a new group has what its parent has");
        let vcpu = lab.vcpu().await;
        lab.place(vec![vcpu]).await.unwrap();
        assert_eq!(lab.cpuset("0", ResourceUpdate::Add).await.unwrap(), "0");
        assert_eq!(text(&group.join("cpuset.cpus")), "0");
        let status = fs::read_to_string(format!("/proc/{}/task/{vcpu}/status", lab.pid())).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");

        // A CPU that the host does not have.
        assert!(matches!(lab.cpuset("0,8000", ResourceUpdate::Update).await, Err(CgroupError::Host(_))));
        assert_eq!(text(&group.join("cpuset.cpus")), "0");
        assert_eq!(lab.cpuset("", ResourceUpdate::Remove).await.unwrap(), "");
        assert_eq!(text(&group.join("cpuset.cpus")), all);
        lab.end_vm();
        assert!(lab.undo(lab.ledger.newest_first()).await.is_clean());
    });
}

#[test]
fn a_group_with_a_live_process_is_named_and_left_and_the_process_stays_confined() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("busy", LinuxCgroupHost::new());
        let up = lab.create(None).await.unwrap();
        let vcpu = lab.vcpu().await;
        lab.place(vec![vcpu]).await.unwrap();
        let report = lab.undo(lab.ledger.newest_first()).await;
        let failed: Vec<_> = report.failed().map(|(_, error)| error.clone()).collect();
        assert_eq!(failed.len(), 2, "{report:?}");
        for error in failed {
            assert_eq!(error.kind, ErrorKind::Busy);
            assert!(error.cause.contains(&lab.pid().to_string()), "{error}");
        }
        assert_eq!(numbers(&sandbox_cpuset(&up).join("tasks")), BTreeSet::from([vcpu]));
        lab.end_vm();
        let report = lab.undo(lab.ledger.newest_first()).await;
        assert!(report.is_clean(), "{report:?}");
    });
}

#[test]
fn only_ancestors_that_we_made_are_removed() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("ancestors", LinuxCgroupHost::new());
        let top = format!("/{}", lab.sandbox);
        let theirs = Path::new(CPUSET).join(lab.sandbox.as_str());
        fs::create_dir(&theirs).unwrap();
        lab.create(Some(&format!("{top}/middle/leaf"))).await.unwrap();
        let made = lab.made();
        assert!(theirs.join("middle/leaf").is_dir() && !made.contains(&theirs));
        lab.end_vm();
        let report = lab.undo(lab.ledger.newest_first()).await;
        let is_left = |path: &&PathBuf| path.exists() && path.to_string_lossy().contains(lab.sandbox.as_str());
        let left: Vec<_> = made.iter().filter(is_left).collect();
        let theirs_is_there = theirs.is_dir();
        fs::remove_dir(&theirs).unwrap();
        assert!(report.is_clean() && left.is_empty() && theirs_is_there, "{report:?} {left:?}");
    });
}

#[test]
fn sandboxes_share_the_joint_parent_and_each_undo_is_harmless_twice() {
    if !on_v1() {
        return;
    }
    run(async {
        let (mut one, mut two) =
            (Lab::new("joint-1", LinuxCgroupHost::new()), Lab::new("joint-2", LinuxCgroupHost::new()));
        let ups = [one.create(None).await.unwrap(), two.create(None).await.unwrap()];
        let groups = ups.each_ref().map(sandbox_cpuset);
        assert_eq!(groups[0].parent(), groups[1].parent());
        one.end_vm();
        two.end_vm();
        let entries = one.ledger.newest_first();
        assert!(one.undo(entries.clone()).await.is_clean());
        assert!(!groups[0].exists() && groups[1].is_dir(), "the parent holds the other's group");
        assert!(one.undo(entries.clone()).await.is_clean());
        // As after a crash between the first undo and its record.
        for entry in entries.iter().rev() {
            one.ledger.intend(entry.actor, entry.scope.clone(), entry.object.clone()).unwrap();
        }
        let ids = one.ledger.newest_first().into_iter().map(|entry| entry.id);
        let unrecorded =
            ids.zip(entries).map(|(id, entry)| Arc::new(Entry { id, ..Arc::unwrap_or_clone(entry) })).collect();
        let report = one.undo(unrecorded).await;
        assert!(report.items.iter().all(|item| item.result == Ok(Undone::AlreadyGone)), "{report:?}");
        assert!(groups[1].is_dir() && one.ledger.list().is_empty());
        assert!(two.undo(two.ledger.newest_first()).await.is_clean());
        assert!(!groups[1].exists());
    });
}

#[test]
fn a_group_that_is_another_one_now_is_left_alone() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("inode", LinuxCgroupHost::new());
        let group = sandbox_cpuset(&lab.create(None).await.unwrap());
        lab.end_vm();
        fs::remove_dir(&group).unwrap();
        // Another test's undo may take the parent, which is empty for a moment, along.
        fs::create_dir_all(&group).unwrap();
        let report = lab.undo(lab.ledger.newest_first()).await;
        let is_left = group.is_dir();
        fs::remove_dir(&group).unwrap();
        let failed: Vec<_> = report.failed().map(|(_, error)| error.clone()).collect();
        assert!(is_left && failed.len() == 1, "{report:?}");
        assert_eq!(failed[0].kind, ErrorKind::Foreign);
        assert!(failed[0].cause.contains(&group.display().to_string()), "{}", failed[0]);
        // Once the stranger is gone there is nothing left to do.
        assert!(lab.undo(lab.ledger.newest_first()).await.is_clean());
    });
}

#[test]
fn a_group_of_our_name_is_not_joined_and_what_was_made_before_it_was_met_goes() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("taken", LinuxCgroupHost::new());
        lab.end_vm();
        let name = format!("resource-actors/{}", lab.sandbox);
        let theirs = Path::new(CPUSET).join(&name);
        fs::create_dir_all(&theirs).unwrap();
        let refused = lab.create(None).await;
        let all = fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(Result::ok).map(|found| found.path().join(&name));
        let left: Vec<_> = all.filter(|path| path.exists()).collect();
        fs::remove_dir(&theirs).unwrap();
        // Another test's sandbox may use it.
        let _ = fs::remove_dir(theirs.parent().unwrap());
        assert!(matches!(&refused, Err(CgroupError::Host(error)) if error.kind == ErrorKind::Exists), "{refused:?}");
        assert_eq!((left, lab.ledger.list()), (vec![theirs], vec![]));
    });
}

#[test]
fn an_intent_without_an_outcome_is_undone_by_what_is_there() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("intent", LinuxCgroupHost::new());
        lab.create(None).await.unwrap();
        lab.end_vm();
        let made = lab.made();
        let mut entries = lab.ledger.newest_first();
        entries.iter_mut().for_each(|entry| Arc::make_mut(entry).identity = None);
        let report = lab.undo(entries).await;
        assert!(report.is_clean(), "{report:?}");
        assert!(made.iter().all(|path| !path.exists() || !path.ends_with(lab.sandbox.as_str())));
    });
}

#[test]
fn on_v2_the_whole_vm_is_placed() {
    if !can_run("a cgroup v2 hierarchy", Path::new(UNIFIED).join("cgroup.procs").exists()) {
        return;
    }
    run(async {
        let mut lab = Lab::new("v2", LinuxCgroupHost::unified_at(UNIFIED));
        let before = text(&Path::new(UNIFIED).join("cgroup.subtree_control"));
        let up = lab.create(None).await.unwrap();
        assert_eq!((up.sandbox.len(), up.overhead.len()), (1, 0), "{up:?}");
        let told = |what: &str| up.not_enforced.iter().any(|reason| reason.contains(what));
        assert!(told("overhead") && (told("cpuset") || before.contains("cpuset")), "{up:?}");
        assert_eq!(lab.cpuset("0", ResourceUpdate::Add).await.unwrap(), "0", "told above, not an error here");
        let vcpu = lab.vcpu().await;
        lab.place(vec![vcpu]).await.unwrap();
        assert_eq!(numbers(&up.sandbox[0].join("cgroup.procs")), BTreeSet::from([lab.pid()]));
        assert_eq!(text(&Path::new(UNIFIED).join("cgroup.subtree_control")), before, "ancestors are not touched");
        let report = lab.undo(lab.ledger.newest_first()).await;
        assert_eq!(report.failed().next().map(|(_, error)| error.kind), Some(ErrorKind::Busy));
        lab.end_vm();
        let report = lab.undo(lab.ledger.newest_first()).await;
        assert!(report.is_clean() && !up.sandbox[0].exists(), "{report:?}");
    });
}

#[test]
fn a_process_that_is_not_the_one_meant_is_not_moved() {
    if !on_v1() {
        return;
    }
    run(async {
        let mut lab = Lab::new("foreign", LinuxCgroupHost::new());
        let up = lab.create(None).await.unwrap();
        let mut process = helper_process::identify(lab.pid()).unwrap();
        process.start_ticks += 1;
        let vcpu_threads = vec![lab.vcpu().await];
        let refused = lab.actor.ask(PlaceVm { process, vcpu_threads }, soon()).await.unwrap();
        assert!(matches!(&refused, Err(CgroupError::Host(error)) if error.kind == ErrorKind::Foreign), "{refused:?}");
        let not_its_own = lab.place(vec![1]).await;
        assert!(matches!(&not_its_own, Err(CgroupError::Host(error)) if error.kind == ErrorKind::NotFound));
        assert!(numbers(&sandbox_cpuset(&up).join("tasks")).is_empty());
        lab.end_vm();
        assert!(lab.undo(lab.ledger.newest_first()).await.is_clean());
    });
}
