//! Real VMs: a whole life, its failures, its trace. Needs root, QEMU and the guest's image.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use guest_agent::SignalProcess;
use lifecycle_tests::real::{
    Container, Disk, Lab, PodNetwork, Ran, Remains, boot, deadline, essentials, text, volumes,
};
use lifecycle_tests::simulated::{bind, container, limits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use resource_actors::trace::{ChannelSink, replay};
use resource_actors::{SandboxError, SandboxHandle};
use sandbox_model::config::SandboxConfig;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::{ResourceConfig, ResourceUpdate, VolumesRequest};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// A container's first process that waits for what comes.
const WAIT: &str = "sleep 1000";
/// How many vCPUs and KiB a guest has.
const SIZE: &str = "grep -c ^processor /proc/cpuinfo; awk '/^MemTotal/ {print $2}' /proc/meminfo";

fn succeeded(ran: &Ran) -> &str {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.trim_end()
}

async fn size(one: &Container<'_>, exec: &str) -> (u32, u64) {
    let ran = one.exec(exec, SIZE).await;
    let (vcpus, kib) = succeeded(&ran).split_once('\n').expect("two lines");
    (vcpus.parse().expect("a number"), kib.parse().expect("a number"))
}

async fn release(sandbox: &SandboxHandle) {
    let report = sandbox.cleanup().await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(sandbox.status().state, LifecycleState::Released);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_sandbox_end_to_end() {
    let Some(lab) = Lab::open("life", None) else { return };
    tokio::time::timeout(LIMIT, end_to_end(lab)).await.expect("the sandbox lives and ends in time");
}

async fn end_to_end(lab: Lab) {
    let network = PodNetwork::make();
    let before = network.snapshot();
    let disk = Disk::make(lab.path("disk.img"));
    let (shared, fixed) = (lab.make_dir("shared"), lab.make_dir("fixed"));
    fs::write(fixed.join("given"), "as it was").unwrap();

    let sandbox = lab.create("a", lab.guest.config()).await;
    let mut resources = essentials();
    resources.push(network.request());
    boot(&sandbox, resources).await;
    assert_eq!(sandbox.status().state, LifecycleState::Running);
    assert_ne!(network.snapshot(), before, "the VM is in the pod's network");

    let one = Container { sandbox: &sandbox, id: container("one") };
    let mounts = volumes(&shared, &fixed, &disk.device);
    one.start(lab.rootfs("root-one"), mounts, None, WAIT).await;
    let present = lab.remains();
    let counts = [&present.mounts, &present.processes, &present.cgroups, &present.files];
    assert!(counts.iter().all(|found| !found.is_empty()), "what is looked for later can be found: {present:#?}");

    let ran = one.exec("ping", &format!("ping -c 1 -W 5 {}", network.peer_address())).await;
    assert!(succeeded(&ran).contains("1 packets received"), "{ran:?}");
    network.ping_guest();

    files(&one, &lab).await;
    exit_codes(&one).await;

    let small = size(&one, "small").await;
    let ask = |name: &str| {
        let limits = limits(100_000, 128 << 20);
        sandbox.update_linux_resources(container(name), Some(limits), ResourceUpdate::Add)
    };
    let applied = ask("one").await.unwrap();
    let middle = size(&one, "middle").await;
    assert_eq!(middle.0, applied.vcpus);
    assert!(middle.0 > small.0 && middle.1 > small.1, "{small:?} {middle:?}");
    let applied = ask("two").await.unwrap();
    let large = size(&one, "large").await;
    assert_eq!(large.0, applied.vcpus);
    assert!(large.0 > middle.0 && large.1 > middle.1, "{middle:?} {large:?}");

    let two = Container { sandbox: &sandbox, id: container("two") };
    two.start(lab.rootfs("root-two"), Vec::new(), applied.for_agent, "echo from two; exit 42").await;
    let ran = two.finish(two.first()).await;
    assert_eq!((ran.code, ran.out.as_str()), (42, "from two\n"), "{ran:?}");

    let request = SignalProcess { process: one.first(), signal: Signal::SIGKILL as u32 };
    sandbox.agent().signal_process(request, deadline()).await.unwrap();
    assert_eq!(one.finish(one.first()).await.code, 128 + Signal::SIGKILL as i32);
    for id in ["one", "two"] {
        sandbox.agent().remove_container(container(id), deadline()).await.unwrap();
        let report = sandbox.release_container(container(id)).await.unwrap();
        assert!(report.is_clean() && !report.items.is_empty(), "{report:#?}");
    }
    assert_eq!(disk.read("/from-guest"), "kept\n", "what the guest wrote to the block volume");
    // The VM still runs: it has given the disk back.
    disk.detach();

    sandbox.stop().await.unwrap();
    release(&sandbox).await;
    assert_eq!(network.snapshot(), before);
    lab.close().await;
}

/// Shared directories and the block volume, from the guest and from the host.
async fn files(one: &Container<'_>, lab: &Lab) {
    let (shared, fixed) = (lab.path("shared"), lab.path("fixed"));
    let ran = one.exec("shared", "echo from guest > /shared/file && cat /fixed/given").await;
    assert_eq!(succeeded(&ran), "as it was");
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "from guest\n");
    let ran = one.exec("fixed", "echo no > /fixed/file || echo no > /fixed/given").await;
    assert!(ran.code != 0 && ran.err.contains("Read-only file system"), "{ran:?}");
    assert_eq!(fs::read_dir(&fixed).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(fixed.join("given")).unwrap(), "as it was");
    let ran = one.exec("shm", "echo x > /dev/shm/x && grep -c ' /dev/shm tmpfs ' /proc/mounts").await;
    assert_eq!(succeeded(&ran), "1");
    let ran = one.exec("disk", "echo kept > /disk/from-guest && sync && grep -c ' /disk ext4 ' /proc/mounts").await;
    assert_eq!(succeeded(&ran), "1");
}

async fn exit_codes(one: &Container<'_>) {
    for code in [0, 1, 42] {
        let ran = one.exec(&format!("exit-{code}"), &format!("echo out; echo err >&2; exit {code}")).await;
        assert_eq!(ran, Ran { code, out: "out\n".into(), err: "err\n".into() });
    }
}

/// What goes wrong before a VM runs, and what its error must say.
struct Bad {
    name: &'static str,
    config: SandboxConfig,
    network: Option<NetworkSource>,
    expected: Vec<String>,
    state: LifecycleState,
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_inputs_each_give_one_error_and_leave_nothing() {
    let Some(lab) = Lab::open("bad", None) else { return };
    tokio::time::timeout(LIMIT, bad_inputs(lab)).await.expect("every error comes in time");
}

async fn bad_inputs(lab: Lab) {
    let talker = lab.path("talker");
    fs::write(&talker, "#!/bin/sh\necho the machine is on fire >&2\nexit 3\n").unwrap();
    fs::set_permissions(&talker, fs::Permissions::from_mode(0o755)).unwrap();
    let kernel = lab.path("no-kernel");
    let netns = lab.path("no-netns");
    let with = |change: &dyn Fn(&mut SandboxConfig)| {
        let mut config = lab.guest.config();
        change(&mut config);
        config
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let all = [
        Bad {
            name: "kernel",
            config: with(&|config| config.hypervisor.kernel.clone_from(&kernel)),
            network: None,
            expected: words(&["StartVm", &text(&kernel)]),
            state: LifecycleState::Failed,
        },
        Bad {
            name: "false",
            config: with(&|config| config.hypervisor.path = "/bin/false".into()),
            network: None,
            expected: words(&["StartVm", "exit status 1"]),
            state: LifecycleState::Failed,
        },
        Bad {
            name: "talker",
            config: with(&|config| config.hypervisor.path.clone_from(&talker)),
            network: None,
            expected: words(&["StartVm", "exit status 3", "the machine is on fire"]),
            state: LifecycleState::Failed,
        },
        Bad {
            name: "netns",
            config: lab.guest.config(),
            network: Some(NetworkSource::Namespace { path: netns.clone() }),
            expected: words(&["PrepareBeforeStartVm", "network actor", &text(&netns), "No such file"]),
            state: LifecycleState::Created,
        },
        Bad {
            name: "mute",
            config: with(&|config| {
                config.hypervisor.kernel_params = "rdinit=/nonexistent init=/nonexistent".into();
                config.agent.reconnect_timeout_ms = 1500;
            }),
            network: None,
            expected: words(&["SetupAfterStartVm", "reach the guest's agent", "no agent after 1.5 s"]),
            state: LifecycleState::Started,
        },
    ];
    for bad in all {
        let sandbox = lab.create(bad.name, bad.config).await;
        let mut resources = essentials();
        resources.extend(bad.network.map(|source| {
            ResourceConfig::Network(NetworkRequest { source, model: InterworkingModel::TcFilter, queue_pairs: 1 })
        }));
        let error = first_error(&sandbox, resources).await;
        let told = error.to_string();
        println!("{}: {told}", bad.name);
        assert!(bad.expected.iter().all(|word| told.contains(word)), "{told}: {:?}", bad.expected);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(error.undone().expect("a step failed").is_clean(), "{error:#?}");
        assert_eq!(sandbox.status().state, bad.state, "{told}");
        release(&sandbox).await;
        assert_eq!(lab.remains(), Remains::default(), "{}", bad.name);
    }
    bad_volume(&lab).await;
    lab.close().await;
}

async fn first_error(sandbox: &SandboxHandle, resources: Vec<ResourceConfig>) -> SandboxError {
    if let Err(error) = sandbox.prepare_before_start_vm(resources).await {
        return error;
    }
    if let Err(error) = sandbox.start_vm().await {
        return error;
    }
    sandbox.setup_after_start_vm().await.expect_err("one of the steps fails")
}

/// A volume that is not there fails alone: the sandbox goes on.
async fn bad_volume(lab: &Lab) {
    let sandbox = lab.create("volume", lab.guest.config()).await;
    boot(&sandbox, essentials()).await;
    let before = lab.remains().mounts;
    let missing = text(&lab.path("no-volume"));
    let mounts = vec![bind(&text(&lab.make_dir("good")), "/good", &["rbind"]), bind(&missing, "/bad", &["rbind"])];
    let error = sandbox.set_up_volumes(VolumesRequest { container: container("c"), mounts }).await.unwrap_err();
    let told = error.to_string();
    println!("volume: {told}");
    for word in ["SetUpVolumes", "/bad", &missing, "does not exist"] {
        assert!(told.contains(word), "{told}: {word}");
    }
    assert!(error.undone().expect("a step failed").is_clean(), "{error:#?}");
    assert_eq!(lab.remains().mounts, before);
    assert_eq!(sandbox.status().state, LifecycleState::Running);
    release(&sandbox).await;
}

/// Kills a process of a running sandbox, which fails for this reason and can be released.
async fn killed(name: &str, victim: impl Fn(&SandboxHandle) -> i32, reason: &str) {
    let Some(lab) = Lab::open(name, None) else { return };
    let killed = async {
        let sandbox = lab.create("a", lab.guest.config()).await;
        boot(&sandbox, essentials()).await;
        kill(Pid::from_raw(victim(&sandbox)), Signal::SIGKILL).unwrap();
        let mut watch = sandbox.watch();
        let failed = watch.wait_for(|status| status.state == LifecycleState::Failed);
        let failed = tokio::time::timeout(Duration::from_secs(10), failed).await;
        drop(failed.expect("the death is noticed").expect("the sandbox has not ended"));
        let status = sandbox.status();
        let failure = status.failure.expect("a reason");
        println!("{failure}");
        assert!(failure.contains(reason) && failure.contains("signal 9"), "{failure}");
        assert_eq!(status.vmm_pid.is_none(), reason.starts_with("the VM"), "only a dead VMM has no pid");
        release(&sandbox).await;
        lab.close().await;
    };
    tokio::time::timeout(LIMIT, killed).await.expect("the sandbox lives and ends in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_qemu_fails_the_sandbox_and_cleanup_releases_it() {
    killed("kill", |sandbox| sandbox.status().vmm_pid.expect("the VMM runs"), "the VM ended by itself").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_virtiofsd_fails_the_sandbox_and_cleanup_releases_it() {
    let daemon = |sandbox: &SandboxHandle| {
        let pid = sandbox.dump()["share_fs"]["daemon"]["process"]["pid"].as_i64().expect("the daemon runs");
        i32::try_from(pid).expect("a pid")
    };
    killed("kill-daemon", daemon, "virtiofsd ended by itself").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_vsock_daemon_fails_the_sandbox_and_cleanup_releases_it() {
    let daemon = |sandbox: &SandboxHandle| {
        let pid = sandbox.dump()["device"]["vsock_daemon"]["process"]["pid"].as_i64();
        i32::try_from(pid.expect("the daemon runs: the test's machine has no vsock of the kernel's")).expect("a pid")
    };
    killed("kill-vsock", daemon, "vhost-device-vsock ended by itself").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_trace_replays() {
    let (sink, heard) = ChannelSink::new();
    let Some(lab) = Lab::open("told", Some(sink.clone())) else { return };
    let lived = async {
        let sandbox = lab.create("a", lab.guest.config()).await;
        boot(&sandbox, essentials()).await;
        let one = Container { sandbox: &sandbox, id: container("one") };
        one.start(lab.rootfs("root-one"), Vec::new(), None, "exit 7").await;
        assert_eq!(one.finish(one.first()).await.code, 7);
        assert!(sandbox.release_container(container("one")).await.unwrap().is_clean());
        sandbox.stop().await.unwrap();
        release(&sandbox).await;
        lab.close().await;
    };
    tokio::time::timeout(LIMIT, lived).await.expect("the sandbox lives and ends in time");
    assert_eq!(sink.lost(), 0);
    let mut events: Vec<_> = heard.try_iter().collect();
    events.sort_by_key(|event| event.place().map_or(0, |place| place.seq));
    // A replay has a runtime of its own, which must not be started inside of another.
    let replayed = tokio::task::spawn_blocking(move || replay(&events)).await.unwrap();
    let report = replayed.unwrap();
    assert!(report.divergence.is_none(), "{}", report.divergence.unwrap());
    assert!(report.commands >= 10 && report.replies > report.commands, "{report:?}");
    assert_eq!(report.states.values().collect::<Vec<_>>(), [&LifecycleState::Released]);
}
