//! What a ledger's records add up to.

use std::collections::BTreeMap;
use std::sync::Arc;

use sandbox_model::SandboxId;
use sandbox_model::ledger::{Entry, EntryId, LEDGER_VERSION, Record};

use super::bounds::{Bounds, KINDS, Kind, fits, kind};
use super::seal::Seal;

/// A record that does not follow from those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Entry numbers only grow.
    #[error("entry {0} is recorded a second time")]
    Reused(EntryId),
    /// An outcome of something that was never intended, or has ended.
    #[error("entry {0} is not open")]
    NotOpen(EntryId),
    /// The first record is a header, and no other is.
    #[error("a header stands where none belongs, or is missing")]
    Header,
    /// The file was written by another version.
    #[error("version {0} is not {LEDGER_VERSION}")]
    Version(u32),
    /// The file is another sandbox's.
    #[error("it belongs to sandbox {0}")]
    Foreign(SandboxId),
    /// The line is no record.
    #[error("not a record: {0}")]
    Syntax(String),
    /// The line, or one before it, is not what was written.
    #[error("its sum does not fit: it or a line before it has been changed")]
    Sum,
    /// The entry names what no actor of this sandbox makes.
    #[error("{0}")]
    Outside(String),
    /// The identity is not one of such an object.
    #[error("entry {0} is given an identity of another kind of object")]
    Identity(EntryId),
    /// The sandbox has as many as it may.
    #[error("a sandbox has at most {limit} {kind}")]
    Full {
        /// Of what.
        kind: &'static str,
        /// How many.
        limit: usize,
    },
}

/// The open entries of a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerTable {
    /// Shared with those who look at them, undo them and report on them.
    open: BTreeMap<EntryId, Arc<Entry>>,
    /// How many of each kind, in the order of the kinds' numbers.
    counts: [u16; KINDS],
    last: u64,
}

impl LedgerTable {
    /// Does not use the numbers up to `last` again.
    pub(super) fn skip_to(&mut self, last: EntryId) {
        self.last = self.last.max(last.0);
    }

    /// The number of the next entry.
    pub fn next_id(&self) -> EntryId {
        EntryId(self.last.saturating_add(1))
    }

    /// Whether `record` follows from those before it.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check(&self, record: &Record) -> Result<(), Violation> {
        let open = |entry: &EntryId| self.open.get(entry).ok_or(Violation::NotOpen(*entry));
        match record {
            Record::Header { .. } => Err(Violation::Header),
            Record::Intent { entry, .. } if entry.0 <= self.last => Err(Violation::Reused(*entry)),
            Record::Intent { object, .. } => {
                let Kind { number, name: kind, limit } = kind(object);
                if self.counts[number] >= limit {
                    return Err(Violation::Full { kind, limit: limit.into() });
                }
                Ok(())
            }
            Record::Done { entry, identity } => match open(entry)? {
                open if open.identity.is_some() => Err(Violation::NotOpen(*entry)),
                open if !fits(&open.object, identity) => Err(Violation::Identity(*entry)),
                _ => Ok(()),
            },
            Record::Refused { entry }
            | Record::Undone { entry }
            | Record::UndoIntent { entry }
            | Record::UndoFailed { entry, .. } => open(entry).map(drop),
        }
    }

    /// Takes one record.
    ///
    /// # Errors
    /// [`Violation`]; the table is as before.
    pub fn apply(&mut self, record: &Record) -> Result<(), Violation> {
        self.check(record)?;
        self.take(record.clone());
        Ok(())
    }

    /// Takes a record that has been checked.
    pub(super) fn take(&mut self, record: Record) {
        match record {
            Record::Intent { entry: id, actor, scope, object } => {
                self.last = id.0;
                self.counts[kind(&object).number] += 1;
                self.open.insert(id, Arc::new(Entry { id, actor, scope, object, identity: None }));
            }
            Record::Done { entry, identity } => {
                if let Some(open) = self.open.get_mut(&entry) {
                    Arc::make_mut(open).identity = Some(identity);
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => {
                if let Some(closed) = self.open.remove(&entry) {
                    self.counts[kind(&closed.object).number] -= 1;
                }
            }
            Record::Header { .. } | Record::UndoIntent { .. } | Record::UndoFailed { .. } => {}
        }
    }

    /// The records that add up to this table and no more.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        self.open.values().flat_map(|entry| {
            let Entry { id, actor, scope, object, identity } = Entry::clone(entry);
            let done = identity.map(|identity| Record::Done { entry: id, identity });
            [Record::Intent { entry: id, actor, scope, object }].into_iter().chain(done)
        })
    }

    /// The open entries, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.open.values().map(AsRef::as_ref)
    }

    /// The open entries, oldest first, for who goes on while the table changes.
    pub(super) fn shared(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.open.values()
    }

    /// One open entry.
    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.open.get(&id).map(AsRef::as_ref)
    }

    /// Likewise, shared.
    pub(super) fn shared_entry(&self, id: EntryId) -> Option<&Arc<Entry>> {
        self.open.get(&id)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// What a ledger file says.
#[derive(Debug)]
pub struct ReadLedger {
    /// The open entries.
    pub table: LedgerTable,
    /// Whether it was written in this boot: objects of an earlier one are gone.
    pub same_boot: bool,
    /// Bytes of whole lines: a last line without its line break is what a crash leaves, and counts
    /// for nothing.
    pub whole: usize,
    pub(super) seal: Seal,
    last: EntryId,
}

/// Reads a ledger file within `bounds`, in the boot `boot`.
///
/// # Errors
/// The number of the first line that is damaged or out of bounds, from 1, and what is wrong with it.
pub fn read(text: &str, bounds: &Bounds, boot: &str) -> Result<ReadLedger, (usize, Violation)> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut read = ReadLedger { whole, ..ReadLedger::default() };
    for (index, line) in text[..whole].lines().enumerate() {
        read.line(line, index == 0, bounds, boot).map_err(|violation| (index + 1, violation))?;
    }
    read.table.skip_to(read.last);
    // Without a header there was a crash before its line break, and nothing has been made yet.
    Ok(read)
}

impl Default for ReadLedger {
    /// No lines at all.
    fn default() -> Self {
        let (table, seal) = (LedgerTable::default(), Seal::default());
        Self { table, same_boot: true, whole: 0, seal, last: EntryId(0) }
    }
}

impl ReadLedger {
    fn line(&mut self, line: &str, is_first: bool, bounds: &Bounds, boot: &str) -> Result<(), Violation> {
        let (record, seal) = self.seal.record(line)?;
        match record {
            Record::Header { version, .. } if is_first && version != LEDGER_VERSION => {
                return Err(Violation::Version(version));
            }
            Record::Header { sandbox, .. } if is_first && sandbox != *bounds.sandbox() => {
                return Err(Violation::Foreign(sandbox));
            }
            Record::Header { boot: written_in, last, .. } if is_first => {
                self.same_boot = written_in == boot;
                self.last = last;
            }
            _ if is_first => return Err(Violation::Header),
            record => {
                if let Record::Intent { actor, object, .. } = &record {
                    bounds.object(*actor, object)?;
                }
                self.table.apply(&record)?;
            }
        }
        self.seal = seal;
        Ok(())
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
