//! A process with a real VM is killed; the next one takes the VM over, or releases what is left.
//! Needs root, QEMU and the guest's image.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(clippy::disallowed_methods, reason = "a test of another process may wait")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifecycle_tests::real::{Container, Disk, Guest, Lab, PodNetwork, Remains, boot, essentials, system, text};
use lifecycle_tests::simulated::{bind, container};
use resource_actors::{Recovered, SandboxSpec};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::{ResourceConfig, VolumesRequest};
use serde::{Deserialize, Serialize};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(170);
/// Tells the process that dies what it has to do.
const TASK: &str = "RESOURCE_ACTORS_TEST_TASK";
const WAIT: &str = "echo begun > /shared/one; sleep 1000";

/// What the process that dies does until it is killed.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    state: PathBuf,
    id: SandboxId,
    namespace: PathBuf,
    rootfs: PathBuf,
    shared: PathBuf,
    disk: PathBuf,
}

/// The process that dies. As a test of its own it has no task and does nothing.
#[test]
fn the_process_that_dies() {
    let Some(task) = std::env::var_os(TASK) else { return };
    let task: Task = serde_json::from_str(task.to_str().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(live(task));
}

fn say(word: &str) {
    // Not by `println!`, which the test harness would keep.
    let said = writeln!(std::io::stderr(), "task: {word}");
    said.unwrap();
}

async fn live(task: Task) {
    let guest = Guest::find().unwrap();
    let system = system(&task.state, None);
    let spec = SandboxSpec { id: task.id.clone(), config: guest.config().into(), cgroups_path: None };
    let sandbox = system.create_sandbox(spec).await.unwrap();
    let mut resources = essentials();
    resources.push(ResourceConfig::Network(NetworkRequest {
        source: NetworkSource::Namespace { path: task.namespace },
        model: InterworkingModel::TcFilter,
        queue_pairs: 1,
    }));
    say("preparing");
    boot(&sandbox, resources).await;
    let one = Container { sandbox: &sandbox, id: container("one") };
    let shared = bind(&text(&task.shared), "/shared", &["rbind", "rw"]);
    one.start(task.rootfs, vec![shared.clone()], None, WAIT).await;
    say("runs");
    let mounts = vec![bind(&text(&task.disk), "/disk", &["rbind", "rw"]), shared];
    let request = VolumesRequest { container: container("cut-off"), mounts };
    loop {
        // It comes and goes until we are killed in the middle.
        sandbox.set_up_volumes(request.clone()).await.unwrap();
        say("plugged");
        sandbox.release_container(container("cut-off")).await.unwrap();
    }
}

/// Runs a process with a task until it has said `word` for the `count`th time, waits, and kills it.
fn kill_after(task: &Task, word: &str, count: usize, pause: Duration) {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_dies", "--nocapture"])
        .env(TASK, serde_json::to_string(task).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.inspect(|line| println!("{line}")).filter(|line| *line == format!("task: {word}")).nth(count - 1);
    assert!(said.is_some(), "it died before it came to {word}");
    std::thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a test needs beside its sandbox.
struct Scene {
    lab: Lab,
    network: PodNetwork,
    disk: Disk,
    shared: PathBuf,
    task: Task,
}

fn scene(name: &str) -> Option<Scene> {
    let lab = Lab::open(name, None)?;
    let network = PodNetwork::make();
    let (disk, shared) = (Disk::make(lab.path("disk.img")), lab.make_dir("shared"));
    let ResourceConfig::Network(request) = network.request() else { unreachable!("it is a network's") };
    let NetworkSource::Namespace { path } = request.source else { unreachable!("it is a pod's") };
    let task = Task {
        state: lab.path("state"),
        id: lab.id("left"),
        namespace: path,
        rootfs: lab.rootfs("root-one"),
        shared: shared.clone(),
        disk: disk.device.clone(),
    };
    Some(Scene { lab, network, disk, shared, task })
}

/// All that a sandbox can do, done after its process has been replaced.
async fn go_on(scene: &Scene) {
    let recovered = scene.lab.system().recover(&scene.task.id).await.unwrap();
    let Recovered::Adopted(sandbox) = recovered else { panic!("not taken over: {recovered:?}") };
    assert_eq!(sandbox.status().state, LifecycleState::Running);
    assert_eq!(sandbox.status().containers, 1, "the one that was cut off is gone");
    scene.network.ping_guest();
    let one = Container { sandbox: &sandbox, id: container("one") };
    assert_eq!(one.exec("again", "cat /shared/one").await.out, "begun\n");

    let two = Container { sandbox: &sandbox, id: container("two") };
    let mounts = vec![
        bind(&text(&scene.disk.device), "/disk", &["rbind", "rw"]),
        bind(&text(&scene.shared), "/shared", &["rbind", "rw"]),
    ];
    let script = "echo kept > /disk/from-guest; cat /shared/one";
    two.start(scene.lab.rootfs("root-two"), mounts, None, script).await;
    let ran = two.finish(two.first()).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "begun\n"), "{ran:?}");
    sandbox.agent().remove_container(container("two"), lifecycle_tests::real::deadline()).await.unwrap();
    let report = sandbox.release_container(container("two")).await.unwrap();
    assert!(report.is_clean() && !report.items.is_empty(), "{report:#?}");
    sandbox.stop().await.unwrap();
    let report = sandbox.cleanup().await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(scene.disk.read("/from-guest"), "kept\n");
}

fn in_time(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("it ends in time") });
}

