//! `UndoCgroups`: taking away what the ledger names.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::ledger::{Entry, EntryId, HostObject, Identity, Undo, UndoItem, UndoReport, VmFate};
use sandbox_model::{ContainerId, ErrorKind, Instant, PortError, PortResult};

use super::cpuset::Change;
use super::{CgroupActor, Clients, Groups, PlacedVm, Up};
use crate::cpuset::CpusetTable;
use crate::host::RemoveGroup;
use crate::messages::{Cpuset, UndoCgroups};

/// What `UndoCgroups` keeps between its parts.
#[derive(Debug)]
pub struct UndoTicket {
    undo: Undo,
    report: Rc<RefCell<UndoReport>>,
    written: Written,
}

/// The actor's field of that name, as the undo leaves it.
type Written = Rc<RefCell<Option<Cpuset>>>;

impl Serve<UndoCgroups> for CgroupActor {
    type Ticket = UndoTicket;
    type Outcome = ();

    fn plan(&mut self, request: UndoCgroups, _: &Call) -> Plan<UndoTicket, UndoReport> {
        let written = Rc::new(RefCell::new(self.written.clone()));
        Plan::Perform(UndoTicket { undo: request.0, report: Rc::default(), written })
    }

    fn perform(&self, ticket: &mut UndoTicket, call: &Call) -> LocalFuture<()> {
        let up = match (&self.groups, ticket.undo.vm) {
            (Groups::Up(up), VmFate::Alive) => Some(up.clone()),
            // Nobody is left whom a cpuset would confine.
            _ => None,
        };
        let undoing = Undoing {
            clients: self.clients.clone(),
            up,
            vm: self.vm.clone(),
            table: self.table.clone(),
            written: ticket.written.clone(),
            report: ticket.report.clone(),
        };
        Box::pin(undoing.run(ticket.undo.entries.clone(), call.deadline))
    }

    fn settle(&mut self, ticket: UndoTicket, _: Completion<()>) -> UndoReport {
        let mut report = ticket.report.take();
        self.written = ticket.written.take();
        let reported: BTreeSet<EntryId> = report.items.iter().map(|item| item.entry).collect();
        for entry in ticket.undo.entries {
            if !reported.contains(&entry.id) {
                let error = PortError::timed_out("undo", entry.object.to_text(), "its turn did not come");
                report.items.push(UndoItem::of(&entry, Err(error)));
                continue;
            }
            self.forget(&entry, &report);
        }
        report
    }
}

impl CgroupActor {
    /// Drops what the actor knows of an object that is gone.
    fn forget(&mut self, entry: &Entry, report: &UndoReport) {
        if report.items.iter().any(|item| item.entry == entry.id && item.result.is_err()) {
            return;
        }
        match &entry.object {
            HostObject::ResourceShare { container } => self.table.remove(container),
            HostObject::Cgroup { paths } => {
                let is_ours = |group: &crate::host::Group| group.directories.iter().any(|path| paths.contains(path));
                if matches!(&self.groups, Groups::Up(up)
                    if is_ours(&up.sandbox) || up.overhead.as_ref().is_some_and(is_ours))
                {
                    self.groups = Groups::None;
                    self.vm = None;
                    self.written = Some(Cpuset::default());
                }
            }
            _ => {}
        }
    }
}

/// One undo on its way.
struct Undoing {
    clients: Clients,
    up: Option<Rc<Up>>,
    vm: Option<PlacedVm>,
    table: CpusetTable,
    written: Written,
    report: Rc<RefCell<UndoReport>>,
}

impl Undoing {
    async fn run(mut self, entries: Vec<Arc<Entry>>, deadline: Instant) {
        let count = entries.len();
        for (n, entry) in entries.into_iter().enumerate() {
            // Each gets its share of the time that is left: one that hangs does not starve the rest.
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            let share = now + left / u32::try_from(count - n).unwrap_or(u32::MAX);
            let clients = self.clients.clone();
            let result = clients.journal.unmake(&entry, self.effect(&entry, share)).await;
            let item = UndoItem::of(&entry, result);
            self.report.borrow_mut().items.push(item);
        }
    }

    async fn effect(&mut self, entry: &Entry, deadline: Instant) -> PortResult<()> {
        match &entry.object {
            HostObject::Cgroup { paths } => {
                let inodes = match &entry.identity {
                    Some(Identity::Inodes { inodes }) => Some(inodes.clone()),
                    _ => None,
                };
                let remove = RemoveGroup { directories: paths.clone(), inodes };
                self.clients.host.remove_group(remove, deadline).await
            }
            HostObject::ResourceShare { container } => self.give_back(container, deadline).await,
            other => {
                let cause = "the cgroup actor makes no such object";
                Err(PortError::new(ErrorKind::Invalid, "undo", other.to_string(), cause))
            }
        }
    }

    /// Takes a container's share out of the cpuset in force. One whose update failed is in no table,
    /// but may be in force.
    async fn give_back(&mut self, container: &ContainerId, deadline: Instant) -> PortResult<()> {
        let Some(up) = self.up.clone() else { return Ok(()) };
        let mut after = self.table.clone();
        after.remove(container);
        // Doubtful until it has been written, also when this is dropped half way.
        let (before, written) = (self.table.clone(), self.written.take());
        let change = Change { up, vm: self.vm.clone(), before, after, written };
        match self.clients.apply(&change, deadline).await {
            // The group went first.
            Err(error) if !error.is_absent() => Err(error),
            _ => {
                self.written.replace(Some(change.after.cpuset()));
                self.table = change.after;
                Ok(())
            }
        }
    }
}
