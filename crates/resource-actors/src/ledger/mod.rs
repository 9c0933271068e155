//! Where ledgers are kept: a directory of each sandbox's own, or memory.

mod bounds;
mod directory;
mod file;
mod files;
mod lines;
mod memory;
#[cfg(test)]
mod model_tests;
mod own;
mod seal;
mod table;

use std::fmt::Debug;
use std::path::Path;
use std::rc::Rc;

use sandbox_model::ledger::{EntryId, Ledger, UndoReport};
use sandbox_model::{PortResult, SandboxId};

use crate::supervisor::{Progress, SavedSandbox};
use crate::system::SandboxSpec;
pub use bounds::Bounds;
pub use directory::DirectoryStore;
pub use lines::{LineLedger, Lines};
pub use memory::MemoryStore;
pub use seal::Seal;
pub use table::{LedgerTable, ReadLedger, Violation, read};

/// The entry number by which reports name the sandbox's own directory, which holds the ledger and so
/// cannot be in it.
pub(crate) const DIRECTORY_ENTRY: EntryId = EntryId(0);

/// Keeps the directory and the ledger of each sandbox.
pub trait SandboxStore: Debug + Send + Sync {
    /// The directory below which every sandbox has its own.
    fn state_dir(&self) -> &Path;

    /// Makes a sandbox's directory and an empty ledger in it, and keeps what it was created with.
    ///
    /// # Errors
    /// `Exists`: the sandbox, or what a crash left of it, is there already.
    fn create(&self, spec: &SandboxSpec) -> PortResult<Rc<dyn Ledger>>;

    /// Opens what an earlier process has left of a sandbox.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` with the number of the first line that is damaged. A cut last line
    /// is what a crash leaves and is ignored.
    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>>;

    /// Keeps where a sandbox stands for a later process.
    ///
    /// # Errors
    /// It could not be written; what was kept before is still there.
    fn save(&self, sandbox: &SandboxId, progress: Progress) -> PortResult<()>;

    /// What `create` and `save` have kept.
    ///
    /// # Errors
    /// `NotFound`: nothing was saved. `Invalid`: it is no file of ours that this version wrote.
    /// `Denied`: somebody else could have written it.
    fn load(&self, sandbox: &SandboxId) -> PortResult<SavedSandbox>;

    /// Removes the ledger and the directory, after everything in it has been undone.
    ///
    /// Nothing is removed that is not ours: a directory with a stranger's file in it stays, and the
    /// report names it.
    fn destroy(&self, sandbox: &SandboxId) -> UndoReport;

    /// The sandboxes that have a directory.
    ///
    /// # Errors
    /// The state directory cannot be read.
    fn list(&self) -> PortResult<Vec<SandboxId>>;
}