async fn leave(scene: Scene) {
    assert_eq!(scene.lab.remains(), Remains::default());
    scene.disk.detach();
    scene.lab.close().await;
}

#[test]
fn a_vm_is_taken_over_and_goes_on_as_if_nothing_had_happened() {
    in_time(async {
        let Some(scene) = scene("recover") else { return };
        let before = scene.network.snapshot();
        kill_after(&scene.task, "runs", 1, Duration::ZERO);
        go_on(&scene).await;
        assert_eq!(scene.network.snapshot(), before);
        leave(scene).await;
    });
}

#[test]
fn a_hotplug_in_which_the_process_died_is_undone_first() {
    in_time(async {
        let Some(scene) = scene("recover-hotplug") else { return };
        let before = scene.network.snapshot();
        kill_after(&scene.task, "plugged", 1, Duration::from_millis(20));
        go_on(&scene).await;
        assert_eq!(scene.network.snapshot(), before);
        leave(scene).await;
    });
}

#[test]
fn what_died_while_it_started_is_released() {
    in_time(async {
        for pause_ms in [20, 150, 400] {
            let Some(scene) = scene("recover-start") else { return };
            let before = scene.network.snapshot();
            kill_after(&scene.task, "preparing", 1, Duration::from_millis(pause_ms));
            match scene.lab.system().recover(&scene.task.id).await.unwrap() {
                Recovered::Released { report, .. } => assert!(report.is_clean(), "{report:#?}"),
                // It was faster than us: its VM had started.
                Recovered::Adopted(sandbox) => assert!(sandbox.cleanup().await.unwrap().is_clean()),
            }
            assert_eq!(scene.network.snapshot(), before);
            leave(scene).await;
        }
    });
}

#[test]
fn a_vm_that_was_killed_too_is_released() {
    in_time(async {
        let Some(scene) = scene("recover-dead") else { return };
        kill_after(&scene.task, "runs", 1, Duration::ZERO);
        kill_vmm(&scene.task.state.join(scene.task.id.as_str()));
        let recovered = scene.lab.system().recover(&scene.task.id).await.unwrap();
        let Recovered::Released { report, why } = recovered else { panic!("taken over without a VM") };
        assert!(report.is_clean() && why.contains("take the VM over"), "{why}: {report:#?}");
        leave(scene).await;
    });
}

/// Ends the VMM that the ledger names.
fn kill_vmm(dir: &Path) {
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("saved.json")).unwrap()).unwrap();
    let pid = saved["facts"]["vm"]["process"]["pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}
