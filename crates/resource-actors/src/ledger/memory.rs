//! Ledgers in memory: for simulation and replay, where nothing real is made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope, UndoItem, UndoReport, Undone};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};
use tokio::sync::watch;

use super::{DIRECTORY_ENTRY, LedgerTable, SandboxStore};
use crate::supervisor::{Progress, SavedSandbox};
use crate::system::SandboxSpec;

/// What is kept of one sandbox.
#[derive(Debug)]
struct Shelf {
    spec: SandboxSpec,
    table: watch::Sender<LedgerTable>,
    progress: watch::Sender<Option<Progress>>,
}

#[derive(Debug)]
struct ShelvedLedger(Arc<Shelf>);

impl Ledger for ShelvedLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let entry = self.0.table.borrow().next_id();
        self.append(Record::Intent { entry, actor, scope, object })?;
        Ok(entry)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        let mut checked = Ok(());
        // Nobody waits for a change.
        self.0.table.send_if_modified(|table| {
            checked = table.check(&record);
            if checked.is_ok() {
                table.take(record);
            }
            false
        });
        checked.map_err(|violation| PortError::new(ErrorKind::Invalid, "record", "ledger", violation.to_string()))
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.0.table.borrow().shared().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.0.table.borrow().shared_entry(id).cloned()
    }

    fn count(&self) -> usize {
        self.0.table.borrow().len()
    }

    fn newest(&self) -> EntryId {
        self.0.table.borrow().entries().next_back().map_or(EntryId(0), |entry| entry.id)
    }

    fn is_live(&self, id: EntryId) -> bool {
        self.0.table.borrow().entry(id).is_some()
    }

    fn find(&self, test: &dyn Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.0.table.borrow().shared().rfind(|entry| test(entry)).cloned()
    }

    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.0.table.borrow().entries().any(test)
    }
}

/// Keeps sandboxes in memory. Clones share what they keep, so a second system on a clone finds what
/// the first has left.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state_dir: PathBuf,
    shelves: Arc<watch::Sender<BTreeMap<SandboxId, Arc<Shelf>>>>,
}

impl MemoryStore {
    /// A store whose sandboxes believe to live below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into(), shelves: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    fn shelf(&self, operation: &str, sandbox: &SandboxId) -> PortResult<Arc<Shelf>> {
        let absent = || PortError::new(ErrorKind::NotFound, operation, sandbox.as_str(), "there is no such sandbox");
        self.shelves.borrow().get(sandbox).cloned().ok_or_else(absent)
    }
}

impl SandboxStore for MemoryStore {
    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn create(&self, spec: &SandboxSpec) -> PortResult<Rc<dyn Ledger>> {
        let (table, progress) = (watch::Sender::new(LedgerTable::default()), watch::Sender::new(None));
        let shelf = Arc::new(Shelf { spec: spec.clone(), table, progress });
        let is_new = self.shelves.send_if_modified(|shelves| {
            let is_new = !shelves.contains_key(&spec.id);
            shelves.entry(spec.id.clone()).or_insert_with(|| shelf.clone());
            is_new
        });
        if is_new {
            Ok(Rc::new(ShelvedLedger(shelf)))
        } else {
            Err(PortError::new(ErrorKind::Exists, "create", spec.id.as_str(), "the sandbox exists"))
        }
    }

    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        Ok(Rc::new(ShelvedLedger(self.shelf("open", sandbox)?)))
    }

    fn save(&self, sandbox: &SandboxId, progress: Progress) -> PortResult<()> {
        let shelf = self.shelf("save", sandbox)?;
        // Nobody waits for it.
        shelf.progress.send_if_modified(|kept| {
            *kept = Some(progress);
            false
        });
        Ok(())
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<SavedSandbox> {
        let shelf = self.shelf("load", sandbox)?;
        let absent = || PortError::new(ErrorKind::NotFound, "load", sandbox.as_str(), "nothing was saved");
        let progress = shelf.progress.borrow().clone().ok_or_else(absent)?;
        Ok(SavedSandbox { spec: shelf.spec.clone(), progress })
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        let was_there = self.shelves.send_if_modified(|shelves| shelves.remove(sandbox).is_some());
        let result = Ok(if was_there { Undone::Undone } else { Undone::AlreadyGone });
        let object = format!("directory {}", SandboxDir::new(&self.state_dir, sandbox).root().display());
        UndoReport { items: vec![UndoItem { entry: DIRECTORY_ENTRY, object, result }] }
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        Ok(self.shelves.borrow().keys().cloned().collect())
    }
}
