//! The Linux kernel behind the port.
//!
//! A netlink request is served inside `sendmsg`, on the caller's thread, and some wait for an RCU
//! grace period there (deleting a link: 10 to 35 ms). So each call of the port is one trip to the
//! blocking pool, or to a thread of its own where a namespace is entered.

mod dump;
mod namespace;
mod netlink;
mod redirect;
mod tap;
mod threads;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandbox_model::{ErrorKind, Instant, PassedFd, PortError, PortResult};
use tokio::time::{sleep, timeout_at};

use self::threads::Threads;
use crate::NetworkHost;
use crate::host::{
    CreateFile, CreateNamespace, CreateTap, Inode, OpenNamespace, OpenedNamespace, Redirect, RemoveFile,
    RemoveNamespace, RemoveRedirect, RemoveTap,
};

/// Tries to add a qdisc while somebody else's request is under way (behaviour A5).
const BUSY_TRIES: u32 = 5;
/// Wait after the first of them; the n-th waits n times as long.
const BUSY_WAIT: Duration = Duration::from_millis(10);

/// The kernel that we run on. It keeps no state but the threads that enter namespaces.
#[derive(Debug, Clone, Default)]
pub struct LinuxNetworkHost {
    threads: Threads,
}

impl LinuxNetworkHost {
    /// The kernel of the caller's namespaces.
    pub fn new() -> Self {
        Self::default()
    }
}

#[sandbox_model::port::async_trait]
impl NetworkHost for LinuxNetworkHost {
    async fn open_namespace(&self, request: OpenNamespace, deadline: Instant) -> PortResult<OpenedNamespace> {
        let object = shown(&request.path);
        let call = self.threads.run(move || namespace::open(&request));
        within(deadline, "setns", object, call).await
    }

    async fn create_file(&self, request: CreateFile, deadline: Instant) -> PortResult<Inode> {
        let object = shown(&request.path);
        within(deadline, "open(O_CREAT)", object, on_pool(move || namespace::create_file(&request.path))).await
    }

    async fn create_namespace(&self, request: CreateNamespace, deadline: Instant) -> PortResult<OpenedNamespace> {
        let object = shown(&request.path);
        let call = self.threads.run(move || namespace::create(&request));
        within(deadline, "unshare", object, call).await
    }

    async fn create_tap(&self, request: CreateTap, deadline: Instant) -> PortResult<u32> {
        let object = request.name.clone();
        within(deadline, "TUNSETIFF", object, on_pool(move || tap::create(&request))).await
    }

    async fn redirect(&self, request: Redirect, deadline: Instant) -> PortResult<()> {
        let object = request.link.clone();
        let request = Arc::new(request);
        let attempts = async {
            let mut attempt = 1;
            loop {
                let shared = request.clone();
                match on_pool(move || redirect::add(&shared)).await {
                    Err(error) if error.kind == ErrorKind::Busy && attempt < BUSY_TRIES => {
                        sleep(BUSY_WAIT * attempt).await;
                        attempt += 1;
                    }
                    other => return other,
                }
            }
        };
        within(deadline, "tc redirect", object, attempts).await
    }

    async fn remove_tap(&self, request: RemoveTap, deadline: Instant) -> PortResult<()> {
        let object = request.name.clone();
        let queue = request.queues.first().and_then(PassedFd::get).cloned();
        let Some(queue) = queue else {
            return within(deadline, "RTM_DELLINK", object, on_pool(move || tap::remove(&request))).await;
        };
        // The link is gone from its namespace long before the kernel has waited for all who might
        // still look at it (an RCU grace period or two: 10 to 70 ms). The call keeps the descriptors:
        // closing one waits for the lock that is held meanwhile.
        let call = actor_shell::blocking_after_effect(move || tap::remove(&request));
        let removed = async {
            tokio::select! {
                biased;
                removed = call => removed,
                () = tap::gone(queue) => Ok(()),
            }
        };
        within(deadline, "RTM_DELLINK", object, removed).await
    }

    async fn remove_redirect(&self, request: RemoveRedirect, deadline: Instant) -> PortResult<()> {
        let object = request.link.clone();
        within(deadline, "RTM_DELQDISC", object, on_pool(move || redirect::remove(&request))).await
    }

    async fn remove_namespace(&self, request: RemoveNamespace, deadline: Instant) -> PortResult<()> {
        let object = shown(&request.path);
        within(deadline, "umount2", object, on_pool(move || namespace::remove(&request))).await
    }

    async fn remove_file(&self, request: RemoveFile, deadline: Instant) -> PortResult<()> {
        let object = shown(&request.path);
        within(deadline, "unlink", object, on_pool(move || namespace::remove_file(&request))).await
    }
}

async fn on_pool<T: Send + 'static>(call: impl FnOnce() -> PortResult<T> + Send + 'static) -> PortResult<T> {
    actor_shell::blocking(call).await
}

async fn within<T>(
    deadline: Instant,
    operation: &str,
    object: String,
    call: impl Future<Output = PortResult<T>>,
) -> PortResult<T> {
    match timeout_at(deadline, call).await {
        Ok(result) => result,
        Err(_) => Err(PortError::timed_out(operation, object, "the kernel did not answer before the deadline")),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The handle inside a message, which a replayed one does not have.
fn live<'a>(handle: &'a PassedFd, operation: &str, object: &str) -> PortResult<&'a Arc<OwnedFd>> {
    handle.get().ok_or_else(|| {
        PortError::new(ErrorKind::Invalid, operation, object, "its handle is absent: the message was replayed")
    })
}
