//! What the network actor can be asked.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::Request;
use sandbox_model::PortError;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::device::NetworkDevice;
use sandbox_model::ledger::{Entry, Undo, UndoReport};
use sandbox_model::network::{GuestNetwork, NetworkRequest};
use serde::{Deserialize, Serialize};

/// Makes the host side of the sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUpNetwork {
    /// The wish.
    pub request: NetworkRequest,
    /// Where a namespace of our own is bound to.
    pub own_namespace: PathBuf,
}

/// The host side, made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkIsUp {
    /// NICs to be plugged, in the order of the host's links.
    pub nics: Vec<NetworkDevice>,
    /// What the guest must be told.
    pub guest: GuestNetwork,
    /// Links that were left out, each with the reason.
    pub skipped: Vec<String>,
}

/// Why the network could not be made. What was made for it has been noted in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum NetworkError {
    /// The sandbox has a network already.
    #[error("the sandbox has its network already")]
    AlreadyUp,
    /// The path names no network namespace, or one that must not be touched.
    #[error("{path} is not a network namespace for a sandbox: {reason}", path = path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A value in the request is wrong.
    #[error("{what}")]
    Invalid {
        /// Which, and what would be right.
        what: String,
    },
    /// The host refused.
    #[error(transparent)]
    Host(#[from] PortError),
    /// Time ran out while it was made: what exists of it is in the ledger.
    #[error("setting up the network did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("setting up the network was interrupted")]
    Interrupted,
}

impl Request for SetUpNetwork {
    type Reply = Result<NetworkIsUp, NetworkError>;
    const NAME: &'static str = "SetUpNetwork";
}

/// Takes over the network of a sandbox that an earlier process has left running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptNetwork {
    /// The actor's live entries, oldest first.
    pub entries: Vec<Arc<Entry>>,
}

impl Request for AdoptNetwork {
    type Reply = Result<Confirmed, AdoptError>;
    const NAME: &'static str = "AdoptNetwork";
}

/// Undoes what the ledger says this actor made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UndoNetwork(pub Undo);

impl Request for UndoNetwork {
    type Reply = UndoReport;
    const NAME: &'static str = "UndoNetwork";
}
