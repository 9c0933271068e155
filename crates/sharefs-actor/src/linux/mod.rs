//! The real host.

mod attributes;
mod daemon;
mod mounts;
mod tree;

use std::path::PathBuf;

use sandbox_model::{Instant, PortError, PortResult, port};

use crate::host::{
    AdoptDaemon, AdoptedDaemon, Attach, Below, Daemon, Detach, EndDaemon, Export, Inode, Look, Mounted, Remove, Seen,
    ShareFsHost, Source, StartDaemon, VerifyDaemon,
};

/// The Linux host: new mount API (Linux 5.12 or later), openat2, virtiofsd. It needs `CAP_SYS_ADMIN` over its
/// mount namespace.
///
/// What it makes and removes lies in the sandbox's own directory on tmpfs, and a source is open when
/// it is attached: such calls take microseconds and are made on the actors' own thread, as the
/// ledger's are. A trip to the blocking pool and back costs more than they do. What may wait goes
/// there: a path of the host's, taking a mount away, the daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxShareFsHost;

/// Runs `call` beside the arbiter, no longer than until `deadline`. A path may hang (NFS, FUSE).
async fn on_host<T: Send + 'static>(
    operation: &'static str,
    object: PathBuf,
    deadline: Instant,
    call: impl FnOnce() -> PortResult<T> + Send + 'static,
) -> PortResult<T> {
    match tokio::time::timeout_at(deadline, actor_shell::blocking(call)).await {
        Ok(result) => result,
        Err(_) => Err(PortError::timed_out(operation, object.display().to_string(), "the kernel did not return")),
    }
}

#[port::async_trait]
impl ShareFsHost for LinuxShareFsHost {
    async fn make_directory(&self, request: Below, _: Instant) -> PortResult<Inode> {
        tree::make_directory(&request)
    }

    async fn make_file(&self, request: Below, _: Instant) -> PortResult<Inode> {
        tree::make_file(&request)
    }

    async fn remove_directory(&self, request: Remove, _: Instant) -> PortResult<()> {
        tree::remove_directory(&request)
    }

    async fn remove_file(&self, request: Remove, _: Instant) -> PortResult<()> {
        tree::remove_file(&request)
    }

    async fn export(&self, request: Export, _: Instant) -> PortResult<Mounted> {
        mounts::export(&request)
    }

    async fn open_source(&self, request: PathBuf, deadline: Instant) -> PortResult<Source> {
        on_host("open", request.clone(), deadline, move || mounts::open_source(&request)).await
    }

    async fn attach(&self, request: Attach, _: Instant) -> PortResult<Mounted> {
        mounts::attach(&request)
    }

    async fn detach(&self, request: Detach, deadline: Instant) -> PortResult<()> {
        on_host("umount2", request.at.absolute(), deadline, move || mounts::detach(&request)).await
    }

    async fn look(&self, request: Look, deadline: Instant) -> PortResult<Vec<Option<Seen>>> {
        on_host("statx", request.dir.clone(), deadline, move || mounts::look_at(&request)).await
    }

    async fn start_daemon(&self, request: StartDaemon, deadline: Instant) -> PortResult<Daemon> {
        daemon::start(request, deadline).await
    }

    async fn verify_daemon(&self, request: VerifyDaemon, deadline: Instant) -> PortResult<()> {
        let object = PathBuf::from(format!("/proc/{}", request.process.pid));
        on_host("verify virtiofsd", object, deadline, move || daemon::verify(&request)).await
    }

    async fn adopt_daemon(&self, request: AdoptDaemon, deadline: Instant) -> PortResult<AdoptedDaemon> {
        daemon::adopt(request, deadline).await
    }

    async fn end_daemon(&self, request: EndDaemon, deadline: Instant) -> PortResult<()> {
        daemon::end(request, deadline).await
    }
}
