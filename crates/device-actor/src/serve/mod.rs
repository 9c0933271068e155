//! How each message is performed.

mod adopt;
mod attach;
mod oci;
mod undo;
mod vfio;
mod vsock;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Call, Completion, Domain};
use hypervisor::Hypervisor;
use sandbox_model::ledger::{EntryId, HostObject, Journal};
use sandbox_model::{Instant, SandboxId};

use crate::host::{DeviceHost, StartedDaemon};
use crate::messages::DeviceError;
use crate::table::{DeviceTable, Draft};

/// How long past its deadline a message may go on, so that the port's own account of the delay
/// arrives instead of a bare "deadline passed".
const GRACE: Duration = Duration::from_millis(250);

/// The actor's state: the table, and the daemon behind the vsock. Everything else is a way to reach the
/// world.
#[derive(Debug)]
pub struct DeviceActor {
    table: Rc<DeviceTable>,
    daemon: Option<Daemon>,
    clients: Clients,
}

/// A vsock daemon, with its entry in the ledger.
type Daemon = (EntryId, StartedDaemon);

/// The ways to reach the world; cheap to clone.
#[derive(Debug, Clone)]
struct Clients {
    journal: Journal,
    vmm: Arc<dyn Hypervisor>,
    host: Arc<dyn DeviceHost>,
    sandbox: SandboxId,
    first_bridge_slot: u8,
    vfio_devices: Rc<BTreeSet<String>>,
}

/// What others see of the devices without asking.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct DevicesInBrief {
    /// Slots that are free.
    pub free_slots: usize,
    /// Slots in all.
    pub slots: usize,
    /// Devices of which only a query can tell.
    pub doubtful: usize,
    /// The vsock daemon, if there is one. Its `handle` can be waited on by whoever wants to hear of its end.
    pub vsock_daemon: Option<StartedDaemon>,
}

impl DeviceActor {
    /// An actor for one VM with `bridges` bridges (1 to 5), the first of which sits in
    /// `first_bridge_slot` of the root bus.
    ///
    /// Ids of devices that the ledger names already are not given again.
    pub fn new(
        journal: Journal,
        vmm: Arc<dyn Hypervisor>,
        host: Arc<dyn DeviceHost>,
        sandbox: SandboxId,
        bridges: u8,
        first_bridge_slot: u8,
    ) -> Self {
        let live = journal.ledger().live();
        let named = live.iter().filter_map(|entry| match &entry.object {
            HostObject::VmDevice { device, .. } => Some(device),
            _ => None,
        });
        let table = Rc::new(DeviceTable::new(bridges, named));
        let vfio_devices = Rc::default();
        Self { table, daemon: None, clients: Clients { journal, vmm, host, sandbox, first_bridge_slot, vfio_devices } }
    }

    /// The PCI functions, `DDDD:BB:DD.F`, that this VM may be given: none, unless they are named here.
    #[must_use]
    pub fn allow_vfio(mut self, functions: impl IntoIterator<Item = String>) -> Self {
        let functions = functions.into_iter().map(|function| function.to_ascii_lowercase());
        self.clients.vfio_devices = Rc::new(functions.collect());
        self
    }

    fn draft(&self) -> SharedDraft {
        Rc::new(RefCell::new(Draft::new(self.table.clone())))
    }

    fn bench(&self, draft: &SharedDraft, call: &Call) -> Bench {
        Bench { clients: self.clients.clone(), draft: draft.clone(), deadline: call.deadline }
    }

    /// Takes over what a message did. Its performing has ended, so nobody else looks at the table
    /// and it is changed in place.
    fn take_over(&mut self, draft: &SharedDraft) {
        let empty = Draft::new(Rc::new(DeviceTable::new(0, [])));
        let changes = draft.replace(empty).into_changes();
        Rc::make_mut(&mut self.table).fold(changes);
    }
}

impl Domain for DeviceActor {
    type Snapshot = DevicesInBrief;

    fn publish(&mut self, snapshot: &mut DevicesInBrief) {
        let slots = self.table.slots();
        *snapshot = DevicesInBrief {
            free_slots: slots.free(),
            slots: slots.total(),
            doubtful: self.table.doubtful(),
            vsock_daemon: self.daemon.as_ref().map(|(_, daemon)| daemon.clone()),
        };
    }

    fn grace(&self) -> Duration {
        GRACE
    }
}

/// Written while a message is performed, read when it settles.
type SharedDraft = Rc<RefCell<Draft>>;

/// What one message works with while it is performed.
#[derive(Debug, Clone)]
struct Bench {
    clients: Clients,
    draft: SharedDraft,
    deadline: Instant,
}

/// By what a process of this entry is found after a crash.
fn tag(sandbox: &SandboxId, entry: EntryId) -> String {
    format!("{sandbox}/{}", entry.0)
}

/// The reply to a message that attaches something.
fn attached<T>(done: Completion<Result<T, DeviceError>>) -> Result<T, DeviceError> {
    match done {
        Completion::Finished(result) => result,
        Completion::DeadlinePassed => Err(DeviceError::DeadlinePassed),
        Completion::Interrupted => Err(DeviceError::Interrupted),
    }
}
