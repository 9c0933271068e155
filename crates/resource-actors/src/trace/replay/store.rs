//! Ledgers of a replay: in memory, with the entry numbers that were drawn in the trace.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope, UndoItem, UndoReport, Undone};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};

use crate::ledger::{DIRECTORY_ENTRY, SandboxStore};
use crate::supervisor::{Progress, SavedSandbox};
use crate::system::SandboxSpec;

/// What the ledger answered in the trace, to each record, in order. An intent is kept under number 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Draws(VecDeque<(Record, PortResult<EntryId>)>);

impl Draws {
    /// Takes a record of the trace.
    pub(super) fn insert(&mut self, record: &Record, refused: Option<&PortError>) {
        let mut record = record.clone();
        let drawn = match &mut record {
            Record::Intent { entry, .. } => std::mem::replace(entry, EntryId(0)),
            _ => EntryId(0),
        };
        self.0.push_back((record, refused.map_or(Ok(drawn), |error| Err(error.clone()))));
    }

    /// Records come in almost the order of the trace, so what is looked for is near the front.
    fn draw(&mut self, record: &Record) -> Option<PortResult<EntryId>> {
        let place = self.0.iter().position(|(recorded, _)| recorded == record)?;
        self.0.remove(place).map(|(_, answer)| answer)
    }
}

/// Numbers of entries that the trace does not know begin here.
const UNKNOWN_FROM: u64 = 1 << 32;

/// A ledger that answers as it did in the trace. What becomes of a record that is not the trace's is a
/// matter for the comparison, so it is taken.
#[derive(Debug)]
struct ReplayLedger {
    open: RefCell<BTreeMap<EntryId, Arc<Entry>>>,
    draws: RefCell<Draws>,
    unknown: Cell<u64>,
}

impl Ledger for ReplayLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let record = Record::Intent { entry: EntryId(0), actor, scope: scope.clone(), object: object.clone() };
        let drawn = self.draws.borrow_mut().draw(&record);
        let id = drawn.unwrap_or_else(|| {
            self.unknown.set(self.unknown.get() + 1);
            Ok(EntryId(UNKNOWN_FROM + self.unknown.get()))
        })?;
        self.open.borrow_mut().insert(id, Arc::new(Entry { id, actor, scope, object, identity: None }));
        Ok(id)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        self.draws.borrow_mut().draw(&record).transpose()?;
        let mut open = self.open.borrow_mut();
        match record {
            Record::Done { entry, identity } => {
                if let Some(entry) = open.get_mut(&entry) {
                    Arc::make_mut(entry).identity = Some(identity);
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => drop(open.remove(&entry)),
            Record::Header { .. } | Record::Intent { .. } | Record::UndoIntent { .. } | Record::UndoFailed { .. } => {}
        }
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.open.borrow().values().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.open.borrow().get(&id).cloned()
    }

    fn count(&self) -> usize {
        self.open.borrow().len()
    }

    fn newest(&self) -> EntryId {
        self.open.borrow().last_key_value().map_or(EntryId(0), |(id, _)| *id)
    }

    fn is_live(&self, id: EntryId) -> bool {
        self.open.borrow().contains_key(&id)
    }

    fn find(&self, test: &dyn Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.open.borrow().values().rfind(|entry| test(entry)).cloned()
    }

    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.open.borrow().values().any(|entry| test(entry))
    }
}

/// Keeps the one sandbox of a replay. Where it stands is in the trace, so that is not kept.
#[derive(Debug)]
pub(super) struct ReplayStore {
    state_dir: PathBuf,
    draws: Draws,
    ledger: Vec<Arc<Entry>>,
}

impl ReplayStore {
    /// A store whose sandbox draws what `draws` has, and has left `ledger`.
    pub(super) fn new(state_dir: PathBuf, draws: Draws, ledger: Vec<Arc<Entry>>) -> Self {
        Self { state_dir, draws, ledger }
    }
}

impl SandboxStore for ReplayStore {
    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn create(&self, spec: &SandboxSpec) -> PortResult<Rc<dyn Ledger>> {
        self.open(&spec.id)
    }

    fn open(&self, _: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        let open = self.ledger.iter().map(|entry| (entry.id, entry.clone())).collect();
        let (draws, unknown) = (self.draws.clone().into(), Cell::default());
        Ok(Rc::new(ReplayLedger { open: RefCell::new(open), draws, unknown }))
    }

    fn save(&self, _: &SandboxId, _: Progress) -> PortResult<()> {
        Ok(())
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<SavedSandbox> {
        Err(PortError::new(ErrorKind::NotFound, "load", sandbox.as_str(), "a replay keeps nothing"))
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        let object = format!("directory {}", SandboxDir::new(&self.state_dir, sandbox).root().display());
        UndoReport { items: vec![UndoItem { entry: DIRECTORY_ENTRY, object, result: Ok(Undone::Undone) }] }
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        Ok(Vec::new())
    }
}
