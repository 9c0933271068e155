//! Undoing what the ledger says was made.

use std::collections::BTreeSet;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::ledger::{Entry, EntryId, HostObject, UndoItem, UndoReport, Undone};
use sandbox_model::{ContainerId, ErrorKind, PortError};

use crate::actor::ShareFsActor;
use crate::messages::UndoShares;
use crate::names::Place;

/// One entry to undo.
#[derive(Debug, Clone)]
pub struct Step {
    entry: Arc<Entry>,
    /// Somebody who still needs it.
    holder: Option<ContainerId>,
    /// What must be gone before: a last hold goes after what it holds, so that what could not be taken
    /// away stays held and is tried again with its holder's next release.
    after: Vec<EntryId>,
}

impl Serve<UndoShares> for ShareFsActor {
    type Ticket = Vec<Step>;
    type Outcome = UndoReport;

    fn plan(&mut self, UndoShares(undo): UndoShares, _: &Call) -> Plan<Vec<Step>, UndoReport> {
        let gone: Vec<EntryId> = undo.entries.iter().map(|entry| entry.id).collect();
        let taken_along = self.shares.last_holds(&gone);
        let ledger = self.hand.journal.ledger();
        let mut seen = BTreeSet::new();
        let mut steps = Vec::new();
        for entry in undo.entries {
            // Before the hold's own record: after a crash in between the hold is still there.
            let after: Vec<EntryId> = taken_along.get(&entry.id).into_iter().flatten().copied().collect();
            for (n, own) in after.iter().enumerate() {
                if let Some(own) = ledger.entry(*own)
                    && seen.insert(own.id)
                {
                    // A placeholder goes after the mount for which it was made.
                    steps.push(Step { entry: own, holder: None, after: after[..n].to_vec() });
                }
            }
            if seen.insert(entry.id) {
                let holder = self.shares.holder_besides(entry.id, &gone).cloned();
                steps.push(Step { entry, holder, after });
            }
        }
        Plan::Perform(steps)
    }

    fn perform(&self, steps: &mut Vec<Step>, call: &Call) -> LocalFuture<UndoReport> {
        let (hand, steps, deadline) = (self.hand.clone(), steps.clone(), call.deadline);
        Box::pin(async move {
            let mut report = UndoReport::default();
            let is_live = |id: &EntryId| hand.journal.ledger().is_live(*id);
            for Step { entry, holder, after } in steps {
                let result = match (holder, after.iter().any(is_live)) {
                    (Some(container), _) => Err(still_held(&entry, &container)),
                    (None, true) => Err(still_there(&entry)),
                    (None, false) => hand.unmake(&entry, deadline).await,
                };
                report.items.push(UndoItem::of(&entry, result));
            }
            report
        })
    }

    fn settle(&mut self, steps: Vec<Step>, done: Completion<UndoReport>) -> UndoReport {
        let ledger = self.hand.journal.ledger().clone();
        let is_live = |id: EntryId| ledger.is_live(id);
        self.shares.forget(is_live);
        self.set_up.take_if(|set_up| !set_up.entries.iter().all(|entry| is_live(*entry)));
        for step in steps.iter().filter(|step| !is_live(step.entry.id)) {
            if let HostObject::Directory { path } = &step.entry.object {
                let rw = self.hand.dir.share_rw();
                self.rootfs.retain(|container| *path != rw.join(Place::container(container).path()));
            }
        }
        match done {
            Completion::Finished(report) => report,
            Completion::DeadlinePassed => cut_short(&steps, is_live, "the deadline passed before it was undone"),
            Completion::Interrupted => cut_short(&steps, is_live, "interrupted before it was undone"),
        }
    }
}

fn still_held(entry: &Entry, container: &ContainerId) -> PortError {
    let cause = format!("container {container} holds it; it goes with its last holder");
    PortError::new(ErrorKind::Busy, "undo", entry.object.to_text(), cause)
}

fn still_there(entry: &Entry) -> PortError {
    let cause = "what it holds could not be taken away";
    PortError::new(ErrorKind::Busy, "undo", entry.object.to_text(), cause)
}

/// What the ledger knows of an undo that did not come to its end.
fn cut_short(steps: &[Step], is_live: impl Fn(EntryId) -> bool, cause: &str) -> UndoReport {
    let items = steps.iter().map(|Step { entry, .. }| {
        let object = entry.object.to_text();
        let result = if is_live(entry.id) {
            Err(PortError::timed_out("undo", object.clone(), cause))
        } else {
            Ok(Undone::Undone)
        };
        UndoItem { entry: entry.id, object, result }
    });
    UndoReport { items: items.collect() }
}
