//! The actor on this host: the vsock daemon as a process, disks as devices. The VM is simulated.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use device_actor::host::{DeviceHost, FindBlockNode};
use device_actor::{AttachDevice, AttachVsock, AttachedDevice, DeviceActor, DeviceError, LinuxDeviceHost, UndoDevices};
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, VsockBackend, VsockDevice};
use sandbox_model::ledger::{self, Entry, Journal, Scope, Undo, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::VsockRequest;
use sandbox_model::{Instant, SandboxId};
use simulation::{MemoryLedger, SimulatedVmm, World};

/// Where the daemon is, if not in `PATH`.
const DAEMON_ENV: &str = "VHOST_DEVICE_VSOCK";

fn skipped(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs {what}");
    eprintln!("skipped: needs {what}");
}

fn daemon() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(DAEMON_ENV) {
        return Some(path.into());
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&dirs).map(|dir| dir.join("vhost-device-vsock")).find(|path| path.exists());
    if found.is_none() {
        skipped(&format!("vhost-device-vsock in PATH or {DAEMON_ENV}"));
    }
    found
}

struct Lab {
    dir: tempfile::TempDir,
    ledger: Rc<MemoryLedger>,
    world: Arc<World>,
    sandbox: SandboxId,
    actor: Address<DeviceActor>,
}

fn actor(world: &Arc<World>, ledger: &Rc<MemoryLedger>, sandbox: &SandboxId) -> Address<DeviceActor> {
    let vmm = Arc::new(SimulatedVmm::new(world.clone(), sandbox.clone()));
    let journal = Journal::new(ledger.clone(), ActorName::Device);
    let domain = DeviceActor::new(journal, vmm, Arc::new(LinuxDeviceHost::new()), sandbox.clone(), 1, 2);
    let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
    actor_shell::spawn(domain, Identity { actor: ActorName::Device, sandbox: sandbox.clone(), bound: 16, sink, cause })
}

impl Lab {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, world) = (MemoryLedger::new(), Arc::new(World::new()));
        let sandbox = SandboxId::new(format!("test-{name}-{}", std::process::id())).expect("a valid id");
        let actor = actor(&world, &ledger, &sandbox);
        Self { dir, ledger, world, sandbox, actor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn vsock(&self, daemon: &Path, deadline: Duration) -> Result<VsockDevice, DeviceError> {
        let (socket, hybrid_socket) = (self.path("vsock.sock"), self.path("hybrid.sock"));
        let backend = Some(VsockBackend::VhostUser { socket: socket.clone(), hybrid_socket: hybrid_socket.clone() });
        let request = VsockRequest { cid: None, backend };
        let attach = AttachVsock { request, daemon: daemon.to_owned(), socket, hybrid_socket };
        self.actor.ask(attach, within(deadline)).await.expect("served")
    }

    async fn attach(&self, path: &Path, access: Access) -> Result<AttachedDevice, DeviceError> {
        let path = path.to_owned();
        let block = BlockDevice { path, access, format: DiskFormat::Raw, direct: false, serial: None };
        let request = AttachDevice { config: DeviceConfig::Block(block), holder: Scope::Sandbox };
        self.actor.ask(request, within(Duration::from_secs(10))).await.expect("served")
    }

    /// As after a crash: an actor that knows nothing but the entries.
    async fn undo(&self, entries: Vec<Arc<Entry>>) -> UndoReport {
        let fresh = actor(&self.world, &self.ledger, &self.sandbox);
        let undo = UndoDevices(Undo { entries, vm: VmFate::Gone });
        fresh.ask(undo, within(Duration::from_secs(10))).await.expect("served")
    }

    fn process(&self) -> Option<ledger::ProcessIdentity> {
        self.ledger.newest_first().iter().find_map(|entry| match entry.identity {
            Some(ledger::Identity::Process(process)) => Some(process),
            _ => None,
        })
    }
}

