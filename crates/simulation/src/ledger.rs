//! A ledger in memory, for tests of a single actor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{PortError, PortResult};

/// Keeps live entries and every record.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    live: BTreeMap<EntryId, Arc<Entry>>,
    records: Vec<Record>,
    refusal: Option<PortError>,
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// What was written.
    pub fn records(&self) -> Vec<Record> {
        self.state.borrow().records.clone()
    }

    /// The live entries as people read them, oldest first.
    pub fn list(&self) -> Vec<String> {
        self.state.borrow().live.values().map(|entry| entry.object.to_string()).collect()
    }

    /// The live entries, newest first: what a full undo is asked with.
    pub fn newest_first(&self) -> Vec<Arc<Entry>> {
        self.state.borrow().live.values().rev().cloned().collect()
    }

    /// Refuses every intent from now on, as a full disk does; `None` accepts again.
    pub fn refuse(&self, error: Option<PortError>) {
        self.state.borrow_mut().refusal = error;
    }
}

impl Ledger for MemoryLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let mut state = self.state.borrow_mut();
        if let Some(error) = &state.refusal {
            return Err(error.clone());
        }
        state.last += 1;
        let id = EntryId(state.last);
        let (record, object_too) = (scope.clone(), object.clone());
        state.records.push(Record::Intent { entry: id, actor, scope: record, object: object_too });
        state.live.insert(id, Arc::new(Entry { id, actor, scope, object, identity: None }));
        Ok(id)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        let mut state = self.state.borrow_mut();
        match &record {
            Record::Done { entry, identity } => {
                if let Some(found) = state.live.get_mut(entry) {
                    Arc::make_mut(found).identity = Some(identity.clone());
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => {
                state.live.remove(entry);
            }
            _ => {}
        }
        state.records.push(record);
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.state.borrow().live.values().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.state.borrow().live.get(&id).cloned()
    }
}
