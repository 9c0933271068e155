//! What a ledger does with a record, wherever its lines are kept.

use std::cell::RefCell;
use std::fmt::Debug;

use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult};

use super::LedgerTable;

/// Keeps the lines of one ledger.
pub trait Lines: Debug {
    /// Appends a line, which ends with its newline: all of it or nothing.
    ///
    /// # Errors
    /// It could not be written, and nothing of it is there.
    fn append(&mut self, line: &[u8]) -> PortResult<()>;

    /// Whether they are kept at all: otherwise nobody writes a line for them.
    fn are_kept(&self) -> bool {
        true
    }
}

/// A ledger whose records are lines of JSON.
///
/// What cannot be written is not forgotten either way: an intent that is not kept never was, so its
/// effect must not start; an outcome that is not kept is true all the same, and holds in this process.
/// The lines then say less than is true, which costs a later process a look at the object.
#[derive(Debug)]
pub struct LineLedger<L> {
    lines: RefCell<L>,
    table: RefCell<LedgerTable>,
}

impl<L: Lines> LineLedger<L> {
    /// A ledger that goes on from `table`, which is what `lines` add up to.
    pub fn new(lines: L, table: LedgerTable) -> Self {
        Self { lines: RefCell::new(lines), table: RefCell::new(table) }
    }

    /// Appends a record without looking at it: the header.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn write(&self, record: &Record) -> PortResult<()> {
        if !self.lines.borrow().are_kept() {
            return Ok(());
        }
        let mut line = serde_json::to_vec(record)
            .map_err(|error| PortError::new(ErrorKind::Invalid, "record", "ledger", error.to_string()))?;
        line.push(b'\n');
        self.lines.borrow_mut().append(&line)
    }
}

impl<L: Lines> Ledger for LineLedger<L> {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let entry = self.table.borrow().next_id();
        self.append(Record::Intent { entry, actor, scope, object })?;
        Ok(entry)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        let mut table = self.table.borrow_mut();
        // Judged before it is written: the lines must never hold what a reader would refuse.
        table
            .check(&record)
            .map_err(|violation| PortError::new(ErrorKind::Invalid, "record", "ledger", violation.to_string()))?;
        let written = self.write(&record);
        if written.is_ok() || !matches!(record, Record::Intent { .. }) {
            table.take(record);
        }
        written
    }

    fn live(&self) -> Vec<Entry> {
        self.table.borrow().entries().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Entry> {
        self.table.borrow().entry(id).cloned()
    }

    fn count(&self) -> usize {
        self.table.borrow().len()
    }

    fn newest(&self) -> EntryId {
        self.table.borrow().entries().next_back().map_or(EntryId(0), |entry| entry.id)
    }

    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.table.borrow().entries().any(test)
    }
}