fn within(time: Duration) -> Ask {
    Ask { deadline: Instant::now() + time, cause: None }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_vsock_daemon_serves_both_sockets_and_goes_with_its_entries() {
    let Some(daemon) = daemon() else { return };
    run(async {
        for is_recorded in [true, false] {
            let lab = Lab::new("vsock");
            let vsock = lab.vsock(&daemon, SOON).await.unwrap();
            assert_eq!(vsock.cid, 3);
            let process = lab.process().unwrap();
            assert!(helper_process::is_alive(process));
            assert!(lab.path("vsock.sock").exists() && lab.path("hybrid.sock").exists());
            let mut entries = lab.ledger.newest_first();
            if !is_recorded {
                entries.iter_mut().for_each(|entry| Arc::make_mut(entry).identity = None);
            }
            let report = lab.undo(entries).await;
            assert!(report.is_clean(), "{report:?}");
            assert!(!helper_process::is_alive(process));
            assert!(!lab.path("vsock.sock").exists() && !lab.path("hybrid.sock").exists());
        }
    });
}

#[test]
fn a_daemon_that_ends_says_why_and_leaves_entries_that_can_be_undone() {
    let Some(daemon) = daemon() else { return };
    run(async {
        let lab = Lab::new("words");
        // Something else sits where the daemon wants its socket.
        fs::create_dir(lab.path("hybrid.sock")).unwrap();
        let error = lab.vsock(&daemon, Duration::from_secs(3)).await.unwrap_err();
        assert!(error.to_string().contains("vhost-device-vsock"), "{error}");
        let report = lab.undo(lab.ledger.newest_first()).await;
        let failed: Vec<_> = report.failed().map(|(item, _)| item.object.clone()).collect();
        assert_eq!(failed, [format!("file {}", lab.path("hybrid.sock").display())], "what is not ours stays");
        fs::remove_dir(lab.path("hybrid.sock")).unwrap();
        assert!(lab.undo(lab.ledger.newest_first()).await.is_clean());
    });
}

#[test]
fn a_daemon_that_never_listens_is_ended_by_its_entry() {
    run(async {
        let lab = Lab::new("silent");
        let silent = lab.path("silent");
        fs::write(&silent, "#!/bin/sh\necho waiting for nothing >&2\nexec sleep 300\n").unwrap();
        fs::set_permissions(&silent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = lab.vsock(&silent, Duration::from_millis(500)).await.unwrap_err();
        assert!(error.to_string().contains("waiting for nothing"), "{error}");
        let process = lab.process().unwrap();
        assert!(helper_process::is_alive(process));
        assert!(lab.undo(lab.ledger.newest_first()).await.is_clean());
        assert!(!helper_process::is_alive(process));
    });
}

#[test]
fn one_file_under_two_names_is_one_disk() {
    run(async {
        let lab = Lab::new("file");
        fs::write(lab.path("disk"), [0; 4096]).unwrap();
        fs::hard_link(lab.path("disk"), lab.path("link")).unwrap();
        let disk = lab.attach(&lab.path("disk"), Access::ReadOnly).await.unwrap();
        assert_eq!(lab.attach(&lab.path("link"), Access::ReadOnly).await.unwrap(), disk);
        let error = lab.attach(&lab.path("link"), Access::ReadWrite).await.unwrap_err();
        assert!(matches!(error, DeviceError::ConflictingAccess { .. }), "{error}");
        let error = lab.attach(&lab.path("none"), Access::ReadOnly).await.unwrap_err();
        assert!(matches!(error, DeviceError::BadSource { .. }), "{error}");
    });
}

/// A loop device that is detached with the test.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let node = String::from_utf8(made.stdout).ok()?;
        made.status.success().then(|| Self(node.trim().into()))
    }

    fn number(&self) -> FindBlockNode {
        let facts = rustix::fs::stat(&self.0).expect("the node is there");
        FindBlockNode { major: rustix::fs::major(facts.st_rdev), minor: rustix::fs::minor(facts.st_rdev) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_that_the_host_uses_is_only_read() {
    run(async {
        let lab = Lab::new("loop");
        fs::write(lab.path("disk"), vec![0; 1 << 20]).unwrap();
        let Some(device) = Loop::attach(&lab.path("disk")) else {
            return skipped("root and loop devices");
        };
        let found = LinuxDeviceHost::new().find_block_node(device.number(), Instant::now() + SOON).await.unwrap();
        assert_eq!((found.path, found.read_only), (device.0.clone(), false));
        // What a mount, device mapper or swap does.
        let exclusive = OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&device.0).unwrap();
        let error = lab.attach(&device.0, Access::ReadWrite).await.unwrap_err();
        assert!(error.to_string().contains("the host uses it"), "{error}");
        drop(exclusive);
        lab.attach(&device.0, Access::ReadWrite).await.unwrap();
    });
}
