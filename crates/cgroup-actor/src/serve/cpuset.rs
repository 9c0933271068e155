//! `UpdateCpuset`.

use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::ledger::{Entry, HostObject, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, Instant, PortResult};

use super::{CgroupActor, Clients, PlacedVm, SECOND_CHANCE, Up, settled};
use crate::cpuset::{CpusetTable, Share};
use crate::host::SetCpuset;
use crate::messages::{CgroupError, Cpuset, UpdateCpuset};

/// What `UpdateCpuset` keeps between its parts.
#[derive(Debug)]
pub struct CpusetTicket {
    container: ContainerId,
    update: ResourceUpdate,
    before: CpusetTable,
    after: CpusetTable,
    written: Option<Cpuset>,
    up: Rc<Up>,
    vm: Option<PlacedVm>,
}

type Done = Result<Cpuset, CgroupError>;

impl Serve<UpdateCpuset> for CgroupActor {
    type Ticket = CpusetTicket;
    type Outcome = Done;

    fn plan(&mut self, request: UpdateCpuset, _: &Call) -> Plan<CpusetTicket, Done> {
        let share = match Share::parse(request.cpus.as_deref(), request.mems.as_deref()) {
            Ok(share) => share,
            Err(error) => return Plan::Answer(Err(CgroupError::Invalid { what: error.to_string() })),
        };
        let up = match self.up() {
            Ok(Some(up)) => up.clone(),
            Ok(None) => return Plan::Answer(Ok(Cpuset::default())),
            Err(error) => return Plan::Answer(Err(error)),
        };
        let after = self.table.with(&request.container, share, request.update);
        let is_written = self.written.as_ref() == Some(&after.cpuset());
        if after == self.table && is_written {
            return Plan::Answer(Ok(after.cpuset()));
        }
        let UpdateCpuset { container, update, .. } = request;
        let (before, written, vm) = (self.table.clone(), self.written.clone(), self.vm.clone());
        Plan::Perform(CpusetTicket { container, update, before, after, written, up, vm })
    }

    fn perform(&self, ticket: &mut CpusetTicket, call: &Call) -> LocalFuture<Done> {
        let (clients, deadline) = (self.clients.clone(), call.deadline);
        let change = Change {
            up: ticket.up.clone(),
            vm: ticket.vm.clone(),
            before: ticket.before.clone(),
            after: ticket.after.clone(),
            written: ticket.written.clone(),
        };
        let (container, update) = (ticket.container.clone(), ticket.update);
        Box::pin(async move {
            match (update, clients.share_entry(&container)) {
                (ResourceUpdate::Remove, Some(entry)) => {
                    clients.journal.unmake(&entry, clients.apply(&change, deadline)).await?;
                }
                (ResourceUpdate::Remove, None) | (_, Some(_)) => clients.apply(&change, deadline).await?,
                (_, None) => {
                    // Noted first: whatever becomes of the write, its undo sets the others' cpuset.
                    let scope = Scope::Container(container.clone());
                    clients.journal.note(scope, HostObject::ResourceShare { container })?;
                    clients.apply(&change, deadline).await?;
                }
            }
            Ok(change.after.cpuset())
        })
    }

    fn settle(&mut self, ticket: CpusetTicket, done: Completion<Done>) -> Done {
        self.written = None;
        let cpuset = settled(done)?;
        self.written = Some(cpuset.clone());
        self.table = ticket.after;
        Ok(cpuset)
    }
}

/// One table in force, to be replaced by another.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) up: Rc<Up>,
    pub(super) vm: Option<PlacedVm>,
    pub(super) before: CpusetTable,
    pub(super) after: CpusetTable,
    /// What was written last, if that is certain.
    pub(super) written: Option<Cpuset>,
}

impl Clients {
    /// The ledger's entry of a container's share.
    fn share_entry(&self, wanted: &ContainerId) -> Option<Arc<Entry>> {
        self.journal.ledger().find(&|entry| {
            entry.actor == ActorName::Cgroup
                && matches!(&entry.object, HostObject::ResourceShare { container } if container == wanted)
        })
    }

    /// Writes the table into the sandbox's group. When that fails half way, the table before is
    /// written again.
    pub(super) async fn apply(&self, change: &Change, deadline: Instant) -> PortResult<()> {
        let (before, after) = (change.before.cpuset(), change.after.cpuset());
        if change.written.as_ref() == Some(&after) {
            return Ok(());
        }
        let group = change.up.sandbox.clone();
        let is_same = before == after;
        let applied = self.host.set_cpuset(SetCpuset { group: group.clone(), cpuset: after }, deadline).await;
        let result = match applied {
            Ok(()) => self.pin(&change.up, change.vm.as_ref(), &change.after.cpus(), deadline).await,
            failed => failed,
        };
        if result.is_err() && !is_same {
            let restore = SetCpuset { group, cpuset: before };
            if let Err(error) = self.host.set_cpuset(restore, deadline + SECOND_CHANCE).await {
                tracing::warn!(sandbox = %self.sandbox, %error, "the cpuset before could not be restored");
            }
        }
        result
    }
}
