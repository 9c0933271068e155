//! `UndoDevices`: taking away what the ledger names.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use hypervisor::RemoveDevice;
use sandbox_model::ledger::{
    Entry, EntryId, HostObject, Identity, ProcessIdentity, Undo, UndoItem, UndoReport, Undone, VmFate,
};
use sandbox_model::{DeviceId, ErrorKind, Instant, PortError, PortResult};
use tokio::time::timeout_at;

use super::{Bench, DeviceActor, SharedDraft, tag};
use crate::host::{EndDaemon, GiveBackVfio, RemoveSocket, SocketFile, VfioName};
use crate::messages::UndoDevices;
use crate::table::{Change, DeviceKey};

/// What `UndoDevices` keeps between its parts.
#[derive(Debug)]
pub struct UndoTicket {
    undo: Undo,
    draft: SharedDraft,
    sheet: Rc<RefCell<Sheet>>,
}

/// Filled while entries are undone, and read when that has ended, or was cut off.
#[derive(Debug, Default)]
struct Sheet {
    report: UndoReport,
    /// The entry that is being undone.
    now: Option<Arc<Entry>>,
}

impl Sheet {
    /// An entry that failed with its holder's end and now succeeds has one line, not two.
    fn put_down(&mut self, entry: &Entry, result: Result<Undone, PortError>) {
        self.report.items.retain(|item| item.entry != entry.id);
        self.report.items.push(UndoItem::of(entry, result));
    }
}

impl Serve<UndoDevices> for DeviceActor {
    type Ticket = UndoTicket;
    type Outcome = ();

    fn plan(&mut self, request: UndoDevices, _: &Call) -> Plan<UndoTicket, UndoReport> {
        Plan::Perform(UndoTicket { undo: request.0, draft: self.draft(), sheet: Rc::default() })
    }

    fn perform(&self, ticket: &mut UndoTicket, call: &Call) -> LocalFuture<()> {
        let (bench, sheet) = (self.bench(&ticket.draft, call), ticket.sheet.clone());
        let undoing = Undoing { bench, vm: ticket.undo.vm, sheet };
        let entries = ticket.undo.entries.clone();
        Box::pin(undoing.run(entries))
    }

    fn settle(&mut self, ticket: UndoTicket, _: Completion<()>) -> UndoReport {
        self.take_over(&ticket.draft);
        let mut sheet = ticket.sheet.take();
        if let Some(entry) = sheet.now.take() {
            let cut_off = PortError::timed_out("undo", entry.object.to_text(), "its time was over");
            sheet.put_down(&entry, Err(cut_off));
        }
        let mut report = sheet.report;
        let reported: BTreeSet<EntryId> = report.items.iter().map(|item| item.entry).collect();
        for entry in ticket.undo.entries.iter().filter(|entry| !reported.contains(&entry.id)) {
            let error = PortError::timed_out("undo", entry.object.to_text(), "its turn did not come");
            report.items.push(UndoItem::of(entry, Err(error)));
        }
        let is_undone = |entry| report.items.iter().any(|item| item.entry == entry && item.result.is_ok());
        self.daemon.take_if(|(entry, _)| is_undone(*entry));
        report
    }
}

/// One undo on its way.
struct Undoing {
    bench: Bench,
    vm: VmFate,
    sheet: Rc<RefCell<Sheet>>,
}

/// The name by which an object is held.
fn held_name(object: &HostObject) -> Option<&str> {
    match object {
        HostObject::VmDevice { device, .. } => Some(device.as_str()),
        HostObject::VfioBinding { bdf, .. } => Some(bdf),
        _ => None,
    }
}

impl Undoing {
    async fn run(self, entries: Vec<Arc<Entry>>) {
        let count = entries.len();
        for (n, entry) in entries.into_iter().enumerate() {
            // Each gets its share of the time that is left: one that hangs does not starve the rest.
            let now = Instant::now();
            let left = self.bench.deadline.saturating_duration_since(now);
            let share = now + left / u32::try_from(count - n).unwrap_or(u32::MAX);
            let next = self.one(&entry, share).await;
            if let Some(unheld) = next {
                self.one(&unheld, share).await;
            }
        }
    }

    /// Undoes one entry; returns the one that nobody holds any more.
    async fn one(&self, entry: &Arc<Entry>, deadline: Instant) -> Option<Arc<Entry>> {
        if self.sheet.borrow().report.items.iter().any(|item| item.entry == entry.id && item.result.is_ok()) {
            return None;
        }
        self.sheet.borrow_mut().now = Some(entry.clone());
        let result = self.bench.clients.journal.unmake(entry, self.effect(entry, deadline)).await;
        let is_undone = result.is_ok();
        let mut sheet = self.sheet.borrow_mut();
        sheet.now = None;
        sheet.put_down(entry, result);
        match &entry.object {
            HostObject::Hold { object } if is_undone => self.unheld(object),
            _ => None,
        }
    }

