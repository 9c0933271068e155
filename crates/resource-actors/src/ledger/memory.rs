//! Ledgers in memory: for simulation and replay, where nothing real is made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Ledger, UndoItem, UndoReport, Undone};
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};
use tokio::sync::watch;

use super::{DIRECTORY_ENTRY, LedgerTable, LineLedger, Lines, SandboxStore};

/// Keeps no lines: nothing outlives the process.
#[derive(Debug, Clone, Copy, Default)]
struct NoLines;

impl Lines for NoLines {
    fn append(&mut self, _: &[u8]) -> PortResult<()> {
        Ok(())
    }

    fn are_kept(&self) -> bool {
        false
    }
}

/// Keeps sandboxes in memory.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state_dir: PathBuf,
    saved: Arc<watch::Sender<BTreeMap<SandboxId, Vec<u8>>>>,
}

impl MemoryStore {
    /// A store whose sandboxes believe to live below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into(), saved: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }
}

impl SandboxStore for MemoryStore {
    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn create(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        let mut is_new = false;
        self.saved.send_modify(|saved| {
            is_new = !saved.contains_key(sandbox);
            saved.entry(sandbox.clone()).or_default();
        });
        if is_new {
            Ok(Rc::new(LineLedger::new(NoLines, LedgerTable::default())))
        } else {
            Err(PortError::new(ErrorKind::Exists, "create", sandbox.as_str(), "the sandbox exists"))
        }
    }

    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        let cause = "a ledger in memory does not outlive its process";
        Err(PortError::new(ErrorKind::NotFound, "open", sandbox.as_str(), cause))
    }

    fn save(&self, sandbox: &SandboxId, state: &[u8]) -> PortResult<()> {
        self.saved.send_modify(|saved| {
            saved.insert(sandbox.clone(), state.to_vec());
        });
        Ok(())
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<Vec<u8>> {
        let absent = || PortError::new(ErrorKind::NotFound, "load", sandbox.as_str(), "nothing was saved");
        self.saved.borrow().get(sandbox).filter(|state| !state.is_empty()).cloned().ok_or_else(absent)
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        let mut was_there = false;
        self.saved.send_modify(|saved| was_there = saved.remove(sandbox).is_some());
        let result = Ok(if was_there { Undone::Undone } else { Undone::AlreadyGone });
        let object = format!("directory {}", SandboxDir::new(&self.state_dir, sandbox).root().display());
        UndoReport { items: vec![UndoItem { entry: DIRECTORY_ENTRY, object, result }] }
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        Ok(self.saved.borrow().keys().cloned().collect())
    }
}
