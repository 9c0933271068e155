//! A real QEMU, without a guest that runs.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use helper_process::is_alive;
use hypervisor::{KillVm, RemoveDevice, ResizeMemory, ResizeVcpus, StopVm, VmSpec};
use sandbox_model::config::Accelerator;
use sandbox_model::device::{Access, PlacedDevice};
use sandbox_model::{ErrorKind, Instant, Outcome, PassedFd};

use crate::bench::{Bench, has_qemu};
use crate::{id, in_seconds, opened};

#[tokio::test]
async fn devices_come_cold_and_hot_by_one_path() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("devices");
    assert_eq!(bench.add(bench.disk("cold-1", 0, 1)).await.unwrap(), "02/01");
    let long = "a-device-whose-name-is-longer-than-a-block-node-s-may-be";
    assert_eq!(bench.add(bench.disk(long, 1, 30)).await.unwrap(), "03/1e");
    assert_eq!(bench.add(bench.disk("cold-1", 0, 2)).await.unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(bench.devices().await, [id(long), id("cold-1")]);

    let started = bench.start(bench.spec()).await.unwrap();
    assert_eq!((started.accelerator.as_str(), started.vcpu_threads.len()), ("tcg", 1));
    assert_eq!(bench.add(bench.disk("hot-1", 0, 11)).await.unwrap(), "02/0b");
    assert_eq!(bench.devices().await, [id(long), id("cold-1"), id("hot-1")]);
    assert_eq!(bench.add(bench.disk("hot-1", 0, 4)).await.unwrap_err().kind, ErrorKind::Exists);

    // A place that is taken, and one that cannot be; both leave nothing behind.
    let taken = bench.add(bench.disk("hot-2", 0, 11)).await.unwrap_err();
    assert_eq!((taken.kind, taken.outcome), (ErrorKind::Busy, Outcome::NotDone), "{taken}");
    for (bridge, slot) in [(2, 1), (0, 0), (0, 31)] {
        let error = bench.add(bench.disk("hot-2", bridge, slot)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    assert_eq!(bench.add(bench.disk("hot-2", 0, 12)).await.unwrap(), "02/0c");

    // What has taken the name of a disk since it was opened is not what the VM gets.
    let renamed = bench.disk("hot-3", 0, 13);
    std::fs::remove_file(bench.dir.path().join("hot-3.img")).unwrap();
    assert_eq!(bench.add(renamed).await.unwrap(), "02/0d");
    let nothing = PlacedDevice { disk: PassedFd::absent(), ..bench.disk("hot-4", 0, 14) };
    let device = PlacedDevice { disk: opened(Path::new("/dev/null"), Access::ReadOnly), ..nothing.clone() };
    // QEMU is given the rights that were asked for, or nothing.
    let writable = bench.dir.path().join("hot-4.img");
    let wrong = PlacedDevice { disk: opened(&writable, Access::ReadWrite), ..nothing.clone() };
    for (disk, kind) in [(nothing, ErrorKind::Invalid), (device, ErrorKind::Invalid), (wrong, ErrorKind::Refused)] {
        let error = bench.add(disk).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (kind, Outcome::NotDone), "{error}");
    }
    bench.stop().await;
    assert!(bench.devices().await.is_empty());
}

#[tokio::test]
async fn a_guest_that_does_not_run_lets_nothing_go() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("unplug");
    bench.start(bench.spec()).await.unwrap();
    bench.add(bench.disk("disk-1", 0, 1)).await.unwrap();
    let remove = |name: &str| RemoveDevice { id: id(name) };
    assert!(bench.vm.remove_device(remove("nobody"), in_seconds(5)).await.unwrap_err().is_absent());
    for _ in 0..2 {
        let soon = Instant::now() + Duration::from_millis(200);
        let error = bench.vm.remove_device(remove("disk-1"), soon).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful), "{error}");
    }
    assert_eq!(bench.devices().await, [id("disk-1")]);
    // While an unplug hangs, the VM can be stopped, and the one who waits is told.
    let waiting = tokio::spawn({
        let vm = bench.vm.clone();
        async move { vm.remove_device(RemoveDevice { id: id("disk-1") }, in_seconds(20)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.stop().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::PeerGone, "{error}");
}

#[tokio::test]
async fn vcpus_and_memory_grow_to_what_was_asked() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("resize");
    bench.start(bench.spec()).await.unwrap();
    for (target, vcpus) in [(2, 2), (1, 2), (9, 3)] {
        let resized = bench.vm.resize_vcpus(ResizeVcpus { target }, in_seconds(10)).await.unwrap();
        assert_eq!((resized.vcpus, resized.vcpu_threads.len()), (vcpus, vcpus as usize));
    }
    for (target_mib, memory_mib) in [(128, 128), (200, 256), (128, 256), (700, 768), (9000, 1024)] {
        let request = ResizeMemory { target_mib, block_mib: 128 };
        let resized = bench.vm.resize_memory(request, in_seconds(10)).await.unwrap();
        assert_eq!(resized.memory_mib, memory_mib, "for {target_mib}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_killed_vm_is_noticed_and_everybody_told() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("killed");
    let waiting = tokio::spawn({
        let vm = bench.vm.clone();
        async move { vm.wait_exit((), in_seconds(20)).await }
    });
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    let wrong = KillVm { process: Some(process), tag: "another/1".into(), term_ms: 100 };
    assert_eq!(bench.vm.kill_vm(wrong, in_seconds(5)).await.unwrap_err().kind, ErrorKind::Foreign);
    assert!(is_alive(process));
    // As after a crash of ours: by another object, with no identity.
    let other = Bench::new("recovery");
    let kill = KillVm { process: None, tag: bench.tag.clone(), term_ms: 2000 };
    other.vm.kill_vm(kill.clone(), in_seconds(5)).await.unwrap();
    assert!(!is_alive(process));
    assert!(other.vm.kill_vm(kill, in_seconds(5)).await.unwrap_err().is_absent());
    waiting.await.unwrap().unwrap();
    let error = bench.vm.resume_vm((), in_seconds(5)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PeerGone, "{error}");
    assert!(error.cause.contains("terminating on signal 15"), "{error}");
}

#[tokio::test]
async fn a_vm_that_does_not_answer_is_killed_in_time() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("hangs");
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    let pid = rustix::process::Pid::from_raw(process.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let soon = || Instant::now() + Duration::from_millis(100);
    let error = bench.vm.query_devices((), soon()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TimedOut);
    let error = bench.add(bench.disk("disk-1", 0, 0)).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Invalid, Outcome::NotDone));
    let error = bench.vm.add_device(bench.disk("disk-1", 0, 1), soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::NotDone), "it was never asked: {error}");
    let exit = bench.vm.stop_vm(StopVm { term_ms: 200 }, in_seconds(20)).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    assert!(!is_alive(process));
}

