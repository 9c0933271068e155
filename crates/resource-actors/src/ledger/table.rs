//! What a ledger's records add up to.

use std::collections::BTreeMap;

use sandbox_model::SandboxId;
use sandbox_model::ledger::{Entry, EntryId, LEDGER_VERSION, Record};

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
}

/// The open entries of a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerTable {
    open: BTreeMap<EntryId, Entry>,
    last: u64,
}

impl LedgerTable {
    /// The number of the next entry.
    pub fn next_id(&self) -> EntryId {
        EntryId(self.last + 1)
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

    /// Whether a record follows from those before it.
    pub(super) fn check(&self, record: &Record) -> Result<(), Violation> {
        match record {
            Record::Header { .. } => Err(Violation::Header),
            Record::Intent { entry, .. } if entry.0 <= self.last => Err(Violation::Reused(*entry)),
            Record::Intent { .. } => Ok(()),
            Record::Done { entry, .. } => {
                let open = self.open.get(entry).filter(|open| open.identity.is_none());
                open.map(|_| ()).ok_or(Violation::NotOpen(*entry))
            }
            Record::Refused { entry }
            | Record::Undone { entry }
            | Record::UndoIntent { entry }
            | Record::UndoFailed { entry, .. } => self.open.get(entry).map(|_| ()).ok_or(Violation::NotOpen(*entry)),
        }
    }

    /// Takes a record that has been checked.
    pub(super) fn take(&mut self, record: Record) {
        match record {
            Record::Intent { entry: id, actor, scope, object } => {
                self.last = id.0;
                self.open.insert(id, Entry { id, actor, scope, object, identity: None });
            }
            Record::Done { entry, identity } => {
                if let Some(open) = self.open.get_mut(&entry) {
                    open.identity = Some(identity);
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => {
                self.open.remove(&entry);
            }
            Record::Header { .. } | Record::UndoIntent { .. } | Record::UndoFailed { .. } => {}
        }
    }

    /// The open entries, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.open.values()
    }

    /// One open entry.
    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
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

/// Reads a ledger file of `sandbox` and says whether the boot in which it was written is `boot`:
/// objects of an earlier boot are gone. A last line without its newline is what a crash leaves, and
/// is ignored.
///
/// # Errors
/// The number of the first damaged line, from 1, and what is wrong with it.
pub fn read(text: &str, sandbox: &SandboxId, boot: &str) -> Result<(LedgerTable, bool), (usize, Violation)> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut table = LedgerTable::default();
    let mut same_boot = None;
    for (index, line) in whole.lines().enumerate() {
        let at = |violation| (index + 1, violation);
        let record: Record = serde_json::from_str(line).map_err(|error| at(Violation::Syntax(error.to_string())))?;
        match (&record, same_boot) {
            (Record::Header { version, sandbox: of, boot: written_in }, None) => {
                if *version != LEDGER_VERSION {
                    return Err(at(Violation::Version(*version)));
                }
                if of != sandbox {
                    return Err(at(Violation::Foreign(of.clone())));
                }
                same_boot = Some(written_in == boot);
            }
            (_, None) => return Err(at(Violation::Header)),
            (record, Some(_)) => table.apply(record).map_err(at)?,
        }
    }
    // A crash before the header's newline: nothing has been made yet.
    Ok((table, same_boot.unwrap_or(true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_model::ledger::{HostObject, Identity, Scope};
    use sandbox_model::lifecycle::ActorName;

    fn intent(n: u64) -> Record {
        let object = HostObject::Process { program: "x".into() };
        Record::Intent { entry: EntryId(n), actor: ActorName::Network, scope: Scope::Sandbox, object }
    }

    fn header() -> Record {
        let sandbox = SandboxId::new("s").unwrap();
        Record::Header { version: LEDGER_VERSION, sandbox, boot: "b".into() }
    }

    fn lines(records: &[Record]) -> String {
        records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
    }

    #[test]
    fn an_entry_goes_from_intent_to_done_to_undone() {
        let mut table = LedgerTable::default();
        let id = EntryId(1);
        table.apply(&intent(1)).unwrap();
        assert_eq!(table.entry(id).unwrap().identity, None);
        table.apply(&Record::Done { entry: id, identity: Identity::Named }).unwrap();
        table.apply(&Record::UndoIntent { entry: id }).unwrap();
        table.apply(&Record::UndoFailed { entry: id, cause: "busy".into() }).unwrap();
        assert_eq!(table.len(), 1, "a failed undo stays for the next clean-up");
        table.apply(&Record::Undone { entry: id }).unwrap();
        assert!(table.is_empty());
    }

    #[test]
    fn no_other_transition_is_allowed() {
        let mut table = LedgerTable::default();
        let id = EntryId(1);
        let done = Record::Done { entry: id, identity: Identity::Named };
        assert_eq!(table.apply(&done), Err(Violation::NotOpen(id)));
        table.apply(&intent(1)).unwrap();
        assert_eq!(table.apply(&intent(1)), Err(Violation::Reused(id)));
        table.apply(&done).unwrap();
        assert_eq!(table.apply(&done), Err(Violation::NotOpen(id)));
        table.apply(&Record::Undone { entry: id }).unwrap();
        assert_eq!(table.apply(&Record::Undone { entry: id }), Err(Violation::NotOpen(id)));
        assert_eq!(table.apply(&intent(1)), Err(Violation::Reused(id)), "numbers are not used again");
    }

    #[test]
    fn every_prefix_of_a_ledger_can_be_read() {
        let text =
            lines(&[header(), intent(1), Record::Done { entry: EntryId(1), identity: Identity::Named }, intent(2)]);
        let sandbox = SandboxId::new("s").unwrap();
        for end in 0..=text.len() {
            let (table, _) = read(&text[..end], &sandbox, "b").unwrap();
            assert!(table.len() <= 2);
        }
    }

    #[test]
    fn damage_is_refused_with_its_line() {
        let sandbox = SandboxId::new("s").unwrap();
        let good = lines(&[header(), intent(1)]);
        for (text, line) in [
            (good.replace("process", "proc\u{0}ess"), 2),
            (good.replacen("intent", "indent", 1), 2),
            (format!("{good}{{}}\n"), 3),
            (format!("{good}{}", lines(&[intent(1)])), 3),
            (lines(&[intent(1)]), 1),
            (good.replace("\"version\":1", "\"version\":9"), 1),
            (good.replace("\"sandbox\":\"s\"", "\"sandbox\":\"t\""), 1),
        ] {
            assert_eq!(read(&text, &sandbox, "b").unwrap_err().0, line, "{text}");
        }
        assert!(!read(&good, &sandbox, "other").unwrap().1);
    }
}
