//! A store that outlives our process: ledgers as text, as they would be on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resource_actors::ledger::{Bounds, LedgerTable, LineLedger, Lines, ReadLedger, SandboxStore, Seal, read};
use resource_actors::supervisor::Progress;
use resource_actors::{SandboxSpec, SavedSandbox};
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{EntryId, LEDGER_VERSION, Ledger, Record, UndoItem, UndoReport, Undone};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};

use crate::Injector;
use crate::fault::Word;
use crate::host::WrapLedger;

/// The simulated kernel has booted once.
const BOOT: &str = "simulated";
/// The entry number by which reports name the sandbox's own directory.
const DIRECTORY_ENTRY: EntryId = EntryId(0);

/// Keeps sandboxes in memory, in the form in which they would be on disk. Cheap to clone; a process
/// that dies leaves it to the next.
#[derive(Clone)]
pub struct SimulatedStore {
    state_dir: PathBuf,
    disk: Arc<Mutex<Disk>>,
    faults: Arc<Injector>,
    wrap: Option<WrapLedger>,
}

impl std::fmt::Debug for SimulatedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimulatedStore({})", self.state_dir.display())
    }
}

type Disk = BTreeMap<SandboxId, OnDisk>;

#[derive(Debug, Default)]
struct OnDisk {
    kept: Kept,
    /// What the whole lines add up to, kept up to date for whoever watches.
    table: LedgerTable,
    revision: u64,
}

/// What there is of one sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The ledger's file.
    pub ledger: String,
    /// What it was created with.
    pub spec: Option<SandboxSpec>,
    /// What `save` wrote.
    pub saved: Option<Progress>,
}

impl SimulatedStore {
    /// An empty store whose sandboxes believe to live below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>, faults: Arc<Injector>) -> Self {
        Self { state_dir: state_dir.into(), disk: Arc::default(), faults, wrap: None }
    }

    /// The same store, with something around every ledger that it hands out.
    #[must_use]
    pub(crate) fn wrapped(self, wrap: Option<WrapLedger>) -> Self {
        Self { wrap, ..self }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of a sandbox.
    pub fn kept(&self, sandbox: &SandboxId) -> Option<Kept> {
        self.disk().get(sandbox).map(|on_disk| on_disk.kept.clone())
    }

    /// Puts something in the place of what there is: what a crash at another moment would have left.
    ///
    /// # Errors
    /// A line of the ledger is damaged.
    pub fn put(&self, sandbox: &SandboxId, kept: Kept) -> PortResult<()> {
        let table = self.parse(&kept.ledger, sandbox)?.table;
        self.disk().insert(sandbox.clone(), OnDisk { kept, table, revision: 0 });
        Ok(())
    }

    /// Shows what the ledger of a sandbox adds up to, and how often it has changed.
    pub fn with_table<R>(&self, sandbox: &SandboxId, look: impl FnOnce(Option<(&LedgerTable, u64)>) -> R) -> R {
        look(self.disk().get(sandbox).map(|on_disk| (&on_disk.table, on_disk.revision)))
    }

    fn word(&self, sandbox: &SandboxId, method: &str) -> (PortResult<()>, PortResult<()>) {
        match self.faults.word(sandbox, ActorName::Supervisor, "store", method) {
            Word::Whole => (Ok(()), Ok(())),
            Word::Refused(error) => (Err(error), Ok(())),
            Word::Torn | Word::Last => (Ok(()), Err(PortError::new(ErrorKind::PeerGone, method, "store", "we died"))),
        }
    }

    fn bounds(&self, sandbox: &SandboxId) -> Bounds {
        Bounds::new(&self.state_dir, sandbox)
    }

    fn parse(&self, text: &str, sandbox: &SandboxId) -> PortResult<ReadLedger> {
        read(text, &self.bounds(sandbox), BOOT).map_err(|(line, violation)| {
            PortError::new(ErrorKind::Invalid, "read", format!("ledger line {line}"), violation.to_string())
        })
    }

    fn ledger(&self, sandbox: &SandboxId, found: ReadLedger) -> PortResult<Rc<dyn Ledger>> {
        let owners = found.table.entries().map(|entry| (entry.id, entry.actor)).collect();
        let file = SimulatedFile { store: self.clone(), sandbox: sandbox.clone(), owners };
        let ledger: Rc<dyn Ledger> = Rc::new(LineLedger::open(file, found, self.bounds(sandbox), BOOT.to_owned())?);
        Ok(match &self.wrap {
            Some(wrap) => wrap(ledger),
            None => ledger,
        })
    }
}

