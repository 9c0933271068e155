//! Ledgers of a replay: in memory, with the entry numbers that were drawn in the trace.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope, UndoItem, UndoReport, Undone};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};

use crate::ledger::{DIRECTORY_ENTRY, SandboxStore};
use crate::supervisor::{Progress, SavedSandbox};
use crate::system::SandboxSpec;

/// What was intended in the trace, by whom, under which number.
pub(super) type Draws = BTreeMap<ActorName, VecDeque<(EntryId, Scope, HostObject)>>;

/// Numbers of entries that the trace does not know begin here.
const UNKNOWN_FROM: u64 = 1 << 32;

/// A ledger that gives an entry the number that it has in the trace. What becomes of a record that
/// is not the trace's is a matter for the comparison, so nothing is refused here.
#[derive(Debug)]
struct ReplayLedger {
    open: RefCell<BTreeMap<EntryId, Entry>>,
    draws: RefCell<Draws>,
    unknown: RefCell<u64>,
}

impl ReplayLedger {
    fn draw(&self, actor: ActorName, scope: &Scope, object: &HostObject) -> EntryId {
        let mut draws = self.draws.borrow_mut();
        let drawn = draws.get_mut(&actor).and_then(|of_actor| {
            let place = of_actor.iter().position(|(_, of, what)| of == scope && what == object)?;
            of_actor.remove(place)
        });
        drawn.map_or_else(
            || {
                *self.unknown.borrow_mut() += 1;
                EntryId(UNKNOWN_FROM + *self.unknown.borrow())
            },
            |(entry, ..)| entry,
        )
    }
}

impl Ledger for ReplayLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let id = self.draw(actor, &scope, &object);
        self.open.borrow_mut().insert(id, Entry { id, actor, scope, object, identity: None });
        Ok(id)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        let mut open = self.open.borrow_mut();
        match record {
            Record::Done { entry, identity } => {
                if let Some(entry) = open.get_mut(&entry) {
                    entry.identity = Some(identity);
                }
            }
            Record::Refused { entry } | Record::Undone { entry } => drop(open.remove(&entry)),
            Record::Header { .. } | Record::Intent { .. } | Record::UndoIntent { .. } | Record::UndoFailed { .. } => {}
        }
        Ok(())
    }

    fn live(&self) -> Vec<Entry> {
        self.open.borrow().values().cloned().collect()
    }

    fn entry(&self, id: EntryId) -> Option<Entry> {
        self.open.borrow().get(&id).cloned()
    }
}

/// Keeps the one sandbox of a replay. Where it stands is in the trace, so that is not kept.
#[derive(Debug)]
pub(super) struct ReplayStore {
    state_dir: PathBuf,
    draws: Draws,
    ledger: Vec<Entry>,
}

impl ReplayStore {
    /// A store whose sandbox draws what `draws` has, and has left `ledger`.
    pub(super) fn new(state_dir: PathBuf, draws: Draws, ledger: Vec<Entry>) -> Self {
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
        let (draws, unknown) = (self.draws.clone().into(), RefCell::default());
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
