//! What ends by itself, told to the supervisor.

use std::time::Duration;

use actor_shell::{Address, Ask, Published};
use hypervisor::VmExit;
use sandbox_model::Instant;
use sharefs_actor::{Daemon, ShareFsSnapshot};
use tokio::sync::watch;

use crate::supervisor::{Crew, DaemonEnded, Supervisor, VmExited};

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

/// Where the daemon is found that a VM needs.
pub(crate) struct Helpers {
    daemons_are_known: watch::Receiver<bool>,
    share: Published<ShareFsSnapshot>,
}

impl Helpers {
    pub(crate) fn of(crew: &Crew) -> Self {
        Self { daemons_are_known: crew.daemons_are_known.subscribe(), share: crew.share.published() }
    }

    /// How the daemon ended by itself; none if there is none that can be waited for.
    async fn end_of_daemon(mut self) -> Option<String> {
        self.daemons_are_known.wait_for(|known| *known).await.ok()?;
        let found = self.daemon()?;
        let helper = found.handle.get()?.clone();
        let exit = helper.wait().await;
        // One that its owner has ended, and forgotten, has not ended by itself.
        self.daemon().filter(|now| now.process == found.process)?;
        let (pid, words) = (found.process.pid, helper.last_words());
        let said = if words.is_empty() { String::new() } else { format!("; it said: {words}") };
        Some(format!("pid {pid}, {exit}{said}"))
    }

    fn daemon(&self) -> Option<Daemon> {
        self.share.borrow().daemon.clone()
    }
}

/// Tells that the daemon of the shared directory has ended. Lives as long as the VM, or until the
/// sandbox is released.
pub(crate) async fn daemon(supervisor: Address<Supervisor>, helpers: Helpers, mut vm_exit: Exit) {
    let ended = tokio::select! {
        biased;
        _ = vm_exit.wait_for(Option::is_some) => return,
        ended = helpers.end_of_daemon() => ended,
    };
    let Some(exit) = ended else { return };
    if tokio::time::timeout(VMM_GRACE, vm_exit.wait_for(Option::is_some)).await.is_err() {
        let _ = supervisor.ask(DaemonEnded { exit }, hour()).await;
    }
}

fn hour() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(3600), cause: None }
}
