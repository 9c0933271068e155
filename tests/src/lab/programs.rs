//! What a lab works with, and where it is found.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sandbox_model::config::SandboxConfig;
use serde::{Deserialize, Serialize};

/// Programs and files that a lab works with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `fault-lab`.
    pub lab: PathBuf,
    /// `sandboxctl`.
    pub sandboxctl: PathBuf,
    /// QEMU, or what takes its place.
    pub vmm: PathBuf,
    /// The vsock daemon, or what takes its place.
    pub vsock_daemon: PathBuf,
    /// virtiofsd.
    pub virtiofsd: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// A root file system that is copied for each container; empty directories without.
    pub rootfs: Option<PathBuf>,
}

impl Programs {
    /// Stand-ins for VMM and guest; virtiofsd is real.
    ///
    /// # Errors
    /// Something is missing.
    pub fn stand_ins() -> Result<Self> {
        // Nobody reads what no VM boots.
        let nothing = std::env::current_exe()?;
        Self::of(beside("fake-vmm")?, beside("fake-vsock")?, nothing.clone(), nothing, None)
    }

    /// A real VM with this project's guest.
    ///
    /// # Errors
    /// Something is missing.
    pub fn real() -> Result<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").canonicalize()?;
        let given = |variable: &str, else_at: &str| {
            std::env::var_os(variable).map_or_else(|| target.join(else_at), PathBuf::from)
        };
        let guest = given("RESOURCE_ACTORS_GUEST", "guest");
        let vsock_daemon = given("RESOURCE_ACTORS_TOOLS", "tools/bin").join("vhost-device-vsock");
        let rootfs = target.join("example/bundle/rootfs");
        let vmm = SandboxConfig::default().hypervisor.path;
        Self::of(vmm, vsock_daemon, guest.join("vmlinux"), guest.join("initrd.cpio"), Some(rootfs))
    }

    /// What was found, or `None` after a line that says what is missing.
    ///
    /// # Panics
    /// Where `CI` is set and something is missing: there a skipped test is a failed one.
    pub fn or_skip(found: Result<Self>) -> Option<Self> {
        match found {
            Ok(programs) => Some(programs),
            Err(missing) => {
                assert!(std::env::var_os("CI").is_none(), "there can be no lab here: {missing:#}");
                println!("skipped: {missing:#}");
                None
            }
        }
    }

    fn of(
        vmm: PathBuf,
        vsock_daemon: PathBuf,
        kernel: PathBuf,
        initrd: PathBuf,
        rootfs: Option<PathBuf>,
    ) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "not root");
        let virtiofsd = SandboxConfig::default().hypervisor.virtio_fs_daemon;
        for needed in [&vmm, &vsock_daemon, &kernel, &initrd, &virtiofsd].into_iter().chain(&rootfs) {
            ensure!(needed.exists(), "there is no {}", needed.display());
        }
        let (lab, sandboxctl) = (beside("fault-lab")?, beside("sandboxctl")?);
        Ok(Self { lab, sandboxctl, vmm, vsock_daemon, virtiofsd, kernel, initrd, rootfs })
    }
}

/// A program that was built beside this one.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}: cargo build --workspace", own.display()))
}
