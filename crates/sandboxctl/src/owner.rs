//! Whether a living process runs a sandbox: it holds a lock on the sandbox's directory, which the
//! kernel gives back when the process ends, however it ends.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;

/// Holds the sandbox until it is dropped.
pub(crate) type Claim = Flock<File>;

/// Why a sandbox cannot be claimed.
#[derive(Debug)]
pub(crate) enum Unclaimed {
    /// A living process holds it.
    Runs,
    /// There is no such directory.
    Gone,
    /// The directory cannot be opened or locked.
    Other(String),
}

/// Claims a sandbox for this process.
pub(crate) fn claim(state_dir: &Path, sandbox: &SandboxId) -> Result<Claim, Unclaimed> {
    let dir = SandboxDir::new(state_dir, sandbox);
    let opened = File::open(dir.root()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unclaimed::Gone,
        _ => Unclaimed::Other(format!("open {}: {error}", dir.root().display())),
    })?;
    Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Unclaimed::Runs,
        errno => Unclaimed::Other(format!("flock {}: {errno}", dir.root().display())),
    })
}