#[tokio::test]
async fn a_start_whose_caller_left_can_be_stopped() {
    if !has_qemu() {
        return;
    }
    for wait_ms in [0, 1, 5, 40] {
        let bench = Bench::new("left");
        let start = bench.start(VmSpec { accelerator: Accelerator::Auto, ..bench.spec() });
        assert!(tokio::time::timeout(Duration::from_millis(wait_ms), start).await.is_err());
        if let Err(error) = bench.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await {
            assert!(error.is_absent(), "{error}");
        }
        let kill = KillVm { process: None, tag: bench.tag.clone(), term_ms: 0 };
        assert!(bench.vm.kill_vm(kill, in_seconds(5)).await.unwrap_err().is_absent(), "no QEMU is left");
    }
}

#[tokio::test]
async fn a_start_that_fails_says_why_in_qemu_s_words_and_leaves_nothing() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("bad-kernel");
    let spec = VmSpec { kernel: "/no/such/kernel".into(), ..bench.spec() };
    let error = bench.start(spec).await.unwrap_err();
    let wanted = "start QEMU for pod: QEMU ended with exit status 1: ";
    assert!(error.to_string().starts_with(wanted), "{error}");
    assert!(error.cause.contains("could not open kernel file '/no/such/kernel'"), "{error}");
    assert_eq!((error.kind, error.outcome), (ErrorKind::PeerGone, Outcome::NotDone));
    let exit = bench.vm.wait_exit((), in_seconds(5)).await.unwrap();
    assert_eq!(exit.code, Some(1));

    let bench = Bench::new("bad-program");
    let error = bench.start(VmSpec { program: "/no/such/qemu".into(), ..bench.spec() }).await.unwrap_err();
    assert_eq!(error.to_string(), "exec /no/such/qemu: No such file or directory (os error 2)");

    // A cold-plugged device that cannot be had ends the start, and QEMU with it.
    let bench = Bench::new("bad-device");
    bench.add(bench.disk("first", 0, 1)).await.unwrap();
    bench.add(bench.disk("second", 0, 1)).await.unwrap();
    let error = bench.start(bench.spec()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Busy, Outcome::NotDone), "{error}");
    let kill = KillVm { process: None, tag: bench.tag.clone(), term_ms: 0 };
    assert!(bench.vm.kill_vm(kill, in_seconds(5)).await.unwrap_err().is_absent(), "no QEMU is left");
}

#[tokio::test]
async fn qemu_inherits_its_two_sockets_and_nothing_else() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("inherits");
    let stray: OwnedFd = std::fs::File::open(bench.file("secret", b"s")).unwrap().into();
    let stray = rustix::io::dup(&stray).unwrap();
    let process = bench.start(bench.spec()).await.unwrap().process.unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap();
    let targets: Vec<_> = fds.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap()).collect();
    for target in &targets {
        let allowed = ["/dev/null", "socket:", "pipe:", "anon_inode:", "/memfd:"];
        assert!(allowed.iter().any(|start| target.to_string_lossy().starts_with(start)), "{targets:?}");
    }
    // Two that listen, and our connection to each.
    assert_eq!(targets.iter().filter(|target| target.to_string_lossy().starts_with("socket:")).count(), 4);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.lines().any(|found| found == line), "no {line:?} in\n{status}");
    }
    drop(stray);
    bench.stop().await;
    assert_eq!(
        std::fs::read_dir(bench.dir.path()).unwrap().count(),
        2,
        "kernel and secret: QEMU took its sockets along"
    );
}

#[tokio::test]
async fn a_vm_that_was_not_started_is_not_there() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("not-started");
    assert!(bench.vm.stop_vm(StopVm { term_ms: 1 }, in_seconds(1)).await.unwrap_err().is_absent());
    assert!(bench.vm.resume_vm((), in_seconds(1)).await.unwrap_err().is_absent());
    assert_eq!(bench.vm.last_words((), in_seconds(1)).await.unwrap(), "");
    bench.add(bench.disk("cold-1", 0, 1)).await.unwrap();
    bench.vm.remove_device(RemoveDevice { id: id("cold-1") }, in_seconds(1)).await.unwrap();
    assert!(bench.devices().await.is_empty());
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(bench.vm.wait_exit((), soon).await.unwrap_err().kind, ErrorKind::TimedOut);
}
