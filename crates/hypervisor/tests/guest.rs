//! A real guest: devices are found at boot, plugged and given back while it runs.
//!
//! Needs QEMU and a guest kernel with an initial RAM disk: `vmlinux` and `initrd.cpio` in the
//! directory that `RESOURCE_ACTORS_GUEST` names, or in the workspace's `target/guest`. Skipped with
//! a message otherwise. NICs need root, for a tap.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use helper_process::{HelperProcess, HelperSpec};
use hypervisor::{
    BindSocket, Hypervisor, QemuFactory, RemoveDevice, ResizeMemory, ResizeVcpus, StartVm, StopVm, VmSpec, VmmFactory,
};
use sandbox_model::config::{Accelerator, SandboxConfig};
use sandbox_model::device::{
    Access, BlockDevice, DeviceConfig, DiskFormat, NetworkDevice, PciSlot, PlacedDevice, ShareFsDevice,
};
use sandbox_model::{DeviceId, ErrorKind, Instant, Outcome, PassedFd, SandboxId};
use tempfile::TempDir;

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

fn guest() -> Option<PathBuf> {
    let named = std::env::var_os("RESOURCE_ACTORS_GUEST").map(PathBuf::from);
    let guest = named.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest").into());
    let found = guest.join("vmlinux").exists() && guest.join("initrd.cpio").exists();
    if !found {
        eprintln!("skipped: no guest in {}", guest.display());
    }
    found.then_some(guest)
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn id(name: &str) -> DeviceId {
    DeviceId::new(name).expect("an id")
}

fn placed(name: &str, slot: u8, config: DeviceConfig) -> PlacedDevice {
    PlacedDevice { id: id(name), slot: PciSlot { bridge: 0, slot }, config }
}

fn disk(dir: &Path, name: &str, slot: u8) -> PlacedDevice {
    let path = dir.join(name);
    std::fs::write(&path, [0; 1 << 20]).expect("a file");
    let access = Access::ReadWrite;
    let block = BlockDevice { path, access, format: DiskFormat::Raw, direct: false, serial: None };
    placed(name, slot, DeviceConfig::Block(block))
}

fn nic(name: &str, slot: u8, queues: Vec<PassedFd>) -> PlacedDevice {
    let network = NetworkDevice {
        tap: name.into(),
        queue_pairs: queues.len() as u16,
        queues,
        mac: format!("02:00:00:00:00:{slot:02x}").parse().expect("a MAC"),
        mtu: 1400,
    };
    placed(name, slot, DeviceConfig::Network(network))
}

/// A VM of that guest, which has not started.
struct Guest {
    vm: Arc<dyn Hypervisor>,
    dir: TempDir,
    spec: VmSpec,
}

impl Guest {
    fn new() -> Option<Self> {
        let guest = guest()?;
        let dir = tempfile::tempdir().expect("a directory");
        let sandbox = SandboxId::new("guest").expect("an id");
        let vm = QemuFactory::default().create(&sandbox, dir.path(), &SandboxConfig::default()).expect("QEMU is here");
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
        Some(Self { vm, dir, spec })
    }

    /// Starts it and waits for the kernel's last line of its own: what runs as init does not matter.
    async fn boot(&self) -> Qemu {
        let tag = format!("guest-{}/1", std::process::id());
        let request = StartVm { spec: self.spec.clone(), tag };
        for path in self.vm.capabilities((), in_seconds(5)).await.expect("never fails").sockets {
            self.vm.bind_socket(BindSocket { path }, in_seconds(5)).await.expect("it is free");
        }
        let started = self.vm.start_vm(request, in_seconds(20)).await.expect("it starts");
        self.vm.resume_vm((), in_seconds(5)).await.expect("it runs");
        let deadline = in_seconds(60);
        loop {
            let words = self.vm.last_words((), deadline).await.expect("never fails");
            if words.contains("as init process") {
                return Qemu(started.process.expect("a process").pid);
            }
            assert!(Instant::now() < deadline, "the guest does not boot:\n{words}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn add(&self, device: PlacedDevice) {
        self.vm.add_device(device, in_seconds(5)).await.expect("it is plugged");
    }

    async fn remove(&self, name: &str) {
        self.vm.remove_device(RemoveDevice { id: id(name) }, in_seconds(20)).await.expect("it is given back");
    }

    async fn stop(&self) {
        let exit = self.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.expect("it ends");
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.last_words);
    }
}

/// The process of a VM.
struct Qemu(i32);

impl Qemu {
    /// What it has open of files, taps and sockets.
    fn holds(&self) -> Vec<String> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.0)).expect("it runs");
        let targets = fds.filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.display().to_string()));
        let outside = |target: &String| target.starts_with("socket:") || target.starts_with('/');
        let own = |target: &String| ["/memfd:", "/dev/null"].iter().any(|start| target.starts_with(start));
        targets.filter(|target| outside(target) && !own(target)).collect()
    }

    /// Waits until it holds nothing but its own sockets, two that listen and a connection of each:
    /// what stood behind a device goes with it.
    async fn let_go(&self) {
        let deadline = in_seconds(5);
        while self.holds().len() != 4 {
            assert!(Instant::now() < deadline, "still open: {:?}", self.holds());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_guest_takes_devices_and_gives_them_back() {
    let Some(guest) = Guest::new() else { return };
    guest.add(disk(guest.dir.path(), "cold", 1)).await;
    let qemu = guest.boot().await;
    assert!(qemu.holds().len() > 4, "{:?}", qemu.holds());
    guest.add(disk(guest.dir.path(), "hot", 17)).await;
    guest.remove("hot").await;
    // One that is given back after its deadline: a query finds out, and the place is free.
    let error = guest.vm.remove_device(RemoveDevice { id: id("cold") }, Instant::now()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TimedOut);
    let soon = Instant::now() + Duration::from_millis(5);
    // A busy host may look at the answer and the clock at once: then the device is gone in time.
    if let Err(error) = guest.vm.remove_device(RemoveDevice { id: id("cold") }, soon).await {
        assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful));
    }
    while !guest.vm.query_devices((), in_seconds(5)).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guest.add(disk(guest.dir.path(), "cold", 1)).await;
    guest.remove("cold").await;
    assert!(guest.vm.query_devices((), in_seconds(5)).await.unwrap().is_empty());
    qemu.let_go().await;
    // The same name and place again.
    guest.add(disk(guest.dir.path(), "hot", 17)).await;
    let request = ResizeMemory { target_mib: 300, block_mib: 128 };
    assert_eq!(guest.vm.resize_memory(request, in_seconds(5)).await.unwrap().memory_mib, 384);
    assert_eq!(guest.vm.resize_vcpus(ResizeVcpus { target: 2 }, in_seconds(5)).await.unwrap().vcpus, 2);
    guest.stop().await;
}

