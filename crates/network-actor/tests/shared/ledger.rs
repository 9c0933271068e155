//! A ledger in memory, for all test binaries of this crate.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use sandbox_model::PortError;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;

/// A ledger that outlives its actors, as the file does.
#[derive(Debug, Default)]
pub(crate) struct MemoryLedger(RefCell<(u64, BTreeMap<EntryId, Arc<Entry>>)>);

impl Ledger for MemoryLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> Result<EntryId, PortError> {
        let mut state = self.0.borrow_mut();
        state.0 += 1;
        let id = EntryId(state.0);
        state.1.insert(id, Arc::new(Entry { id, actor, scope, object, identity: None }));
        Ok(id)
    }

    fn append(&self, record: Record) -> Result<(), PortError> {
        let entries = &mut self.0.borrow_mut().1;
        match record {
            Record::Done { entry, identity } => {
                if let Some(entry) = entries.get_mut(&entry) {
                    Arc::make_mut(entry).identity = Some(identity);
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => {
                entries.remove(&entry);
            }
            _ => {}
        }
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.0.borrow().1.values().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.0.borrow().1.get(&id).cloned()
    }
}

impl MemoryLedger {
    /// Forgets every outcome, as if the process had been killed before it could write one.
    pub(crate) fn forget_outcomes(&self) {
        self.0.borrow_mut().1.values_mut().for_each(|entry| Arc::make_mut(entry).identity = None);
    }
}