    /// The live entry of an object, if nobody holds it.
    fn unheld(&self, name: &str) -> Option<Arc<Entry>> {
        let ledger = self.bench.clients.journal.ledger();
        let is_held = ledger.any(&|entry| matches!(&entry.object, HostObject::Hold { object } if object == name));
        if is_held { None } else { ledger.find(&|entry| held_name(&entry.object) == Some(name)) }
    }

    async fn effect(&self, entry: &Entry, deadline: Instant) -> PortResult<()> {
        let host = &self.bench.clients.host;
        match &entry.object {
            HostObject::Hold { object } => {
                if let Ok(id) = DeviceId::new(object) {
                    self.note(Change::LetGo(id, entry.scope.clone()));
                }
                Ok(())
            }
            HostObject::VmDevice { device, .. } => self.remove_device(device, deadline).await,
            HostObject::VfioBinding { bdf, original_driver } => {
                self.no_function_in_use(bdf, deadline).await?;
                let back = GiveBackVfio { bdf: bdf.clone(), original_driver: original_driver.clone() };
                host.give_back_vfio(back, deadline).await
            }
            HostObject::Process { .. } => {
                let tag = tag(&self.bench.clients.sandbox, entry.id);
                host.end_daemon(EndDaemon { process: process(entry), tag }, deadline).await
            }
            HostObject::File { path } => {
                host.remove_socket(
                    RemoveSocket { path: path.clone(), file: SocketFile::of(entry.identity.as_ref()) },
                    deadline,
                )
                .await
            }
            other => {
                let cause = "the device actor makes no such object";
                Err(PortError::new(ErrorKind::Invalid, "undo", other.to_string(), cause))
            }
        }
    }

    fn note(&self, change: Change) {
        self.bench.draft.borrow_mut().note(change);
    }

    async fn remove_device(&self, id: &DeviceId, deadline: Instant) -> PortResult<()> {
        if self.vm == VmFate::Gone {
            self.note(Change::Gone(id.clone()));
            let cause = "gone with its VM";
            return Err(PortError::new(ErrorKind::NotFound, "remove device", id.as_str(), cause));
        }
        self.note(Change::Removing(id.clone()));
        let removed = self.ask_to_remove(id, deadline).await;
        match &removed {
            Err(error) if !error.is_absent() => self.note(Change::Doubted(id.clone())),
            _ => self.note(Change::Gone(id.clone())),
        }
        removed
    }

    async fn ask_to_remove(&self, id: &DeviceId, deadline: Instant) -> PortResult<()> {
        let vmm = &self.bench.clients.vmm;
        // A quarter of the time is kept for the question that settles a doubt.
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = Instant::now() + left * 3 / 4;
        let remove = RemoveDevice { id: id.clone() };
        let asked = timeout_at(patience, vmm.remove_device(remove, patience)).await;
        let error = match asked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.is_absent() => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => PortError::timed_out("remove device", id.as_str(), "the VMM did not answer"),
        };
        // Whatever it said, what counts is whether the VM has it.
        match vmm.query_devices((), deadline).await {
            Ok(devices) if devices.iter().all(|device| device.id != *id) => Ok(()),
            _ => Err(error),
        }
    }

    /// Taking a function away from vfio-pci while the VM uses its group would block in the kernel
    /// until the VM ends.
    async fn no_function_in_use(&self, bdf: &str, deadline: Instant) -> PortResult<()> {
        if self.vm == VmFate::Gone {
            return Ok(());
        }
        let found = self.bench.clients.host.vfio_group(VfioName::Function(bdf.to_owned()), deadline).await;
        let group = match found {
            Ok(group) => group,
            Err(error) if error.is_absent() => return Ok(()),
            Err(error) => return Err(error),
        };
        let draft = self.bench.draft.borrow();
        let user = (group.functions.iter()).find_map(|function| draft.find(&DeviceKey::Function(function.bdf.clone())));
        match user {
            Some(device) => {
                let cause = format!("the VM still has {} of its IOMMU group {}", device.id, group.group);
                Err(PortError::new(ErrorKind::Busy, "give back", bdf, cause))
            }
            None => Ok(()),
        }
    }
}

fn process(entry: &Entry) -> Option<ProcessIdentity> {
    match entry.identity {
        Some(Identity::Process(process)) => Some(process),
        _ => None,
    }
}
