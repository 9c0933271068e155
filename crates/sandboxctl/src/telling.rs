//! What the process of a sandbox tells of it while it lives: one document to whoever connects.
//!
//! The socket has an abstract name (unix(7)), so nothing is left of it however the process ends, and
//! each side asks the kernel who the other is: only the same user and root are told, and believed.

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use resource_actors::{Figures, SandboxHandle};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use tokio::io::AsyncWriteExt;

use crate::mode::Mode;

/// How long the other side may take; it has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest document that is read.
const BYTES_MAX: u64 = 256 << 10;

/// A sandbox as its process tells of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Told {
    #[schemars(with = "String")]
    pub(crate) id: SandboxId,
    /// Of the process that runs it.
    pub(crate) pid: u32,
    /// `qemu` or `simulated`.
    pub(crate) vmm: String,
    /// `real` or `private`.
    pub(crate) host: String,
    /// Where the sandbox stands.
    #[schemars(with = "String")]
    pub(crate) state: LifecycleState,
    /// The step that is being performed, and what it waits for.
    pub(crate) step: Option<String>,
    /// Open entries of its ledger.
    pub(crate) objects: usize,
    pub(crate) containers: usize,
    pub(crate) mailboxes: Vec<Figures>,
}

impl Told {
    fn of(sandbox: &SandboxHandle, mode: Mode) -> Self {
        let status = sandbox.status();
        Self {
            id: sandbox.id().clone(),
            pid: std::process::id(),
            vmm: mode.vmm.to_string(),
            host: mode.host.to_string(),
            state: status.state,
            step: status.step.map(|step| format!("{}: {}", step.step, step.waiting_for)),
            objects: status.objects,
            containers: status.containers,
            mailboxes: sandbox.figures(),
        }
    }
}

fn address(state_dir: &Path, sandbox: &SandboxId) -> io::Result<SocketAddr> {
    let place = std::path::absolute(state_dir)?.join(sandbox.as_str());
    let digest = sha2::Sha256::digest(place.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("resource-actors/{name}"))
}

fn may_know(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::getuid().as_raw()
}

/// Tells of a sandbox until the task is aborted.
///
/// # Errors
/// The name is taken, or sockets are not to be had.
pub(crate) fn serve(state_dir: &Path, sandbox: &SandboxHandle, mode: Mode) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = UnixListener::bind_addr(&address(state_dir, sandbox.id())?)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let sandbox = sandbox.clone();
    Ok(tokio::spawn(async move {
        // One at a time: an answer is a few KiB and fits the socket's buffer.
        while let Ok((mut stream, _)) = listener.accept().await {
            if !stream.peer_cred().is_ok_and(|peer| may_know(peer.uid())) {
                continue;
            }
            let document = serde_json::to_vec(&Told::of(&sandbox, mode)).unwrap_or_default();
            // Who does not listen misses it.
            drop(tokio::time::timeout(PATIENCE, stream.write_all(&document)).await);
        }
    }))
}

/// Asks the process that runs a sandbox.
///
/// # Errors
/// None does, it does not answer, or it is another user's.
pub(crate) fn ask(state_dir: &Path, sandbox: &SandboxId) -> io::Result<Told> {
    let stream = UnixStream::connect_addr(&address(state_dir, sandbox)?)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if !may_know(peer.uid.as_raw()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user answers in its name"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(BYTES_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use resource_actors::ledger::MemoryStore;
    use resource_actors::{ResourceSystem, SandboxSpec};
    use sandbox_model::config::SandboxConfig;
    use simulation::{SimulatedFacts, World, simulated_ports};

    use super::*;
    use crate::mode::{HostMode, VmmMode};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_tells_of_its_sandbox_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let world = Arc::new(World::new());
        let builder = ResourceSystem::builder(simulated_ports(&world)).facts(Arc::new(SimulatedFacts::default()));
        let system = builder.store(Arc::new(MemoryStore::new("/run/told"))).start().unwrap();
        let id = SandboxId::new("told").unwrap();
        let mut config = SandboxConfig::default();
        config.hypervisor.kernel = "/simulated/kernel".into();
        let spec = SandboxSpec { id: id.clone(), config: config.into(), cgroups_path: None };
        let sandbox = system.create_sandbox(spec).await.unwrap();
        sandbox.storages_for_sandbox(1 << 20).await.unwrap();
        let mode = Mode { vmm: VmmMode::Simulated, host: HostMode::Private };
        let telling = serve(dir.path(), &sandbox, mode).unwrap();
        let asked = || {
            let (dir, id) = (dir.path().to_owned(), id.clone());
            tokio::task::spawn_blocking(move || ask(&dir, &id))
        };
        let told = asked().await.unwrap().unwrap();
        assert_eq!((told.id, told.state, told.vmm.as_str()), (id.clone(), LifecycleState::Created, "simulated"));
        assert_eq!((told.pid, told.mailboxes.len()), (std::process::id(), 6));
        assert_eq!((told.mailboxes[0].served, told.mailboxes[1].served), (1, 0));
        telling.abort();
        assert!(telling.await.unwrap_err().is_cancelled());
        assert!(asked().await.unwrap().is_err(), "nobody answers any more");
        system.shutdown().await;
    }
}
