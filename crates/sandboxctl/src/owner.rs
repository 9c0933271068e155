//! Whether a living process runs a sandbox: it holds a lock on the sandbox's directory, which the
//! kernel gives back when the process ends, however it ends.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;

/// How long a child that a process was about to start may hold its lock after that process has died:
/// from fork to exec, on a busy host.
const FORK_TO_EXEC: Duration = Duration::from_millis(500);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

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

/// Claims a sandbox whose process may have died only just now.
pub(crate) async fn claim_of_the_dead(state_dir: &Path, sandbox: &SandboxId) -> Result<Claim, Unclaimed> {
    let patience = tokio::time::Instant::now() + FORK_TO_EXEC;
    loop {
        match claim(state_dir, sandbox) {
            Err(Unclaimed::Runs) if tokio::time::Instant::now() < patience => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_that_outlives_its_owner_by_a_moment_is_waited_for() {
        let state = tempfile::tempdir().unwrap();
        let id = SandboxId::new("one").unwrap();
        std::fs::create_dir(state.path().join("one")).unwrap();
        let held = claim(state.path(), &id).unwrap();
        assert!(matches!(claim_of_the_dead(state.path(), &id).await, Err(Unclaimed::Runs)), "it is held for good");
        let let_go = async {
            tokio::time::sleep(PAUSE).await;
            drop(held);
        };
        let (claimed, ()) = tokio::join!(claim_of_the_dead(state.path(), &id), let_go);
        assert!(claimed.is_ok());
    }
}
