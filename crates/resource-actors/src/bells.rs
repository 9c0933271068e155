//! What ends by itself, told to the supervisor.

use std::time::Duration;

use actor_shell::{Address, Ask};
use hypervisor::VmExit;
use sandbox_model::Instant;
use sharefs_actor::{Daemon, ShareFsActor};
use tokio::sync::watch;

use crate::supervisor::{DaemonEnded, Published, Supervisor, VmExited};

/// A virtiofsd ends when its VMM does, and may be seen to end first: then it is no news of its own.
const VMM_GRACE: Duration = Duration::from_secs(1);

type Exit = watch::Receiver<Option<VmExit>>;

/// Tells that the VM has ended. Lives until the sandbox is released.
pub(crate) async fn vm(supervisor: Address<Supervisor>, mut exit: Exit) {
    let ended = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
    if let Ok(Some(exit)) = ended {
        // A supervisor that is gone or has died needs no telling.
        let _ = supervisor.ask(VmExited { exit }, hour()).await;
    }
}

/// Tells that the daemon of the shared directory has ended. Lives as long as the VM, or until the
/// sandbox is released.
pub(crate) async fn daemon(supervisor: Address<Supervisor>, share: Published<ShareFsActor>, exit: Exit) {
    let mut vm_exit = exit.clone();
    let exit = tokio::select! {
        biased;
        _ = vm_exit.wait_for(Option::is_some) => return,
        exit = end_of_daemon(share) => exit,
    };
    let Some(exit) = exit else { return };
    if tokio::time::timeout(VMM_GRACE, vm_exit.wait_for(Option::is_some)).await.is_err() {
        let _ = supervisor.ask(DaemonEnded { exit }, hour()).await;
    }
}

/// How the daemon ended by itself; none if there will be no daemon that can be waited for.
async fn end_of_daemon(mut share: Published<ShareFsActor>) -> Option<String> {
    loop {
        let mut published = share.borrow_and_update().clone();
        let found = tokio::select! {
            biased;
            _ = share.changed() => continue,
            found = published.wait_for(|now| now.daemon.is_some()) => found.ok()?.daemon.clone()?,
        };
        let helper = found.handle.get()?.clone();
        let exit = helper.wait().await;
        // One that its owner has ended, and forgotten, has not ended by itself.
        let is_still = |daemon: &Option<Daemon>| daemon.as_ref().is_some_and(|now| now.process == found.process);
        if is_still(&published.borrow().daemon) {
            let (pid, words) = (found.process.pid, helper.last_words());
            let said = if words.is_empty() { String::new() } else { format!("; it said: {words}") };
            return Some(format!("pid {pid}, {exit}{said}"));
        }
    }
}

fn hour() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(3600), cause: None }
}
