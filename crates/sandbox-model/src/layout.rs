//! Names on disk and in the guest.
//!
//! Guest paths and tags are Kata's, since its agent knows them (behaviour A3, A4, A7, A18). On the
//! host everything of a sandbox lies below one directory of its own, mode 0700.

use std::path::{Path, PathBuf};

use crate::SandboxId;

/// Where sandboxes live by default.
pub const STATE_DIR: &str = "/run/resource-actors";
/// Mount tag of the shared directory.
pub const SHARE_TAG: &str = "kataShared";
/// Where the guest mounts the shared directory.
pub const GUEST_SHARED_DIR: &str = "/run/kata-containers/shared/containers/";
/// Below it: everything that is passed through.
pub const PASSTHROUGH: &str = "passthrough";
/// Below that: the sandbox's own bind mounts.
pub const SANDBOX_MOUNTS: &str = "sandbox-mounts";
/// The sandbox's `/dev/shm` in the guest.
pub const GUEST_SHM: &str = "/run/kata-containers/sandbox/shm";
/// Memory-backed volumes in the guest.
pub const GUEST_EPHEMERAL: &str = "/run/kata-containers/sandbox/ephemeral";
/// Block volumes in the guest.
pub const GUEST_STORAGE: &str = "/run/kata-containers/sandbox/storage";
/// The agent's port.
pub const AGENT_PORT: u32 = 1024;
/// Size of the sandbox's `/dev/shm` if nobody says otherwise: 64 MiB.
pub const DEFAULT_SHM_BYTES: u64 = 65536 * 1024;

/// The paths of one sandbox on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxDir {
    root: PathBuf,
}

impl SandboxDir {
    /// The directory of `sandbox` below `state_dir`.
    pub fn new(state_dir: &Path, sandbox: &SandboxId) -> Self {
        Self { root: state_dir.join(sandbox.as_str()) }
    }

    /// The directory itself, mode 0700.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ledger.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.jsonl")
    }

    /// What the sandbox was created with, for a later process.
    pub fn spec(&self) -> PathBuf {
        self.root.join("spec.json")
    }

    /// Where the sandbox stands, for a later process: written whenever a step has been committed.
    pub fn saved(&self) -> PathBuf {
        self.root.join("saved.json")
    }

    /// The directory of a sandbox, given as such.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// QEMU's control channel: by it a later process reaches a VM that runs.
    pub fn qmp_socket(&self) -> PathBuf {
        self.root.join("qmp.sock")
    }

    /// The guest's serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.root.join("console.sock")
    }

    /// virtiofsd's vhost-user socket.
    pub fn virtiofsd_socket(&self) -> PathBuf {
        self.root.join("virtiofsd.sock")
    }

    /// The vsock daemon's vhost-user socket.
    pub fn vsock_socket(&self) -> PathBuf {
        self.root.join("vsock.sock")
    }

    /// The hybrid vsock socket.
    pub fn hybrid_socket(&self) -> PathBuf {
        self.root.join("hybrid.sock")
    }

    /// What the host writes into and the guest never sees directly.
    pub fn share_rw(&self) -> PathBuf {
        self.root.join("rw")
    }

    /// What the daemon exports.
    pub fn share_ro(&self) -> PathBuf {
        self.root.join("ro")
    }

    /// The namespace that we made for the sandbox.
    pub fn net_namespace(&self) -> PathBuf {
        self.root.join("netns")
    }
}
