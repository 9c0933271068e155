//! What an embedder holds of a sandbox.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, Board, Figures, Request, Serve};
use guest_agent::GuestAgent;
use sandbox_model::config::SandboxConfig;
use sandbox_model::ledger::UndoReport;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::network::NetworkRequest;
use sandbox_model::request::{
    AppliedResources, DevicesRequest, GuestDevices, GuestRootfs, GuestVolumes, LinuxResourcesRequest, ResourceConfig,
    ResourceUpdate, RootfsRequest, VolumesRequest,
};
use sandbox_model::status::SandboxStatus;
use sandbox_model::storage::Storage;
use sandbox_model::trace::{Event, Place, TraceSink};
use sandbox_model::{ContainerId, Instant, SandboxId};
use serde_json::Value;
use tokio::sync::watch;

use crate::error::SandboxError;
use crate::supervisor::{
    Adopt, Adopted, Cleanup, PrepareBeforeStartVm, Progress, ReleaseContainer, Save, SavedSandbox, SetUpDevices,
    SetUpNetwork, SetUpRootfs, SetUpVolumes, SetupAfterStartVm, StartVm, Stop, StoragesForSandbox, Supervisor,
    UpdateLinuxResources,
};

/// Composes what the resource actors have published.
pub(crate) type Dump = Arc<dyn Fn() -> Value + Send + Sync>;

/// A sandbox. Cheap to clone; usable from any thread and any runtime.
///
/// Requests are served one at a time, in the order in which they were made. `status`, `dump` and
/// `config` never wait. Dropping a request's future cancels it if it has not begun; `stop` and
/// `cleanup` interrupt what has.
///
/// Dropping every handle leaves the sandbox as it is: release it with [`cleanup`](Self::cleanup).
#[derive(Clone)]
pub struct SandboxHandle {
    pub(crate) sandbox: SandboxId,
    pub(crate) supervisor: Address<Supervisor>,
    pub(crate) status: watch::Receiver<SandboxStatus>,
    pub(crate) agent: Arc<dyn GuestAgent>,
    pub(crate) config: Arc<SandboxConfig>,
    pub(crate) dump: Dump,
    pub(crate) sink: Arc<dyn TraceSink>,
    pub(crate) board: Board,
    pub(crate) registry: crate::system::Registry,
}

impl fmt::Debug for SandboxHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SandboxHandle({})", self.sandbox)
    }
}

impl SandboxHandle {
    async fn ask<R, T>(&self, request: R, deadline: Duration) -> Result<T, SandboxError>
    where
        R: Request<Reply = Result<T, SandboxError>>,
        Supervisor: Serve<R>,
    {
        let ask = Ask { deadline: Instant::now() + deadline, cause: None };
        self.supervisor.ask(request, ask).await?
    }

    fn step_deadline(&self) -> Duration {
        Duration::from_millis(self.config.runtime.deadlines.step_ms)
    }

    /// Which sandbox this is.
    pub fn id(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Makes cgroups, network and shared directory, and plugs what the VM shall start with.
    ///
    /// # Errors
    /// [`SandboxError`]; what the step had made has been undone.
    pub async fn prepare_before_start_vm(&self, resources: Vec<ResourceConfig>) -> Result<(), SandboxError> {
        self.ask(PrepareBeforeStartVm { resources }, self.step_deadline()).await
    }

    /// Starts the VM inside its cgroups.
    ///
    /// # Errors
    /// [`SandboxError`]; the VMM's process is gone and its last words are in the text.
    pub async fn start_vm(&self) -> Result<(), SandboxError> {
        self.ask(StartVm {}, self.step_deadline()).await
    }

    /// Waits for the guest's agent and tells it its network.
    ///
    /// # Errors
    /// [`SandboxError`]; the VM still runs and the step may be tried again.
    pub async fn setup_after_start_vm(&self) -> Result<(), SandboxError> {
        self.ask(SetupAfterStartVm {}, self.step_deadline()).await
    }

    /// Makes the network of a sandbox that was prepared without one.
    ///
    /// # Errors
    /// [`SandboxError`]; what the step had made has been undone.
    pub async fn set_up_network(&self, network: NetworkRequest) -> Result<(), SandboxError> {
        self.ask(SetUpNetwork { network }, self.step_deadline()).await
    }

    /// What the agent must mount for the sandbox itself, `/dev/shm` being `shm_bytes` large.
    ///
    /// # Errors
    /// [`SandboxError::Refused`].
    pub async fn storages_for_sandbox(&self, shm_bytes: u64) -> Result<Vec<Storage>, SandboxError> {
        self.ask(StoragesForSandbox { shm_bytes }, self.step_deadline()).await
    }

    /// Makes a container's root file system visible in the guest.
    ///
    /// # Errors
    /// [`SandboxError`]; what the step had made has been undone.
    pub async fn set_up_rootfs(&self, request: RootfsRequest) -> Result<GuestRootfs, SandboxError> {
        self.ask(SetUpRootfs(request), self.step_deadline()).await
    }

    /// Makes a container's volumes visible in the guest, all or none.
    ///
    /// # Errors
    /// [`SandboxError`]; what the step had made has been undone.
    pub async fn set_up_volumes(&self, request: VolumesRequest) -> Result<GuestVolumes, SandboxError> {
        self.ask(SetUpVolumes(request), self.step_deadline()).await
    }

    /// Plugs a container's devices, all or none.
    ///
    /// # Errors
    /// [`SandboxError`]; what the step had made has been undone.
    pub async fn set_up_devices(&self, request: DevicesRequest) -> Result<GuestDevices, SandboxError> {
        self.ask(SetUpDevices(request), self.step_deadline()).await
    }

    /// Sizes VM and cpuset for a container that joins, changes or leaves.
    ///
    /// # Errors
    /// [`SandboxError`]; the container's share is as before.
    pub async fn update_linux_resources(
        &self,
        container: ContainerId,
        resources: Option<oci_spec::runtime::LinuxResources>,
        update: ResourceUpdate,
    ) -> Result<AppliedResources, SandboxError> {
        let request = LinuxResourcesRequest { container, resources, update };
        self.ask(UpdateLinuxResources(request), self.step_deadline()).await
    }

    /// Gives back all that a container holds, and reports what became of each object.
    ///
    /// # Errors
    /// [`SandboxError`]. Objects that could not be given back are no error but in the report; they
    /// stay in the ledger for the next attempt.
    pub async fn release_container(&self, container: ContainerId) -> Result<UndoReport, SandboxError> {
        self.ask(ReleaseContainer { container }, self.step_deadline()).await
    }

    /// Ends the VM. Interrupts a step that is being performed.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn stop(&self) -> Result<(), SandboxError> {
        self.interrupt();
        self.ask(Stop {}, self.step_deadline() + self.undo_deadline()).await
    }

