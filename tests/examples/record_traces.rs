//! Records the traces in `tests/traces/`: real VMs on a real host. Needs root, QEMU and the guest.
//!
//! `record_traces DIRECTORY [NAME…]`: all of them, or those of a name.
#![expect(clippy::unwrap_used, reason = "whoever records wants to see what fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lifecycle_tests::real::{Container, Disk, Lab, PodNetwork, boot, essentials, text, volumes};
use lifecycle_tests::simulated::{bind, container, limits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use resource_actors::trace::TraceFile;
use resource_actors::{Ports, ResourceSystem, SandboxHandle, SandboxSpec};
use sandbox_model::SandboxId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::{ResourceUpdate, RootfsRequest, RootfsSource, VolumesRequest};
use sandbox_model::trace::Header;
use simulation::{
    RealMountsSimulatedDaemon, SimulatedAgentFactory, SimulatedCgroupHost, SimulatedDeviceHost, SimulatedVmmFactory,
    World,
};

/// Larger traces are packed.
const PLAIN_BYTES_MAX: u64 = 64 << 10;
/// Marks the process that is to be killed.
const VICTIM: &str = "--victim";

#[tokio::main]
async fn main() {
    let mut words = std::env::args().skip(1);
    let dir: PathBuf = words.next().expect("a directory").into();
    let names: Vec<_> = words.collect();
    if names.first().is_some_and(|name| name == VICTIM) {
        return victim(&dir).await;
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    macro_rules! record {
        ($($name:literal: $scenario:ident)*) => {
            $(if is_wanted($name) {
                let path = dir.join(concat!($name, ".jsonl"));
                let file = TraceFile::create(&path, Header::new("qemu", "real")).unwrap();
                let lab = Lab::open("t", Some(file.sink())).expect("a guest");
                $scenario(&lab).await;
                lab.close().await;
                finish(file, &path);
            })*
        };
    }
    record! {
        "life": life
        "hotplug-storm": hotplug_storm
        "late-agent": late_agent
        "killed-vmm": killed_vmm
        "churn": churn
    }
    if is_wanted("crash-in-boot") {
        crash_in_boot(&dir).await;
    }
    if is_wanted("hundred-containers") {
        hundred_containers(&dir).await;
    }
}

fn finish(file: TraceFile, path: &Path) {
    file.finish().unwrap();
    let bytes = fs::metadata(path).unwrap().len();
    println!("{}: {bytes} bytes", path.display());
    if bytes > PLAIN_BYTES_MAX {
        let packed = Command::new("gzip").args(["--best", "--force", "--no-name"]).arg(path).status().unwrap();
        assert!(packed.success());
    }
}

async fn release(sandbox: &SandboxHandle) {
    let report = sandbox.cleanup().await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// A pod's network, a disk, shared directories, a container, limits, the end.
async fn life(lab: &Lab) {
    let network = PodNetwork::make();
    let disk = Disk::make(lab.path("disk.img"));
    let (shared, fixed) = (lab.make_dir("shared"), lab.make_dir("fixed"));
    let sandbox = lab.create("life", lab.guest.config()).await;
    let mut resources = essentials();
    resources.push(network.request());
    boot(&sandbox, resources).await;
    let one = Container { sandbox: &sandbox, id: container("one") };
    let mounts = volumes(&shared, &fixed, &disk.device);
    one.start(lab.rootfs("root-one"), mounts, None, "exit 7").await;
    assert_eq!(one.finish(one.first()).await.code, 7);
    let ask = sandbox.update_linux_resources(one.id.clone(), Some(limits(100_000, 128 << 20)), ResourceUpdate::Add);
    ask.await.unwrap();
    assert!(sandbox.release_container(one.id.clone()).await.unwrap().is_clean());
    sandbox.save().await.unwrap();
    sandbox.stop().await.unwrap();
    release(&sandbox).await;
    disk.detach();
}

/// Disks and limits of several containers, asked for all at once.
async fn hotplug_storm(lab: &Lab) {
    let disks: Vec<_> = (0..4).map(|n| Disk::make(lab.path(&format!("disk{n}.img")))).collect();
    let sandbox = lab.create("storm", lab.guest.config()).await;
    boot(&sandbox, essentials()).await;
    let storm = disks.iter().enumerate().map(|(n, disk)| {
        let (sandbox, id) = (&sandbox, container(&format!("c{n}")));
        async move {
            let mounts = vec![bind(&text(&disk.device), "/disk", &["rbind", "rw"])];
            let volumes = sandbox.set_up_volumes(VolumesRequest { container: id.clone(), mounts });
            let limits = limits(50_000, 32 << 20);
            let sized = sandbox.update_linux_resources(id.clone(), Some(limits), ResourceUpdate::Add);
            let (volumes, sized) = tokio::join!(volumes, sized);
            volumes.unwrap();
            sized.unwrap();
            assert!(sandbox.release_container(id).await.unwrap().is_clean());
        }
    });
    futures::future::join_all(storm).await;
    sandbox.stop().await.unwrap();
    release(&sandbox).await;
    disks.into_iter().for_each(Disk::detach);
}

/// An agent that is not there in time, twice or more, and then is.
async fn late_agent(lab: &Lab) {
    let mut config = lab.guest.config();
    config.agent.reconnect_timeout_ms = 1500;
    let sandbox = lab.create("late", config).await;
    sandbox.prepare_before_start_vm(essentials()).await.unwrap();
    sandbox.start_vm().await.unwrap();
    let mut tries = 1;
    while let Err(error) = sandbox.setup_after_start_vm().await {
        assert!(tries < 30, "{error}");
        tries += 1;
    }
    assert!(tries > 1, "the agent was not late");
    release(&sandbox).await;
}

/// A VMM that is killed from outside.
async fn killed_vmm(lab: &Lab) {
    let sandbox = lab.create("killed", lab.guest.config()).await;
    boot(&sandbox, essentials()).await;
    let pid = sandbox.status().vmm_pid.expect("the VMM runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let mut watch = sandbox.watch();
    let failed = watch.wait_for(|status| status.state == LifecycleState::Failed);
    drop(tokio::time::timeout(Duration::from_secs(20), failed).await.expect("the death is noticed"));
    release(&sandbox).await;
}

/// Containers that come and go.
async fn churn(lab: &Lab) {
    let root = lab.rootfs("root");
    let sandbox = lab.create("churn", lab.guest.config()).await;
    boot(&sandbox, essentials()).await;
    for n in 0..5 {
        let id = container(&format!("c{n}"));
        let source = RootfsSource::Directory { path: root.clone() };
        sandbox.set_up_rootfs(RootfsRequest { container: id.clone(), source, read_only: true }).await.unwrap();
        assert!(sandbox.release_container(id).await.unwrap().is_clean());
    }
    sandbox.stop().await.unwrap();
    release(&sandbox).await;
}

/// Boots until it is killed.
async fn victim(dir: &Path) {
    let file = TraceFile::create(&dir.join("crash-in-boot.jsonl"), Header::new("qemu", "real")).unwrap();
    let lab = Lab::open("t", Some(file.sink())).expect("a guest");
    println!("{}", text(&lab.path("state")));
    let sandbox = lab.create("crash", lab.guest.config()).await;
    boot(&sandbox, essentials()).await;
    panic!("the guest was faster than the killer");
}

/// A process that is killed while its VM boots, and another that cleans up after it: two traces.
async fn crash_in_boot(dir: &Path) {
    let recorder = std::env::current_exe().unwrap();
    let output = std::process::Stdio::piped();
    let mut victim = Command::new(recorder).arg(dir).arg(VICTIM).stdout(output).spawn().unwrap();
    let path = dir.join("crash-in-boot.jsonl");
    let is_booting = |text: String| text.contains("\"event\":\"replied\"") && text.contains("resume_vm");
    for _ in 0..3000 {
        if is_booting(fs::read_to_string(&path).unwrap_or_default()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kill(Pid::from_raw(i32::try_from(victim.id()).unwrap()), Signal::SIGKILL).unwrap();
    victim.wait().unwrap();
    let state = std::io::read_to_string(victim.stdout.take().unwrap()).unwrap();
    println!("{}: {} bytes", path.display(), fs::metadata(&path).unwrap().len());

    let path = dir.join("clean-up-after-crash.jsonl");
    let file = TraceFile::create(&path, Header::new("qemu", "real")).unwrap();
    let lab = Lab::open("t", None).expect("a guest");
    let system = ResourceSystem::builder(Lab::ports()).state_dir(state.trim()).trace(file.sink()).start().unwrap();
    for left in system.list().unwrap() {
        let report = system.cleanup_sandbox(&left).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
    assert!(system.shutdown().await.is_empty());
    lab.close().await;
    fs::remove_dir(Path::new(state.trim()).parent().unwrap()).unwrap();
    finish(file, &path);
}

/// Simulated VMs on the real host: a hundred containers, ten in each sandbox, all at once.
async fn hundred_containers(dir: &Path) {
    let path = dir.join("hundred-containers.jsonl");
    let file = TraceFile::create(&path, Header::new("simulated", "real")).unwrap();
    let (lab, world) = (Lab::open("t", None).expect("a guest"), Arc::new(World::new()));
    let ports = Ports {
        vmm: Arc::new(SimulatedVmmFactory::new(world.clone())),
        agent: Arc::new(SimulatedAgentFactory::new(world.clone())),
        cgroup: Arc::new(SimulatedCgroupHost::new(world.clone())),
        device: Arc::new(SimulatedDeviceHost::new(world.clone())),
        share: Arc::new(RealMountsSimulatedDaemon::new(Lab::ports().share, world)),
        ..Lab::ports()
    };
    let state = lab.path("simulated");
    let system = ResourceSystem::builder(ports).state_dir(&state).threads(2).trace(file.sink()).start().unwrap();
    let root = lab.make_dir("root");
    let mut config = SandboxConfig::default();
    config.hypervisor.kernel = "/simulated/vmlinux".into();
    config.hypervisor.initrd = Some("/simulated/initrd.cpio".into());
    let sandboxes = (0..10).map(|n| {
        let (system, root, config) = (&system, &root, config.clone());
        async move {
            let id = SandboxId::new(format!("pod-{n}")).unwrap();
            let sandbox =
                system.create_sandbox(SandboxSpec { id, config: config.into(), cgroups_path: None }).await.unwrap();
            sandbox.prepare_before_start_vm(essentials()).await.unwrap();
            sandbox.start_vm().await.unwrap();
            sandbox.setup_after_start_vm().await.unwrap();
            for n in 0..10 {
                let source = RootfsSource::Directory { path: root.clone() };
                let container = container(&format!("c{n}"));
                sandbox.set_up_rootfs(RootfsRequest { container, source, read_only: true }).await.unwrap();
            }
            release(&sandbox).await;
        }
    });
    futures::future::join_all(sandboxes).await;
    assert!(system.shutdown().await.is_empty());
    drop(fs::remove_dir(&state));
    lab.close().await;
    finish(file, &path);
}
