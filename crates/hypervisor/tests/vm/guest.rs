//! A VM with a real guest.
//!
//! Needs QEMU and a guest kernel with an initial RAM disk: `vmlinux` and `initrd.cpio` in the
//! directory that `RESOURCE_ACTORS_GUEST` names, or in the workspace's `target/guest`. Skipped with
//! a message otherwise. NICs need root, for a tap.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use helper_process::{HelperProcess, HelperSpec};
use hypervisor::{Hypervisor, RemoveDevice, StopVm, VmSpec};
use sandbox_model::config::Accelerator;
use sandbox_model::device::{
    Access, BlockDevice, DeviceConfig, DiskFormat, NetworkDevice, PciSlot, PlacedDevice, ShareFsDevice,
};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{Instant, PassedFd};

use crate::{Guard, client, id, in_seconds, opened, start};

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
const SHARE_SOCKET: &str = "virtiofsd.sock";

fn guest() -> Option<PathBuf> {
    let named = std::env::var_os("RESOURCE_ACTORS_GUEST").map(PathBuf::from);
    let guest = named.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest").into());
    let found = guest.join("vmlinux").exists() && guest.join("initrd.cpio").exists();
    if !found {
        eprintln!("skipped: no guest in {}", guest.display());
    }
    found.then_some(guest)
}

pub(crate) fn placed(name: &str, slot: u8, config: DeviceConfig) -> PlacedDevice {
    PlacedDevice { id: id(name), slot: PciSlot { bridge: 0, slot }, config, disk: PassedFd::absent() }
}

pub(crate) fn disk(dir: &Path, name: &str, slot: u8) -> PlacedDevice {
    let path = dir.join(name);
    std::fs::write(&path, [0; 1 << 20]).expect("a file");
    let access = Access::ReadWrite;
    let disk = opened(&path, access);
    let block = BlockDevice { path, access, format: DiskFormat::Raw, direct: false, serial: None };
    PlacedDevice { disk, ..placed(name, slot, DeviceConfig::Block(block)) }
}

pub(crate) fn nic(name: &str, slot: u8, queues: Vec<PassedFd>) -> PlacedDevice {
    let network = NetworkDevice {
        tap: name.into(),
        queue_pairs: queues.len() as u16,
        queues,
        mac: format!("02:00:00:00:00:{slot:02x}").parse().expect("a MAC"),
        mtu: 1400,
    };
    placed(name, slot, DeviceConfig::Network(network))
}

/// The lock file that QEMU's virtiofsd leaves for its socket; gone with the test.
pub(crate) struct ShareLock(PathBuf);

impl ShareLock {
    /// That of the daemon that shares `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        let socket = dir.join(SHARE_SOCKET).display().to_string();
        Self(Path::new("/var/run/virtiofsd").join(format!("{}.pid", socket.replace('/', "."))))
    }
}

impl Drop for ShareLock {
    fn drop(&mut self) {
        // Another virtiofsd makes none.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A daemon that shares `dir`, and its device.
pub(crate) async fn share(dir: &Path, slot: u8, tag: &str) -> (HelperProcess, PlacedDevice) {
    let socket = dir.join(SHARE_SOCKET);
    let args = [format!("--socket-path={}", socket.display()), format!("-osource={}", dir.display()), "-f".into()];
    let args = args.map(Into::into).into();
    let spec = HelperSpec { program: VIRTIOFSD.into(), args, tag: tag.into(), passed: vec![] };
    let daemon = HelperProcess::spawn(spec).await.expect("virtiofsd is here");
    daemon.wait_for_socket(&socket, in_seconds(5)).await.expect("it listens");
    let share = ShareFsDevice { socket, tag: "kataShared".into(), queue_size: 1024 };
    (daemon, placed("share", slot, DeviceConfig::ShareFs(share)))
}

/// A VM of that guest.
pub(crate) struct Guest {
    pub(crate) vm: Arc<dyn Hypervisor>,
    pub(crate) dir: PathBuf,
    pub(crate) tag: String,
    spec: VmSpec,
    guard: RefCell<Guard>,
}

impl Guest {
    /// Not started; its sockets and disks are below `dir`.
    pub(crate) fn new(dir: &Path) -> Option<Self> {
        let guest = guest()?;
        let spec = VmSpec {
            program: "qemu-system-x86_64".into(),
            machine: "q35".into(),
            accelerator: Accelerator::Auto,
            kernel: guest.join("vmlinux"),
            initrd: Some(guest.join("initrd.cpio")),
            kernel_params: "console=ttyS0 cryptomgr.notests".into(),
            vcpus: 1,
            vcpus_max: 2,
            memory_mib: 256,
            memory_max_mib: 1024,
            memory_slots: 4,
            shared_memory: true,
            bridges: 1,
        };
        let tag = format!("guest-{}/1", std::process::id());
        Some(Self { vm: client(dir), dir: dir.to_owned(), tag, spec, guard: RefCell::default() })
    }

    /// Starts it and waits for the kernel's last line of its own: what runs as init does not matter.
    pub(crate) async fn boot(&self) -> Qemu {
        let started = start(&*self.vm, self.spec.clone(), &self.tag).await.expect("it starts");
        let process = started.process.expect("a process");
        self.guard.replace(Guard(Some(process)));
        self.vm.resume_vm((), in_seconds(5)).await.expect("it runs");
        let deadline = in_seconds(60);
        loop {
            let words = self.vm.last_words((), deadline).await.expect("never fails");
            if words.contains("as init process") {
                return Qemu(process);
            }
            assert!(Instant::now() < deadline, "the guest does not boot:\n{words}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn add(&self, device: PlacedDevice) {
        self.vm.add_device(device, in_seconds(5)).await.expect("it is plugged");
    }

    pub(crate) async fn remove(&self, name: &str) {
        self.vm.remove_device(RemoveDevice { id: id(name) }, in_seconds(20)).await.expect("it is given back");
    }

    pub(crate) async fn stop(&self) {
        let exit = self.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.expect("it ends");
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.last_words);
    }
}

/// The process of a VM.
pub(crate) struct Qemu(pub(crate) ProcessIdentity);

impl Qemu {
    /// What it has open of files, taps and sockets.
    pub(crate) fn holds(&self) -> Vec<String> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.0.pid)).expect("it runs");
        let targets = fds.filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.display().to_string()));
        let outside = |target: &String| target.starts_with("socket:") || target.starts_with('/');
        let own = |target: &String| ["/memfd:", "/dev/null"].iter().any(|start| target.starts_with(start));
        targets.filter(|target| outside(target) && !own(target)).collect()
    }

    /// Waits until it holds nothing but its own sockets, two that listen and a connection of each:
    /// what stood behind a device goes with it.
    pub(crate) async fn let_go(&self) {
        let deadline = in_seconds(5);
        while self.holds().len() != 4 {
            assert!(Instant::now() < deadline, "still open: {:?}", self.holds());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
