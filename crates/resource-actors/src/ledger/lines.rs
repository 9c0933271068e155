//! What a ledger does with a record, wherever its lines are kept.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::Arc;

use sandbox_model::ledger::{Entry, EntryId, HostObject, LEDGER_VERSION, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult};

use super::{Bounds, LedgerTable, ReadLedger, Seal, Violation};

/// Lines that have grown to this are written anew, without what has been undone.
const REWRITE_BYTES: usize = 1 << 20;

/// Keeps the lines of one ledger.
pub trait Lines: Debug {
    /// Appends the line of `record`, which ends with its newline: all of it or nothing.
    ///
    /// # Errors
    /// It could not be written, and nothing of it is there.
    fn append(&mut self, line: &str, record: &Record) -> PortResult<()>;

    /// Puts `text`, which is whole lines, in the place of all lines: all of it or nothing.
    ///
    /// # Errors
    /// It could not be written, and the lines are as before.
    fn replace(&mut self, text: &str) -> PortResult<()>;

    /// Whether they are kept at all: otherwise nobody writes a line for them.
    fn are_kept(&self) -> bool {
        true
    }
}

/// A ledger whose records are sealed lines of JSON, held to the bounds of its sandbox.
///
/// What cannot be written is not forgotten either way: an intent that is not kept never was, so its
/// effect must not start; an outcome that is not kept is true all the same, and holds in this process.
/// The lines then say less than is true, which costs a later process a look at the object.
#[derive(Debug)]
pub struct LineLedger<L> {
    lines: RefCell<L>,
    bounds: Bounds,
    boot: String,
    table: RefCell<LedgerTable>,
    seal: Cell<Seal>,
    bytes: Cell<usize>,
    rewrite_at: Cell<usize>,
}

impl<L: Lines> LineLedger<L> {
    /// A ledger of the boot `boot` that goes on from what `lines` were found to say, cut to whole
    /// ones. Where there are none it begins with its header; those of an earlier boot name nothing
    /// that still exists, and it begins anew.
    ///
    /// # Errors
    /// The lines could not be written.
    pub fn open(lines: L, found: ReadLedger, bounds: Bounds, boot: String) -> PortResult<Self> {
        let ReadLedger { table, same_boot, whole, seal, .. } = found;
        let ledger = Self {
            lines: RefCell::new(lines),
            bounds,
            boot,
            table: RefCell::default(),
            seal: Cell::new(seal),
            bytes: Cell::new(whole),
            rewrite_at: Cell::new(REWRITE_BYTES),
        };
        if whole == 0 {
            ledger.write(&ledger.header(EntryId(0)))?;
        } else if same_boot {
            ledger.table.replace(table);
        } else {
            // Its numbers are not used again.
            ledger.table.borrow_mut().skip_to(EntryId(table.next_id().0 - 1));
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    /// The ledger of a new sandbox.
    ///
    /// # Errors
    /// Its header could not be written.
    pub fn create(lines: L, bounds: Bounds, boot: String) -> PortResult<Self> {
        Self::open(lines, ReadLedger::default(), bounds, boot)
    }

    fn header(&self, last: EntryId) -> Record {
        let (sandbox, boot) = (self.bounds.sandbox().clone(), self.boot.clone());
        Record::Header { version: LEDGER_VERSION, sandbox, boot, last }
    }

    fn write(&self, record: &Record) -> PortResult<()> {
        if !self.lines.borrow().are_kept() {
            return Ok(());
        }
        let (line, seal) = self.seal.get().line(record).map_err(refused)?;
        self.lines.borrow_mut().append(&line, record)?;
        self.seal.set(seal);
        self.bytes.set(self.bytes.get() + line.len());
        Ok(())
    }

    /// Writes the lines anew, with the open entries only.
    fn rewrite(&self) -> PortResult<()> {
        let header = self.header(EntryId(self.table.borrow().next_id().0 - 1));
        let (mut text, mut seal) = (String::new(), Seal::default());
        for record in [header].into_iter().chain(self.table.borrow().records()) {
            let (line, next) = seal.line(&record).map_err(refused)?;
            text.push_str(&line);
            seal = next;
        }
        self.lines.borrow_mut().replace(&text)?;
        self.seal.set(seal);
        self.bytes.set(text.len());
        self.rewrite_at.set(REWRITE_BYTES.max(text.len() * 4));
        Ok(())
    }
}

fn refused(violation: Violation) -> PortError {
    let kind = if matches!(violation, Violation::Full { .. }) { ErrorKind::Refused } else { ErrorKind::Invalid };
    PortError::new(kind, "record", "ledger", violation.to_string())
}

impl<L: Lines> Ledger for LineLedger<L> {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let entry = self.table.borrow().next_id();
        self.append(Record::Intent { entry, actor, scope, object })?;
        Ok(entry)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        // Judged before it is written: the lines must never hold what a reader would refuse.
        if let Record::Intent { actor, object, .. } = &record {
            self.bounds.object(*actor, object).map_err(refused)?;
        }
        self.table.borrow().check(&record).map_err(refused)?;
        let written = self.write(&record);
        if written.is_ok() || !matches!(record, Record::Intent { .. }) {
            self.table.borrow_mut().take(record);
        }
        if self.bytes.get() >= self.rewrite_at.get() && self.rewrite().is_err() {
            // The lines as they are say the same. The next attempt is not the next record's business.
            self.rewrite_at.set(self.bytes.get() * 2);
        }
        written
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.table.borrow().shared().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.table.borrow().shared_entry(id).cloned()
    }

    fn count(&self) -> usize {
        self.table.borrow().len()
    }

    fn newest(&self) -> EntryId {
        self.table.borrow().entries().next_back().map_or(EntryId(0), |entry| entry.id)
    }

    fn is_live(&self, id: EntryId) -> bool {
        self.table.borrow().entry(id).is_some()
    }

    fn find(&self, test: &dyn Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.table.borrow().shared().rfind(|entry| test(entry)).cloned()
    }

    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.table.borrow().entries().any(test)
    }
}
