//! What the share-fs actor can be asked.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::Request;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::config::VirtioFsCache;
use sandbox_model::device::{Access, ShareFsDevice};
use sandbox_model::ledger::{Entry, Undo, UndoReport};
use sandbox_model::request::SandboxBindMount;
use sandbox_model::{ContainerId, PortError};
use serde::{Deserialize, Serialize};

/// Makes the shared directory and starts its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUpShare {
    /// The daemon's program.
    pub daemon: PathBuf,
    /// What the guest may cache.
    pub cache: VirtioFsCache,
    /// Queue size in descriptors.
    pub queue_size: u16,
    /// Host paths for the whole sandbox.
    pub bind_mounts: Vec<SandboxBindMount>,
}

/// Checks that the daemon has shut itself in: a mount namespace of its own, and seccomp.
///
/// virtiofsd does so when the VMM connects, not when it starts, so this is asked once the VMM has the
/// device and before the guest is trusted with anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyShare {}

/// Shows a container's root file system to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRootfs {
    /// Whose.
    pub container: ContainerId,
    /// Directory on the host.
    pub source: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
}

/// Shows a file or directory to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareVolume {
    /// For whom.
    pub container: ContainerId,
    /// File or directory on the host.
    pub source: PathBuf,
    /// Where the container will see it: its last part becomes part of our name for it.
    pub destination: String,
    /// Whether the guest may write.
    pub access: Access,
}

/// Something that the guest can see now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPath {
    /// Its path in the guest.
    pub guest_path: String,
}

/// Why something could not be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum ShareFsError {
    /// The sandbox has no shared directory.
    #[error("the sandbox has no shared directory; its configuration says shared_fs = \"none\"")]
    NotSetUp,
    /// It has one already.
    #[error("the sandbox has its shared directory already")]
    AlreadySetUp,
    /// Two sandbox bind mounts would have the same name in the guest.
    #[error("sandbox bind mounts: two paths end in {name:?}, and the guest sees only that")]
    SameName {
        /// The name.
        name: String,
    },
    /// What shall be shared is not there, or of a kind that cannot be shared.
    #[error("cannot share {path}: {reason}", path = path.display())]
    BadSource {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The container has a root file system already.
    #[error("container {container} has its root file system already")]
    RootfsExists {
        /// Whose.
        container: ContainerId,
    },
    /// The host refused, or the daemon did.
    #[error(transparent)]
    Host(#[from] PortError),
    /// Time ran out: what exists of it is in the ledger.
    #[error("sharing did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("sharing was interrupted")]
    Interrupted,
}

impl Request for SetUpShare {
    type Reply = Result<ShareFsDevice, ShareFsError>;
    const NAME: &'static str = "SetUpShare";
}

impl Request for VerifyShare {
    type Reply = Result<(), ShareFsError>;
    const NAME: &'static str = "VerifyShare";
}

impl Request for ShareRootfs {
    type Reply = Result<SharedPath, ShareFsError>;
    const NAME: &'static str = "ShareRootfs";
}

impl Request for ShareVolume {
    type Reply = Result<SharedPath, ShareFsError>;
    const NAME: &'static str = "ShareVolume";
}

/// Takes over the shared directory of a sandbox that an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptShares {
    /// The actor's live entries, oldest first.
    pub entries: Vec<Arc<Entry>>,
}

impl Request for AdoptShares {
    type Reply = Result<Confirmed, AdoptError>;
    const NAME: &'static str = "AdoptShares";
}

/// Undoes what the ledger says this actor made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UndoShares(pub Undo);

impl Request for UndoShares {
    type Reply = UndoReport;
    const NAME: &'static str = "UndoShares";
}
