//! A VM whose manager has gone, and the next manager.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use helper_process::{HelperProcess, HelperSpec, is_alive};
use hypervisor::{AdoptVm, Hypervisor, PresentDevice, ResizeMemory, ResizeVcpus, StopVm, VmCondition};
use rustix::process::{Pid, Signal, kill_process};
use sandbox_model::device::{DeviceConfig, VsockBackend, VsockDevice};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, Outcome};
use serde::{Deserialize, Serialize};

use crate::bench::{Bench, has_qemu};
use crate::guest::{Guest, Qemu, ShareLock, disk, nic, placed, share};
use crate::{Guard, client, in_seconds, tap};

/// Says that this test binary is the manager that will be killed, and where its files are.
const MANAGER: &str = "RESOURCE_ACTORS_TEST_MANAGER";
/// The vsock daemon, where it has been built.
const VSOCK_DAEMON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/bin/vhost-device-vsock");

/// What a manager leaves behind.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    tag: String,
    vm: ProcessIdentity,
    /// Each with its tag.
    daemons: Vec<(ProcessIdentity, String)>,
}

/// The manager: starts a guest with devices of each kind, says so, and waits for its end.
async fn manage(dir: &Path) {
    let guest = Guest::new(dir).expect("a guest");
    let mut daemons = Vec::new();
    let mut keep = |daemon: &HelperProcess, tag: &str| daemons.push((daemon.identity(), tag.to_owned()));
    let tag = format!("guest-{}/2", std::process::id());
    let (virtiofsd, device) = share(dir, 1, &tag).await;
    keep(&virtiofsd, &tag);
    guest.add(device).await;
    if Path::new(VSOCK_DAEMON).exists() {
        let tag = format!("guest-{}/3", std::process::id());
        let (socket, hybrid_socket) = (dir.join("vsock.sock"), dir.join("hybrid.sock"));
        let args = ["--guest-cid=3".into(), format!("--socket={}", socket.display()).into()].into_iter();
        let args = args.chain([format!("--uds-path={}", hybrid_socket.display()).into()]).collect();
        let spec = HelperSpec { program: VSOCK_DAEMON.into(), args, tag: tag.clone(), passed: vec![] };
        let daemon = HelperProcess::spawn(spec).await.expect("the vsock daemon");
        daemon.wait_for_socket(&socket, in_seconds(10)).await.expect("it listens");
        keep(&daemon, &tag);
        let backend = VsockBackend::VhostUser { socket, hybrid_socket };
        guest.add(placed("vsock", 2, DeviceConfig::Vsock(VsockDevice { cid: 3, backend }))).await;
    }
    guest.add(disk(dir, "cold", 3)).await;
    let Qemu(vm) = guest.boot().await;
    guest.add(disk(dir, "hot", 17)).await;
    let left = Left { tag: guest.tag.clone(), vm, daemons };
    let text = serde_json::to_string(&left).expect("data");
    std::fs::write(dir.join("left.new"), text).expect("a file");
    std::fs::rename(dir.join("left.new"), dir.join("left")).expect("a file");
    std::future::pending().await
}

/// A manager in a process of its own.
struct Manager(Child);