    /// Gives everything back: goes on past errors and reports each. Interrupts a step that is being
    /// performed. May be repeated until its report is clean.
    ///
    /// # Errors
    /// [`SandboxError::Refused`]. Objects that could not be given back are in the report.
    pub async fn cleanup(&self) -> Result<UndoReport, SandboxError> {
        self.release(Cleanup { at_once: false }).await
    }

    /// As [`cleanup`](Self::cleanup), in haste: nobody is asked to end before being ended by force, and
    /// little time is given to each object. No less is undone. Interrupts a clean-up, too.
    ///
    /// # Errors
    /// As [`cleanup`](Self::cleanup).
    pub async fn cleanup_at_once(&self) -> Result<UndoReport, SandboxError> {
        self.release(Cleanup { at_once: true }).await
    }

    async fn release(&self, cleanup: Cleanup) -> Result<UndoReport, SandboxError> {
        self.interrupt();
        let report = self.ask(cleanup, self.undo_deadline() * 3).await?;
        if report.is_clean() {
            self.registry.forget(&self.sandbox);
        }
        Ok(report)
    }

    /// Keeps what a later process needs to know, beside the ledger.
    ///
    /// # Errors
    /// [`SandboxError::Store`].
    pub async fn save(&self) -> Result<SavedSandbox, SandboxError> {
        self.ask(Save {}, self.step_deadline()).await
    }

    /// Takes over what an earlier process has left running.
    pub(crate) async fn adopt(&self, progress: Progress) -> Result<Adopted, SandboxError> {
        self.ask(Adopt { progress }, self.step_deadline()).await
    }

    /// Where the sandbox stands. Never waits.
    pub fn status(&self) -> SandboxStatus {
        let mut status = self.status.borrow().clone();
        if let Some(death) = self.supervisor.death() {
            status.state = LifecycleState::Failed;
            status.failure.get_or_insert_with(|| death.to_string());
        }
        status
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<SandboxStatus> {
        self.status.clone()
    }

    /// What every actor last published. Never waits.
    pub fn dump(&self) -> Value {
        (self.dump)()
    }

    /// What the mailbox of each actor is at: for people, not to decide by. Never waits.
    pub fn figures(&self) -> Vec<Figures> {
        self.board.figures()
    }

    /// The sandbox's configuration.
    pub fn config(&self) -> &SandboxConfig {
        &self.config
    }

    /// The guest's agent, for what a runtime does with containers themselves.
    pub fn agent(&self) -> Arc<dyn GuestAgent> {
        self.agent.clone()
    }

    /// Interrupts the step being performed; it undoes itself and answers `Interrupted`.
    pub fn interrupt(&self) {
        if self.supervisor.depth() == 0 {
            return;
        }
        if self.sink.is_recording() {
            let place = Place::outside(&*self.sink, &self.sandbox);
            self.sink.record(Event::Interrupted { place });
        }
        self.supervisor.interrupt();
    }

    fn undo_deadline(&self) -> Duration {
        Duration::from_millis(self.config.runtime.deadlines.undo_ms)
    }
}