impl SandboxStore for SimulatedStore {
    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn create(&self, spec: &SandboxSpec) -> PortResult<Rc<dyn Ledger>> {
        let sandbox = &spec.id;
        let (before, after) = self.word(sandbox, "create");
        before?;
        if self.disk().contains_key(sandbox) {
            return Err(PortError::new(ErrorKind::Exists, "mkdir", sandbox.as_str(), "simulated: exists"));
        }
        let (version, boot, last) = (LEDGER_VERSION, BOOT.to_owned(), EntryId(0));
        let header = Record::Header { version, sandbox: sandbox.clone(), boot, last };
        let sealed = Seal::default().line(&header);
        let (ledger, _) =
            sealed.map_err(|error| PortError::new(ErrorKind::Invalid, "record", "ledger", error.to_string()))?;
        let found = self.parse(&ledger, sandbox)?;
        let kept = Kept { ledger, spec: Some(spec.clone()), saved: None };
        self.disk().insert(sandbox.clone(), OnDisk { kept, ..OnDisk::default() });
        after?;
        self.ledger(sandbox, found)
    }

    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        let (before, after) = self.word(sandbox, "open");
        before?;
        let mut disk = self.disk();
        let found = disk.get_mut(sandbox);
        let absent = || PortError::new(ErrorKind::NotFound, "open", sandbox.as_str(), "simulated: not there");
        let kept = &mut found.ok_or_else(absent)?.kept;
        let found = self.parse(&kept.ledger, sandbox)?;
        kept.ledger.truncate(kept.ledger.rfind('\n').map_or(0, |end| end + 1));
        drop(disk);
        after?;
        self.ledger(sandbox, found)
    }

    fn save(&self, sandbox: &SandboxId, progress: Progress) -> PortResult<()> {
        let (before, after) = self.word(sandbox, "save");
        before?;
        match self.disk().get_mut(sandbox) {
            Some(on_disk) => on_disk.kept.saved = Some(progress),
            None => return Err(PortError::new(ErrorKind::NotFound, "save", sandbox.as_str(), "simulated: not there")),
        }
        after
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<SavedSandbox> {
        let absent = || PortError::new(ErrorKind::NotFound, "load", sandbox.as_str(), "simulated: nothing was saved");
        let disk = self.disk();
        let kept = &disk.get(sandbox).ok_or_else(absent)?.kept;
        let (spec, progress) = kept.spec.clone().zip(kept.saved.clone()).ok_or_else(absent)?;
        Ok(SavedSandbox { spec, progress })
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        let (before, after) = self.word(sandbox, "destroy");
        let destroyed = before.and_then(|()| {
            let was_there = self.disk().remove(sandbox).is_some();
            after.map(|()| if was_there { Undone::Undone } else { Undone::AlreadyGone })
        });
        let object = format!("directory {}", SandboxDir::new(&self.state_dir, sandbox).root().display());
        UndoReport { items: vec![UndoItem { entry: DIRECTORY_ENTRY, object, result: destroyed }] }
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        Ok(self.disk().keys().cloned().collect())
    }
}

/// One ledger's file.
#[derive(Debug)]
struct SimulatedFile {
    store: SimulatedStore,
    sandbox: SandboxId,
    /// Who made each entry: an outcome's record does not say.
    owners: BTreeMap<EntryId, ActorName>,
}

impl SimulatedFile {
    /// Whose record a line is, and which kind.
    fn of(&mut self, record: &Record) -> (ActorName, &'static str) {
        match record {
            Record::Intent { entry, actor, .. } => {
                self.owners.insert(*entry, *actor);
                (*actor, "intent")
            }
            Record::Done { entry, .. } => (self.owner(*entry), "done"),
            Record::Refused { entry } => (self.owner(*entry), "refused"),
            Record::UndoIntent { entry } => (self.owner(*entry), "undo-intent"),
            Record::Undone { entry } => (self.owner(*entry), "undone"),
            Record::UndoFailed { entry, .. } => (self.owner(*entry), "undo-failed"),
            Record::Header { .. } => (ActorName::Supervisor, "header"),
        }
    }

    fn owner(&self, entry: EntryId) -> ActorName {
        self.owners.get(&entry).copied().unwrap_or(ActorName::Supervisor)
    }

    /// Writes a line, or the half of one, whose record is then none.
    fn put(&self, line: &str, record: Option<&Record>) -> PortResult<()> {
        let mut disk = self.store.disk();
        let gone = || PortError::new(ErrorKind::NotFound, "write", "ledger", "simulated: unlinked");
        let on_disk = disk.get_mut(&self.sandbox).ok_or_else(gone)?;
        on_disk.kept.ledger.push_str(line);
        on_disk.revision += 1;
        if let Some(record) = record
            && let Err(violation) = on_disk.table.apply(record)
        {
            // A reader would refuse the whole ledger for it.
            self.store.faults.note(format!("the ledger on disk holds {record:?}: {violation}"));
        }
        Ok(())
    }
}

impl Lines for SimulatedFile {
    fn append(&mut self, line: &str, record: &Record) -> PortResult<()> {
        let (actor, method) = self.of(record);
        let died = || PortError::new(ErrorKind::PeerGone, "write", "ledger", "injected: our process has died");
        match self.store.faults.word(&self.sandbox, actor, "ledger", method) {
            Word::Whole => self.put(line, Some(record)),
            Word::Refused(error) => Err(error),
            Word::Last => {
                self.put(line, Some(record))?;
                Err(died())
            }
            Word::Torn => {
                let half = (0..=line.len() / 2).rev().find(|end| line.is_char_boundary(*end));
                self.put(&line[..half.unwrap_or(0)], None)?;
                Err(died())
            }
        }
    }

    fn replace(&mut self, text: &str) -> PortResult<()> {
        let mut disk = self.store.disk();
        let gone = || PortError::new(ErrorKind::NotFound, "rename", "ledger", "simulated: unlinked");
        let on_disk = disk.get_mut(&self.sandbox).ok_or_else(gone)?;
        text.clone_into(&mut on_disk.kept.ledger);
        on_disk.revision += 1;
        Ok(())
    }
}
