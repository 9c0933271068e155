//! From anywhere to `Released` (behaviour A14, without its early return).

use std::rc::Rc;
use std::sync::Arc;

use actor_shell::Call;
use hypervisor::StopVm;
use sandbox_model::ledger::{Entry, HostObject, UndoReport};
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::{ErrorKind, PortError};

use super::crew::{Crew, StepError};
use super::{Cleanup, Facts, OpenStep, Step, StepKind, Stepped, Stop};

impl Step for Stop {
    type Done = ();
    const KIND: StepKind = StepKind::Stop;

    fn next(_: LifecycleState, (): &()) -> LifecycleState {
        LifecycleState::Stopped
    }

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<()> {
        Box::pin(async move {
            crew.waits_for("Stop", "the VM's end");
            if let Some(vmm) = crew.ledger.find(&is_vmm) {
                crew.stop_vm(&vmm, &call).await.map_err(|error| StepError::own("stop the VM", error))?;
            }
            Arc::make_mut(&mut facts).vm = None;
            Ok(((), facts))
        })
    }
}

pub(super) fn is_vmm(entry: &Entry) -> bool {
    entry.actor == ActorName::Supervisor && matches!(entry.object, HostObject::Process { .. })
}

impl Crew {
    /// Ends the VM politely, and by force where that fails.
    async fn stop_vm(&self, vmm: &Entry, call: &Call) -> Result<(), PortError> {
        // The connection is of no use any more; a guest that does not answer is not waited for.
        let _ = self.agent.disconnect((), call.deadline).await;
        let term_ms = self.term_ms();
        let stopped = async {
            match self.vmm.stop_vm(StopVm { term_ms }, call.deadline).await {
                Err(error) if error.kind != ErrorKind::NotFound => Err(error),
                // Ended by itself before, or now.
                _ => Ok(()),
            }
        };
        self.journal.unmake(vmm, stopped).await.map(|_| ())
    }
}

impl Step for Cleanup {
    type Done = UndoReport;
    const KIND: StepKind = StepKind::Cleanup;

    fn next(_: LifecycleState, report: &UndoReport) -> LifecycleState {
        if report.is_clean() { LifecycleState::Released } else { LifecycleState::Failed }
    }

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<UndoReport> {
        Box::pin(async move {
            if crew.bell.borrow().is_none() {
                // Released before: nothing is left to walk.
                return Ok((UndoReport::default(), facts));
            }
            crew.haste.set(self.at_once);
            crew.waits_for("Cleanup", "what the ledger names");
            if let Err(error) = crew.keep_open(OpenStep::Cleanup, &facts) {
                // A later process that takes the sandbox over instead loses nothing.
                tracing::debug!(sandbox = %crew.sandbox, %error, "the beginning of the clean-up could not be kept");
            }
            let _ = crew.agent.disconnect((), call.deadline).await;
            let mut report = crew.undo_everything().await;
            if report.is_clean() {
                report.extend(crew.store.destroy(&crew.sandbox));
            }
            if report.is_clean() {
                facts = Arc::default();
                crew.bell.replace(None);
            }
            Ok((report, facts))
        })
    }
}
