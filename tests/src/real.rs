//! A sandbox with a real VM: what the tests need of the host, and what they may find there.
//!
//! Helpers panic when the host refuses them: a test that cannot begin has failed.

mod containers;
mod host;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cgroup_actor::LinuxCgroupHost;
use device_actor::LinuxDeviceHost;
use guest_agent::KataAgentFactory;
use hypervisor::QemuFactory;
use network_actor::LinuxNetworkHost;
use resource_actors::{Ports, ResourceSystem, SandboxHandle, SandboxSpec};
use sandbox_model::SandboxId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::trace::TraceSink;
use sharefs_actor::LinuxShareFsHost;
use tempfile::TempDir;

pub use containers::{Container, Ran, boot, deadline, essentials, volumes};
pub use host::{Disk, PodNetwork, host, text};

/// MiB of a test's VM at boot.
pub const BOOT_MIB: u32 = 256;
/// vCPUs that a test's VM may grow to, whatever the host has.
pub const MAX_VCPUS: u32 = 4;
/// The files of the guest.
#[derive(Debug)]
pub struct Guest {
    images: PathBuf,
    vsock_daemon: PathBuf,
    rootfs: PathBuf,
}

impl Guest {
    /// The guest, or `None` after a line that says what is missing.
    ///
    /// # Panics
    /// Where `CI` is set and something is missing: there a skipped test is a failed one.
    pub fn find() -> Option<Self> {
        match Self::look() {
            Ok(guest) => Some(guest),
            Err(missing) => {
                assert!(std::env::var_os("CI").is_none(), "a real VM cannot be tested here: {missing}");
                println!("skipped: {missing}");
                None
            }
        }
    }

    fn look() -> Result<Self, String> {
        if !nix::unistd::getuid().is_root() {
            return Err("not root".to_owned());
        }
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let images = std::env::var_os("RESOURCE_ACTORS_GUEST").map_or_else(|| target.join("guest"), PathBuf::from);
        let rootfs = target.join("example/bundle/rootfs");
        let config = SandboxConfig::default().hypervisor;
        let needed = [
            images.join("vmlinux"),
            images.join("initrd.cpio"),
            rootfs.join("bin/busybox"),
            config.path,
            config.virtio_fs_daemon,
        ];
        if let Some(file) = needed.iter().find(|file| !file.is_file()) {
            return Err(format!("there is no {}", file.display()));
        }
        let name = "vhost-device-vsock";
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = std::iter::once(target.join("tools/bin")).chain(std::env::split_paths(&path));
        let vsock_daemon = candidates.map(|dir| dir.join(name)).find(|file| file.is_file());
        Ok(Self { images, rootfs, vsock_daemon: vsock_daemon.ok_or(format!("there is no {name}"))? })
    }

    /// A configuration for a small VM of this guest.
    pub fn config(&self) -> SandboxConfig {
        let mut config = SandboxConfig::default();
        config.hypervisor.kernel = self.images.join("vmlinux");
        config.hypervisor.initrd = Some(self.images.join("initrd.cpio"));
        config.hypervisor.vsock_daemon.clone_from(&self.vsock_daemon);
        config.hypervisor.default_memory = BOOT_MIB;
        config.hypervisor.default_maxvcpus = MAX_VCPUS;
        config
    }
}

/// A system on this host whose state is in `state`.
///
/// # Panics
/// When no thread can be started.
pub fn system(state: &Path, sink: Option<Arc<dyn TraceSink>>) -> ResourceSystem {
    let mut builder = ResourceSystem::builder(Lab::ports()).state_dir(state);
    if let Some(sink) = sink {
        builder = builder.trace(sink);
    }
    builder.start().expect("a thread can be started")
}

/// A directory of a test's own, and a system whose state is in it.
#[derive(Debug)]
pub struct Lab {
    /// The guest.
    pub guest: Guest,
    name: String,
    /// There until the lab is closed.
    system: Option<ResourceSystem>,
    dir: TempDir,
}