impl Manager {
    /// Runs `test` of this binary again, as the manager.
    fn start(test: &str, dir: &Path) -> Self {
        let program = std::env::current_exe().expect("this binary");
        let mut command = Command::new(program);
        command.args(["--exact", test]).env(MANAGER, dir).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().expect("this binary runs"))
    }

    /// Ends it by SIGKILL once it has left something.
    async fn killed(mut self, dir: &Path) -> Left {
        let deadline = in_seconds(90);
        let text = loop {
            match std::fs::read(dir.join("left")) {
                Ok(text) => break text,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            assert!(self.0.try_wait().expect("our child").is_none(), "the manager ended by itself");
            assert!(Instant::now() < deadline, "the manager does not come up");
        };
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
        serde_json::from_slice(&text).expect("what it wrote")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn places(devices: &[PresentDevice]) -> Vec<(&str, &str)> {
    let places = devices.iter().map(|device| device.pci_path.as_ref().map_or("nowhere", |path| path.0.as_str()));
    devices.iter().map(|device| device.id.as_str()).zip(places).collect()
}

#[tokio::test]
async fn a_guest_whose_manager_was_killed_lives_on_under_the_next() {
    if let Some(dir) = std::env::var_os(MANAGER) {
        return manage(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(next) = Guest::new(dir) else { return };
    let _lock = ShareLock::of(dir);
    let test = "adoption::a_guest_whose_manager_was_killed_lives_on_under_the_next";
    let left = Manager::start(test, dir).killed(dir).await;
    let _guards: Vec<_> =
        left.daemons.iter().map(|(daemon, _)| *daemon).chain([left.vm]).map(Some).map(Guard).collect();

    let request = AdoptVm { process: Some(left.vm), tag: left.tag };
    let adopted = next.vm.adopt_vm(request, in_seconds(10)).await.unwrap();
    assert_eq!((adopted.vm.process, adopted.condition), (Some(left.vm), VmCondition::Running));
    assert_eq!((adopted.vcpus, adopted.vm.vcpu_threads.len(), adopted.memory_mib), (1, 1, 256));
    let devices = next.vm.query_devices((), in_seconds(5)).await.unwrap();
    let has_vsock = left.daemons.len() == 2;
    let all = [("cold", "02/03"), ("hot", "02/11"), ("share", "02/01"), ("vsock", "02/02")];
    assert_eq!(places(&devices), &all[..if has_vsock { 4 } else { 3 }]);
    let mut daemons = Vec::new();
    for (daemon, tag) in &left.daemons {
        daemons.push(HelperProcess::adopt("daemon", *daemon, tag, in_seconds(5)).await.unwrap());
    }

    // A disk comes, under names that nobody has; the guest's console is heard again.
    next.add(disk(dir, "more", 4)).await;
    let deadline = in_seconds(20);
    while !next.vm.last_words((), deadline).await.unwrap().contains("512-byte logical blocks") {
        assert!(Instant::now() < deadline, "the guest says nothing of its new disk");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What was plugged before, cold and hot, goes with all that stands behind it.
    for name in ["hot", "cold", "more", "share"] {
        next.remove(name).await;
    }
    if has_vsock {
        next.remove("vsock").await;
    }
    assert!(next.vm.query_devices((), in_seconds(5)).await.unwrap().is_empty());
    Qemu(left.vm).let_go().await;
    next.add(disk(dir, "hot", 17)).await;
    let request = ResizeMemory { target_mib: 300, block_mib: 128 };
    assert_eq!(next.vm.resize_memory(request, in_seconds(5)).await.unwrap().memory_mib, 384);
    assert_eq!(next.vm.resize_vcpus(ResizeVcpus { target: 2 }, in_seconds(5)).await.unwrap().vcpus, 2);

    // A virtiofsd serves one VMM only; the vsock daemon waits for another.
    tokio::time::timeout(Duration::from_secs(5), daemons[0].wait()).await.unwrap();
    for daemon in &daemons[1..] {
        assert_eq!(daemon.try_exit(), None, "{}", daemon.last_words());
        daemon.terminate(Duration::from_secs(2)).await.unwrap();
    }
    next.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.unwrap();
    assert!(!is_alive(left.vm));
    for socket in next.vm.capabilities((), in_seconds(1)).await.unwrap().sockets {
        assert!(!socket.exists(), "{}", socket.display());
    }
}

fn adopt(process: ProcessIdentity, bench: &Bench) -> AdoptVm {
    AdoptVm { process: Some(process), tag: bench.tag.clone() }
}

async fn kind_of(vm: &dyn Hypervisor, request: AdoptVm) -> ErrorKind {
    let error = vm.adopt_vm(request, in_seconds(5)).await.expect_err("it is not adopted");
    assert_eq!(error.outcome, Outcome::NotDone, "{error}");
    error.kind
}

#[tokio::test]
async fn only_the_process_that_was_recorded_is_adopted() {
    if !has_qemu() {
        return;
    }
    let mut bench = Bench::new("which");
    bench.add(bench.disk("cold-1", 1, 5)).await.unwrap();
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    // Its client goes; the VM stays.
    bench.vm = client(bench.dir.path());
    let next = &*bench.vm;
    let reused = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    assert_eq!(kind_of(next, adopt(reused, &bench)).await, ErrorKind::NotFound);
    let own = helper_process::identify(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert_eq!(kind_of(next, adopt(own, &bench)).await, ErrorKind::Foreign);
    let untagged = AdoptVm { process: None, tag: "which-other/1".into() };
    assert_eq!(kind_of(next, untagged).await, ErrorKind::Foreign);

    // Another process serves the socket.
    let sockets = next.capabilities((), in_seconds(1)).await.unwrap().sockets;
    let aside = bench.dir.path().join("aside");
    std::fs::rename(&sockets[0], &aside).unwrap();
    assert_eq!(kind_of(next, adopt(process, &bench)).await, ErrorKind::PeerGone);
    let stranger = UnixListener::bind(&sockets[0]).unwrap();
    assert_eq!(kind_of(next, adopt(process, &bench)).await, ErrorKind::Foreign);
    drop(stranger);
    assert_eq!(kind_of(next, adopt(process, &bench)).await, ErrorKind::PeerGone);
    std::fs::rename(&aside, &sockets[0]).unwrap();

    // By its tag alone; it has run nothing yet.
    let adopted = next.adopt_vm(AdoptVm { process: None, tag: bench.tag.clone() }, in_seconds(5)).await.unwrap();
    assert_eq!((adopted.vm.process, adopted.condition), (Some(process), VmCondition::NotYetRun));
    assert_eq!(kind_of(next, adopt(process, &bench)).await, ErrorKind::Exists);
    let devices = next.query_devices((), in_seconds(5)).await.unwrap();
    assert_eq!(places(&devices), [("cold-1", "03/05")]);
    let taken = bench.add(bench.disk("hot-1", 1, 5)).await.unwrap_err();
    assert_eq!((taken.kind, taken.outcome), (ErrorKind::Busy, Outcome::NotDone), "{taken}");
    assert_eq!(bench.add(bench.disk("hot-1", 1, 6)).await.unwrap(), "03/06");
    assert_eq!(
        bench.add(bench.disk("hot-2", 2, 1)).await.unwrap_err().kind,
        ErrorKind::Invalid,
        "there are two bridges"
    );
    let grow = |target_mib| ResizeMemory { target_mib, block_mib: 128 };
    assert_eq!(next.resize_memory(grow(9000), in_seconds(5)).await.unwrap().memory_mib, 1024);
    assert_eq!(next.resize_vcpus(ResizeVcpus { target: 9 }, in_seconds(5)).await.unwrap().vcpus, 3);

    // Its end is seen, and its last words are heard although another process had its stderr.
    kill_process(Pid::from_raw(process.pid).unwrap(), Signal::TERM).unwrap();
    let exit = next.wait_exit((), in_seconds(10)).await.unwrap();
    assert!(exit.last_words.contains("terminating on signal 15"), "{exit:?}");
    assert_eq!(kind_of(&*client(bench.dir.path()), adopt(process, &bench)).await, ErrorKind::NotFound);
}

/// Says `commands` to a QEMU that nobody is connected to; each must succeed.
async fn command(socket: &Path, commands: &[serde_json::Value]) {
    let (socket, commands) = (socket.to_owned(), commands.to_vec());
    // The client before has tasks that must run for it to hang up.
    tokio::task::spawn_blocking(move || command_now(&socket, &commands)).await.expect("every command succeeds");
}

fn command_now(socket: &Path, commands: &[serde_json::Value]) {
    let mut stream = BufReader::new(UnixStream::connect(socket).expect("QEMU listens"));
    let mut line = String::new();
    stream.read_line(&mut line).expect("a greeting");
    for command in [&serde_json::json!({ "execute": "qmp_capabilities" })].into_iter().chain(commands) {
        writeln!(stream.get_mut(), "{command}").expect("QEMU reads");
        line.clear();
        stream.read_line(&mut line).expect("a reply");
        assert!(line.contains("\"return\""), "{command}: {line}");
    }
}

#[tokio::test]
async fn what_was_half_made_is_taken_away_and_its_name_is_free() {
    if !has_qemu() {
        return;
    }
    let Some(queues) = tap::queues(1) else { return eprintln!("skipped: no tap can be made") };
    let mut bench = Bench::new("orphans");
    bench.add(bench.disk("cold-1", 0, 1)).await.unwrap();
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    bench.vm = client(bench.dir.path());
    // As a process does that is killed between two commands.
    let sockets = bench.vm.capabilities((), in_seconds(1)).await.unwrap().sockets;
    let memory = serde_json::json!({ "qom-type": "memory-backend-ram", "id": "mem-dimm-0", "size": 128 << 20 });
    let node = serde_json::json!({ "driver": "null-co", "node-name": "drive-8" });
    let halves = [("object-add", memory), ("blockdev-add", node)].into_iter().chain([
        ("chardev-add", serde_json::json!({ "id": "char-9", "backend": { "type": "null", "data": {} } })),
        // Nothing lists those that no device uses.
        ("netdev_add", serde_json::json!({ "type": "hubport", "id": "net-10", "hubid": 0 })),
    ]);
    let halves: Vec<_> =
        halves.map(|(name, arguments)| serde_json::json!({ "execute": name, "arguments": arguments })).collect();
    command(&sockets[0], &halves).await;

    bench.vm.adopt_vm(adopt(process, &bench), in_seconds(10)).await.unwrap();
    // It would be the tenth of its kind.
    bench.add(nic("nic-1", 2, queues)).await.unwrap();
    let grow = ResizeMemory { target_mib: 256, block_mib: 128 };
    assert_eq!(bench.vm.resize_memory(grow, in_seconds(5)).await.unwrap().memory_mib, 256);
    let devices = bench.vm.query_devices((), in_seconds(5)).await.unwrap();
    assert_eq!(places(&devices), [("cold-1", "02/01"), ("nic-1", "02/02")]);
    bench.vm = client(bench.dir.path());
    // Both names are free, and the VM can be adopted as often as one likes.
    command(&sockets[0], &halves[1..3]).await;
    bench.vm.adopt_vm(adopt(process, &bench), in_seconds(10)).await.unwrap();
    bench.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.unwrap();
    assert!(!is_alive(process));
}

#[tokio::test]
async fn a_vm_that_is_silent_is_told_from_one_that_is_gone() {
    if !has_qemu() {
        return;
    }
    let mut bench = Bench::new("silent");
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    let soon = || Instant::now() + Duration::from_millis(300);
    let next = client(bench.dir.path());
    // It serves one connection at a time, and the first client still has it.
    let error = next.adopt_vm(adopt(process, &bench), soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::NotDone), "{error}");
    let pid = Pid::from_raw(process.pid).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    bench.vm = next;
    let error = bench.vm.adopt_vm(adopt(process, &bench), soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::NotDone), "{error}");
    kill_process(pid, Signal::CONT).unwrap();
    bench.vm.adopt_vm(adopt(process, &bench), in_seconds(10)).await.unwrap();
    bench.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.unwrap();
    assert!(!is_alive(process));
}
