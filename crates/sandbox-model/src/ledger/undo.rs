//! What is asked of an undo, and what it answers.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Entry, EntryId};
use crate::PortError;

/// How an undo ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Undone {
    /// It was there and is gone now.
    Undone,
    /// It was gone already.
    AlreadyGone,
}

/// Asks an actor to undo entries of its own, in the order given. It goes on past errors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Undo {
    /// What to undo, first to last: the newest entry first.
    pub entries: Vec<Arc<Entry>>,
    /// Whether the VM is gone, and what it held with it.
    pub vm: VmFate,
}

/// Whether a VM must be asked to let go of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmFate {
    /// It runs: devices are unplugged one by one.
    Alive,
    /// It is gone: what it held is gone with it.
    Gone,
}

/// What became of each entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReport {
    /// In the order in which they were undone.
    pub items: Vec<UndoItem>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UndoItem {
    /// Which entry.
    #[schemars(with = "u64")]
    pub entry: EntryId,
    /// What it named.
    pub object: String,
    /// How it ended.
    pub result: Result<Undone, PortError>,
}

impl UndoItem {
    /// The line of `entry`.
    pub fn of(entry: &Entry, result: Result<Undone, PortError>) -> Self {
        Self { entry: entry.id, object: entry.object.to_text(), result }
    }
}

impl UndoReport {
    /// Whether nothing is left.
    pub fn is_clean(&self) -> bool {
        self.items.iter().all(|item| item.result.is_ok())
    }

    /// Those that are left, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = (&UndoItem, &PortError)> {
        self.items.iter().filter_map(|item| item.result.as_ref().err().map(|error| (item, error)))
    }

    /// Adds another report.
    pub fn extend(&mut self, other: Self) {
        self.items.extend(other.items);
    }
}
