//! Taking over a running sandbox that an earlier process has left: what the ledger says is a hint,
//! which kernel and VMM must confirm.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::PortError;
use crate::ledger::{Entry, HostObject};

/// What an actor found of what the ledger names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Objects that are there, and are the ones that the ledger names.
    pub objects: usize,
    /// What nobody uses any more: a release that was cut off has left it.
    pub orphans: Vec<Arc<Entry>>,
}

/// Why a sandbox cannot be taken over. Nothing has changed; it can be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum AdoptError {
    /// The ledger contradicts itself, or what was kept beside it.
    #[error("what was kept does not add up: {what}")]
    Contradiction {
        /// Which entries.
        what: String,
    },
    /// Objects are gone, or others have taken their place.
    #[error("not there any more, or not the same: {}", objects.join(", "))]
    Unconfirmed {
        /// Which.
        objects: Vec<String>,
    },
    /// Kernel or VMM did not say.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Time ran out.
    #[error("taking over did not end before its deadline")]
    DeadlinePassed,
    /// Somebody interrupted it.
    #[error("taking over was interrupted")]
    Interrupted,
}

impl AdoptError {
    /// A contradiction about one entry.
    pub fn contradiction(entry: &Entry, what: &str) -> Self {
        Self::Contradiction { what: format!("entry {} ({}) {what}", entry.id, entry.object) }
    }

    /// An entry that its actor never makes.
    pub fn strange(entry: &Entry) -> Self {
        Self::contradiction(entry, &format!("is nothing that the {} actor makes", entry.actor))
    }

    /// `Ok` if every object has been confirmed.
    ///
    /// # Errors
    /// [`AdoptError::Unconfirmed`] with those that have not.
    pub fn unless_all(unconfirmed: Vec<&HostObject>) -> Result<(), Self> {
        if unconfirmed.is_empty() {
            return Ok(());
        }
        Err(Self::Unconfirmed { objects: unconfirmed.into_iter().map(ToString::to_string).collect() })
    }
}
