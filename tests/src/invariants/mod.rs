//! What must hold after every message and every call: each rule once, as a named check.
//!
//! A [`Check`] looks at one [`Scene`]: an event that has just been recorded, the simulated world, the
//! ledger, and what the sandbox has published. It remembers what it must between events in the
//! [`Memory`] of the run.

mod concurrency;
mod devices;
mod host;
mod ledger;
mod order;
mod size;

use std::collections::{BTreeMap, BTreeSet};

use resource_actors::SandboxHandle;
use resource_actors::ledger::LedgerTable;
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::trace::{Ended, Event};
use serde_json::Value;

/// Objects of the world with their identities.
pub type Objects = BTreeMap<(&'static str, String), u64>;

/// One rule.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its number.
    pub id: &'static str,
    /// What it says.
    pub says: &'static str,
    /// Looks whether it holds.
    pub look: fn(&Scene<'_>, &mut Memory) -> Result<(), String>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.id, self.says)
    }
}

/// All rules that are looked at after every event.
pub const CHECKS: [&[Check]; 6] =
    [devices::CHECKS, ledger::CHECKS, order::CHECKS, concurrency::CHECKS, size::CHECKS, host::CHECKS];

/// What there is to see after an event.
#[derive(Debug)]
pub struct Scene<'a> {
    /// What happened.
    pub event: &'a Event,
    /// The sandbox of the run.
    pub sandbox: &'a SandboxId,
    /// What exists.
    pub objects: &'a Objects,
    /// What existed before, and is not ours.
    pub baseline: &'a Objects,
    /// What the ledger on disk adds up to; `None` if there is none.
    pub ledger: Option<&'a LedgerTable>,
    /// Whether world or ledger have changed since the last event.
    pub has_changed: bool,
    /// The sandbox, once there is one.
    pub handle: Option<&'a SandboxHandle>,
    /// Whether a record was refused: then the ledger on disk says less than the one in memory.
    pub disk_lags: bool,
    /// Whether a VMM has lied: then nobody can know what its VM holds.
    pub vmm_lied: bool,
}

/// What checks remember of one run.
#[derive(Debug, Default)]
pub struct Memory {
    /// Ids that were ever given to a device, in this process.
    pub(crate) device_ids: BTreeSet<String>,
    /// Slots that a device of the VM occupies, or may occupy, by device.
    pub(crate) slots: BTreeMap<String, (u64, u64)>,
    /// The state before.
    pub(crate) state: Option<LifecycleState>,
    /// Whether the agent has been reached.
    pub(crate) agent_is_up: bool,
    /// When the VM was asked to end, in microseconds of the trace.
    pub(crate) vm_down_us: Option<u64>,
    /// Whether the VMM is in its cgroup.
    pub(crate) vm_is_placed: bool,
    /// Requests that were taken and not answered, by the record's number.
    pub(crate) unanswered: BTreeMap<u64, (ActorName, String)>,
    /// Requests that were answered.
    pub(crate) answered: BTreeSet<u64>,
    /// Whether vCPUs or memory were added and the guest was not told yet.
    pub(crate) is_untold: bool,
    /// The entry that each actor began to undo last, in the message that it serves.
    pub(crate) undoing: BTreeMap<ActorName, (Option<u64>, u64)>,
    /// Entries whose undo was tried.
    pub(crate) tried: BTreeSet<u64>,
    /// The device of the VM that each PCI function became when it was plugged last.
    pub(crate) functions: BTreeMap<String, String>,
    /// The driver that each function had before it was handed over.
    pub(crate) drivers: BTreeMap<String, Value>,
    /// Whether this process only cleans up after one that died.
    pub(crate) is_recovering: bool,
    /// The memory of the VM at its start, its most, and the guest's block, in MiB.
    pub(crate) memory_mib: Option<(u64, u64)>,
    /// vCPUs at the start and at most.
    pub(crate) vcpus: Option<(u64, u64)>,
}

impl Memory {
    /// Another process of ours begins: it knows nothing of what the one before held in memory.
    pub fn restart(&mut self, is_recovering: bool) {
        let kept = (std::mem::take(&mut self.drivers), self.memory_mib, self.vcpus);
        *self = Self { is_recovering, ..Self::default() };
        (self.drivers, self.memory_mib, self.vcpus) = kept;
    }

    /// Another process of ours goes on with the VM of the one before: what the VM has stays.
    pub fn take_over(&mut self) {
        let before = std::mem::take(self);
        *self = Self {
            device_ids: before.device_ids,
            slots: before.slots,
            functions: before.functions,
            vm_is_placed: before.vm_is_placed,
            drivers: before.drivers,
            memory_mib: before.memory_mib,
            vcpus: before.vcpus,
            ..Self::default()
        };
    }

    /// The sandbox begins a new life in the same process.
    pub fn begin(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        *self = Self { answered, ..Self::default() };
    }
}

/// A call through a port that has ended.
pub(crate) struct Called<'a> {
    pub(crate) actor: ActorName,
    pub(crate) port: &'a str,
    pub(crate) method: &'a str,
    pub(crate) request: &'a Value,
    pub(crate) result: &'a Ended,
}

impl Called<'_> {
    /// Whether it is certain that nothing happened.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.result, Ended::Err(error) if error.outcome == sandbox_model::Outcome::NotDone)
    }

    pub(crate) fn reply(&self) -> Option<&Value> {
        match self.result {
            Ended::Ok(reply) => Some(reply),
            _ => None,
        }
    }

    pub(crate) fn is(&self, port: &str, method: &str) -> bool {
        self.port == port && self.method == method
    }
}

impl Scene<'_> {
    /// The call, if that is what happened.
    pub(crate) fn called(&self) -> Option<Called<'_>> {
        match self.event {
            Event::Called { place, port, method, request, result, .. } => {
                Some(Called { actor: place.actor, port, method, request, result })
            }
            _ => None,
        }
    }

    /// Objects of one kind that are ours, by name.
    pub(crate) fn ours<'a>(&'a self, kind: &'static str) -> impl Iterator<Item = &'a str> {
        let of_kind = self.objects.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind);
        of_kind.filter(|(key, _)| !self.baseline.contains_key(*key)).map(|((_, name), _)| name.as_str())
    }

    /// A device of the VM: that of an id (`net-0`), or the first of a kind (`net`), if the VM has one.
    pub(crate) fn device_of(&self, name: &str) -> Option<&str> {
        let (mine, of_kind) = (format!("{}/{name}", self.sandbox), format!("{}/{name}-", self.sandbox));
        self.ours("vm-device").find(|device| *device == mine || device.starts_with(&of_kind))
    }
}
