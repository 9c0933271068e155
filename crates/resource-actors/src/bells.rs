//! What ends by itself, told to the supervisor.

use std::time::Duration;

use actor_shell::{Address, Ask, Published};
use device_actor::DevicesInBrief;
use helper_process::HelperProcess;
use hypervisor::VmExit;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{Instant, Live};
use sharefs_actor::ShareFsSnapshot;
use tokio::sync::watch;

use crate::supervisor::{Crew, DaemonEnded, Supervisor, VmExited};

/// A daemon may end when its VMM does, and may be seen to end first: then it is no news of its own.
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

/// Where the daemons are found that a VM needs.
pub(crate) struct Helpers {
    daemons_are_known: watch::Receiver<bool>,
    share: Published<ShareFsSnapshot>,
    device: Published<DevicesInBrief>,
}

type Daemon = (ProcessIdentity, Live<HelperProcess>);

impl Helpers {
    pub(crate) fn of(crew: &Crew) -> Self {
        Self {
            daemons_are_known: crew.daemons_are_known.subscribe(),
            share: crew.share.published(),
            device: crew.device.published(),
        }
    }

    /// Which daemon has ended by itself, and how. Never, if there is none that can be waited for.
    async fn end_of_one(mut self) -> DaemonEnded {
        if self.daemons_are_known.wait_for(|known| *known).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            biased;
            exit = end(|| self.virtiofsd()) => DaemonEnded { program: "virtiofsd".into(), exit },
            exit = end(|| self.vsock_daemon()) => DaemonEnded { program: "vhost-device-vsock".into(), exit },
        }
    }

    fn virtiofsd(&self) -> Option<Daemon> {
        self.share.borrow().daemon.as_ref().map(|daemon| (daemon.process, daemon.handle.clone()))
    }

    fn vsock_daemon(&self) -> Option<Daemon> {
        self.device.borrow().vsock_daemon.as_ref().map(|daemon| (daemon.process, daemon.handle.clone()))
    }
}

/// How the daemon ended by itself, in words. One that its owner has ended, and forgotten, has not.
async fn end(find: impl Fn() -> Option<Daemon>) -> String {
    if let Some((process, handle)) = find()
        && let Some(helper) = handle.get()
    {
        let exit = helper.wait().await;
        if find().is_some_and(|(now, _)| now == process) {
            let (pid, words) = (process.pid, helper.last_words());
            let said = if words.is_empty() { String::new() } else { format!("; it said: {words}") };
            return format!("pid {pid}, {exit}{said}");
        }
    }
    std::future::pending().await
}

/// Tells that a daemon has ended that the VM needs. Lives as long as the VM, or until the sandbox is
/// released.
pub(crate) async fn daemons(supervisor: Address<Supervisor>, helpers: Helpers, mut vm_exit: Exit) {
    let ended = tokio::select! {
        biased;
        _ = vm_exit.wait_for(Option::is_some) => return,
        ended = helpers.end_of_one() => ended,
    };
    if tokio::time::timeout(VMM_GRACE, vm_exit.wait_for(Option::is_some)).await.is_err() {
        let _ = supervisor.ask(ended, hour()).await;
    }
}

fn hour() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(3600), cause: None }
}