#[tokio::test]
async fn a_guest_takes_nics_and_a_share_and_gives_them_back() {
    let Some(guest) = Guest::new() else { return };
    let Some(single) = tap::queues(1) else { return eprintln!("skipped: no tap can be made") };
    let dir = guest.dir.path();
    let socket = dir.join("virtiofsd.sock");
    let args = [format!("--socket-path={}", socket.display()), format!("-osource={}", dir.display()), "-f".into()];
    let tag = format!("guest-{}/2", std::process::id());
    let spec = HelperSpec { program: VIRTIOFSD.into(), args: args.map(Into::into).into(), tag, passed: vec![] };
    let daemon = HelperProcess::spawn(spec).await.unwrap();
    daemon.wait_for_socket(&socket, in_seconds(5)).await.unwrap();
    let share = ShareFsDevice { socket, tag: "kataShared".into(), queue_size: 1024 };
    guest.add(placed("share", 1, DeviceConfig::ShareFs(share))).await;
    guest.add(nic("cold", 2, single)).await;
    let qemu = guest.boot().await;
    guest.add(nic("hot", 3, tap::queues(2).unwrap())).await;
    for name in ["cold", "hot", "share"] {
        guest.remove(name).await;
    }
    qemu.let_go().await;
    // It serves one VMM only, and that has let it go.
    let exit = tokio::time::timeout(Duration::from_secs(5), daemon.wait()).await;
    assert_eq!(exit.unwrap().code, Some(0), "{}", daemon.last_words());
    guest.stop().await;
}

/// A tap for a test: gone with its last descriptor.
mod tap {
    #![expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]

    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;

    use nix::libc;
    use sandbox_model::PassedFd;

    /// `_IOW('T', 202, int)` of linux/if_tun.h.
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

    /// The queues of a new tap; `None` where none can be made.
    pub(super) fn queues(count: usize) -> Option<Vec<PassedFd>> {
        let multi = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi) as libc::c_short;
        (0..count)
            .map(|_| {
                let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok()?;
                // SAFETY: TUNSETIFF reads and writes one ifreq; the name that it writes joins the
                // next queue to the same tap.
                let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &mut request) };
                (done == 0).then(|| PassedFd::new(file.into()))
            })
            .collect()
    }
}