impl Lab {
    /// A lab whose names begin with `name`, unless something is missing.
    ///
    /// # Panics
    /// As [`Guest::find`], and if `/run` cannot be written.
    pub fn open(name: &str, sink: Option<Arc<dyn TraceSink>>) -> Option<Self> {
        let guest = Guest::find()?;
        let private = fs::Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("ra-test-").permissions(private).tempdir_in("/run");
        let dir = dir.expect("root may make a directory below /run");
        let system = system(&dir.path().join("state"), sink);
        Some(Self { guest, name: format!("{name}-{}", std::process::id()), system: Some(system), dir })
    }

    /// QEMU and this host.
    pub fn ports() -> Ports {
        Ports {
            vmm: Arc::new(QemuFactory::default()),
            agent: Arc::new(KataAgentFactory),
            network: Arc::new(LinuxNetworkHost::new()),
            share: Arc::new(LinuxShareFsHost),
            cgroup: Arc::new(LinuxCgroupHost::new()),
            device: Arc::new(LinuxDeviceHost::new()),
        }
    }

    /// The lab's system.
    ///
    /// # Panics
    /// When the lab has been closed.
    pub fn system(&self) -> &ResourceSystem {
        self.system.as_ref().expect("the lab is open")
    }

    /// The id of a sandbox whose leftovers the lab finds.
    ///
    /// # Panics
    /// When it is none.
    pub fn id(&self, name: &str) -> SandboxId {
        SandboxId::new(format!("{}-{name}", self.name)).expect("a valid id")
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory in the test's directory.
    ///
    /// # Panics
    /// When it is there already.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("a new directory");
        path
    }

    /// A root file system that a container may write to.
    pub fn rootfs(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        host(&["cp", "-a", &text(&self.guest.rootfs), &text(&path)]);
        path
    }

    /// A new sandbox.
    ///
    /// # Panics
    /// When the library refuses it.
    pub async fn create(&self, name: &str, config: SandboxConfig) -> SandboxHandle {
        let spec = SandboxSpec { id: self.id(name), config: config.into(), cgroups_path: None };
        self.system().create_sandbox(spec).await.expect("a new sandbox")
    }

    /// All that is on this host of the lab's sandboxes: mounts, processes, cgroups, files.
    pub fn remains(&self) -> Remains {
        let dir = text(self.dir.path());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
        let mut cgroups = Vec::new();
        find_dirs(Path::new("/sys/fs/cgroup"), &self.name, &mut cgroups);
        // The system makes its directory for the first sandbox and removes it with the last.
        let state = fs::read_dir(self.path("state")).into_iter().flatten();
        Remains {
            mounts: mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect(),
            processes: processes().into_iter().filter(|words| words.contains(&dir)).collect(),
            cgroups,
            files: state.map(|entry| text(&entry.expect("a directory entry").path())).collect(),
        }
    }

    /// Ends the system.
    ///
    /// # Panics
    /// When a sandbox had not been released, or something of one is left.
    pub async fn close(mut self) {
        assert_eq!(self.remains(), Remains::default());
        let system = self.system.take().expect("the lab is open");
        let unclean = system.shutdown().await;
        assert!(unclean.is_empty(), "{unclean:#?}");
    }
}

impl Drop for Lab {
    /// A test that has failed leaves nothing behind either.
    fn drop(&mut self) {
        let Some(system) = self.system.take() else { return };
        let unclean = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(system.shutdown()));
        if !unclean.is_empty() {
            eprintln!("left behind: {unclean:#?}");
        }
    }
}

/// What is found of sandboxes on the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Lines of the mount table.
    pub mounts: Vec<String>,
    /// Command lines.
    pub processes: Vec<String>,
    /// Directories.
    pub cgroups: Vec<String>,
    /// Entries of the state directory.
    pub files: Vec<String>,
}

fn find_dirs(dir: &Path, part: &str, found: &mut Vec<String>) {
    // Cgroups of others come and go while we look.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(text(&path));
            }
            find_dirs(&path, part, found);
        }
    }
}

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("a process table").flatten();
    let words = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    words.map(|words| String::from_utf8_lossy(&words).replace('\0', " ")).collect()
}
