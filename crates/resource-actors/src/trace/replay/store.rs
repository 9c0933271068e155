//! Ledgers of a replay: in memory, with the entry numbers that were drawn in the trace.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope, UndoReport};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{PortResult, SandboxId};

use crate::ledger::{MemoryStore, SandboxStore};

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

/// Keeps the one sandbox of a replay.
#[derive(Debug)]
pub(super) struct ReplayStore {
    memory: MemoryStore,
    draws: Draws,
    ledger: Vec<Entry>,
}

impl ReplayStore {
    /// A store whose sandbox draws what `draws` has, and has left `ledger`.
    pub(super) fn new(state_dir: PathBuf, draws: Draws, ledger: Vec<Entry>) -> Self {
        Self { memory: MemoryStore::new(state_dir), draws, ledger }
    }

    fn ledger(&self) -> Rc<dyn Ledger> {
        let open = self.ledger.iter().map(|entry| (entry.id, entry.clone())).collect();
        let (draws, unknown) = (self.draws.clone().into(), RefCell::default());
        Rc::new(ReplayLedger { open: RefCell::new(open), draws, unknown })
    }
}

impl SandboxStore for ReplayStore {
    fn state_dir(&self) -> &Path {
        self.memory.state_dir()
    }

    fn create(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        self.memory.create(sandbox).map(|_| self.ledger())
    }

    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        self.create(sandbox)
    }

    fn save(&self, sandbox: &SandboxId, state: &[u8]) -> PortResult<()> {
        self.memory.save(sandbox, state)
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<Vec<u8>> {
        self.memory.load(sandbox)
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        self.memory.destroy(sandbox)
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        self.memory.list()
    }
}
