//! Which devices the VM has, where they sit and who holds them.
//!
//! A message does not change the table while it is performed. It keeps a [`Draft`]: a frozen view
//! and the changes so far, in the order in which they happened. When the message settles, however it
//! ended, the table applies them; what was under way when it was cut off becomes doubtful.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, PciPath, PciSlot};
use sandbox_model::ledger::Scope;
use sandbox_model::{ContainerId, DeviceId};

use crate::host::DiskIdentity;
use crate::slots::SlotPool;

/// Where a device stands. A device that is gone is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Id and slot are taken; the VMM may be plugging it.
    Reserved,
    /// The VM has it.
    Present,
    /// The guest is asked to let go of it.
    Removing,
    /// Only a query of the VMM can tell. Id and slot stay taken until an undo has settled it.
    Doubtful,
}

/// What makes two wishes the same device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKey {
    /// A disk: the file itself, whatever its path.
    Disk(DiskIdentity),
    /// A PCI function of the host.
    Function(String),
    /// The guest's vsock: there is one.
    Vsock,
}

/// How a disk is used. One disk is plugged in one way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Whether the guest writes.
    pub access: Access,
    /// Format.
    pub format: DiskFormat,
    /// Whether the page cache is bypassed.
    pub direct: bool,
}

impl DiskUse {
    /// The use that a wish describes.
    pub fn of(block: &BlockDevice) -> Self {
        Self { access: block.access, format: block.format, direct: block.direct }
    }
}

impl std::fmt::Display for DiskUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        })?;
        f.write_str(if self.direct { " with O_DIRECT" } else { " through the page cache" })
    }
}

/// A device of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The VMM's name of it.
    pub id: DeviceId,
    /// Where it sits.
    pub slot: PciSlot,
    /// What makes it one of a kind, if anything does.
    pub key: Option<DeviceKey>,
    /// How it is used, if it is a disk.
    pub disk_use: Option<DiskUse>,
    /// Its IOMMU group, if it is a function of the host.
    pub group: Option<u32>,
    /// Where it stands.
    pub phase: Phase,
    /// Where the guest finds it.
    pub pci_path: Option<PciPath>,
    /// Who holds it.
    pub holders: BTreeSet<Holder>,
}

impl Device {
    /// One that has its id and its slot, and of which no more is known yet.
    pub(crate) fn reserved(id: DeviceId, slot: PciSlot, key: Option<DeviceKey>) -> Self {
        Self {
            id,
            slot,
            key,
            disk_use: None,
            group: None,
            phase: Phase::Reserved,
            pci_path: None,
            holders: BTreeSet::new(),
        }
    }
}

/// One step of a device's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Takes id and slot.
    Reserved(Box<Device>),
    /// The VMM has plugged it.
    Plugged(DeviceId, Option<PciPath>),
    /// The VMM has refused it: nothing has changed.
    Refused(DeviceId),
    /// Nobody knows.
    Doubted(DeviceId),
    /// Somebody holds it.
    Held(DeviceId, Scope),
    /// Somebody has let go of it.
    LetGo(DeviceId, Scope),
    /// The guest is asked to let go of it.
    Removing(DeviceId),
    /// It is gone.
    Gone(DeviceId),
}

impl Change {
    fn device(&self) -> &DeviceId {
        match self {
            Self::Reserved(device) => &device.id,
            Self::Plugged(id, _)
            | Self::Refused(id)
            | Self::Doubted(id)
            | Self::Held(id, _)
            | Self::LetGo(id, _)
            | Self::Removing(id)
            | Self::Gone(id) => id,
        }
    }
}

/// Who holds a device: a container, or (`None`) the sandbox itself.
pub type Holder = Option<ContainerId>;

fn holder(scope: &Scope) -> Holder {
    match scope {
        Scope::Sandbox => None,
        Scope::Container(container) => Some(container.clone()),
    }
}

/// The devices of one VM. Every look-up is by key, none walks the devices.
#[derive(Debug, Clone)]
pub struct DeviceTable {
    /// Boxed: a node has room for eleven, and most VMs have few.
    devices: BTreeMap<DeviceId, Box<Device>>,
    keys: BTreeMap<DeviceKey, DeviceId>,
    slots: SlotPool,
    /// Next number of each prefix. Only grows: an id is never used twice.
    next: BTreeMap<&'static str, u64>,
    doubtful: usize,
}

/// The prefixes of ids, which the VMM and its events show to people.
const PREFIXES: [&str; 5] = ["blk", "net", "fs", "vsock", "vfio"];

const fn prefix(config: &DeviceConfig) -> &'static str {
    match config {
        DeviceConfig::Block(_) => "blk",
        DeviceConfig::Network(_) => "net",
        DeviceConfig::ShareFs(_) => "fs",
        DeviceConfig::Vsock(_) => "vsock",
        DeviceConfig::Vfio(_) => "vfio",
    }
}

fn split_id(id: &DeviceId) -> Option<(&'static str, u64)> {
    let (text, number) = id.as_str().rsplit_once('-')?;
    let prefix = PREFIXES.into_iter().find(|prefix| *prefix == text)?;
    Some((prefix, number.parse().ok()?))
}

impl DeviceTable {
    /// No devices. The ids in `used` belong to an earlier life of the sandbox and are not used again.
    pub fn new<'a>(bridges: u8, used: impl IntoIterator<Item = &'a DeviceId>) -> Self {
        let mut table = Self {
            devices: BTreeMap::new(),
            keys: BTreeMap::new(),
            slots: SlotPool::new(bridges),
            next: BTreeMap::new(),
            doubtful: 0,
        };
        used.into_iter().for_each(|id| table.retire(id));
        table
    }

    /// One device.
    pub fn get(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).map(AsRef::as_ref)
    }

    /// The device with a key.
    pub fn by_key(&self, key: &DeviceKey) -> Option<&Device> {
        self.get(self.keys.get(key)?)
    }

    /// All devices.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().map(AsRef::as_ref)
    }

    /// The slots.
    pub fn slots(&self) -> &SlotPool {
        &self.slots
    }

    /// Devices of which only a query can tell.
    pub fn doubtful(&self) -> usize {
        self.doubtful
    }

    /// Applies what a message has done, in order. What was under way when it ended is doubtful.
    pub fn fold(&mut self, changes: Vec<Change>) {
        let touched: BTreeSet<DeviceId> = changes.iter().map(|change| change.device().clone()).collect();
        for change in changes {
            self.apply(change);
        }
        for id in touched {
            let phase = self.devices.get(&id).map(|device| device.phase);
            if matches!(phase, Some(Phase::Reserved | Phase::Removing)) {
                self.set_phase(&id, Phase::Doubtful);
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Reserved(device) => self.insert(device),
            Change::Plugged(id, path) => {
                self.set_phase(&id, Phase::Present);
                if let Some(device) = self.devices.get_mut(&id) {
                    device.pci_path = path;
                }
            }
            Change::Refused(id) | Change::Gone(id) => self.remove(&id),
            Change::Doubted(id) => self.set_phase(&id, Phase::Doubtful),
            Change::Removing(id) => self.set_phase(&id, Phase::Removing),
            Change::Held(id, scope) => {
                if let Some(device) = self.devices.get_mut(&id) {
                    device.holders.insert(holder(&scope));
                }
            }
            Change::LetGo(id, scope) => {
                if let Some(device) = self.devices.get_mut(&id) {
                    device.holders.remove(&holder(&scope));
                }
            }
        }
    }

    fn insert(&mut self, device: Box<Device>) {
        assert!(self.slots.take(device.slot), "slot {:?} of {} is taken", device.slot, device.id);
        self.retire(&device.id);
        if let Some(key) = &device.key {
            self.keys.insert(key.clone(), device.id.clone());
        }
        self.devices.insert(device.id.clone(), device);
    }

    fn remove(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.remove(id) else {
            return;
        };
        assert!(self.slots.give_back(device.slot), "slot {:?} of {id} is free", device.slot);
        if let Some(key) = &device.key {
            self.keys.remove(key);
        }
        self.doubtful -= usize::from(device.phase == Phase::Doubtful);
    }

    fn set_phase(&mut self, id: &DeviceId, phase: Phase) {
        if let Some(device) = self.devices.get_mut(id) {
            self.doubtful -= usize::from(device.phase == Phase::Doubtful);
            self.doubtful += usize::from(phase == Phase::Doubtful);
            device.phase = phase;
        }
    }

    fn retire(&mut self, id: &DeviceId) {
        if let Some((prefix, number)) = split_id(id) {
            let next = self.next.entry(prefix).or_default();
            *next = (*next).max(number + 1);
        }
    }
}

/// What one message has done so far.
#[derive(Debug)]
pub struct Draft {
    view: Rc<DeviceTable>,
    slots: SlotPool,
    changes: Vec<Change>,
}

impl Draft {
    /// Nothing done yet.
    pub fn new(view: Rc<DeviceTable>) -> Self {
        let slots = view.slots;
        Self { view, slots, changes: Vec::new() }
    }

    /// What was done, and no view any more.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// The table as it was when the message began.
    pub fn view(&self) -> &DeviceTable {
        &self.view
    }

    /// Notes a change.
    pub fn note(&mut self, change: Change) {
        if let Change::Refused(id) = &change
            && let Some(slot) = self.reserved(id).map(|device| device.slot)
        {
            self.slots.give_back(slot);
        }
        self.changes.push(change);
    }

    /// Takes an id and the lowest free slot; `None` if there is no free slot.
    pub fn reserve(&mut self, config: &DeviceConfig, key: Option<DeviceKey>) -> Option<(DeviceId, PciSlot)> {
        let slot = self.slots.lowest_free()?;
        let id = self.next_id(prefix(config))?;
        self.slots.take(slot);
        let (disk_use, group) = match config {
            DeviceConfig::Block(block) => (Some(DiskUse::of(block)), None),
            DeviceConfig::Vfio(function) => (None, Some(function.group)),
            _ => (None, None),
        };
        let device = Device { disk_use, group, ..Device::reserved(id.clone(), slot, key) };
        self.changes.push(Change::Reserved(Box::new(device)));
        Some((id, slot))
    }

    fn next_id(&self, prefix: &'static str) -> Option<DeviceId> {
        let known = self.view.next.get(prefix).copied().unwrap_or(0);
        let mine = self.changes.iter().filter_map(|change| match change {
            Change::Reserved(device) => split_id(&device.id).filter(|(p, _)| *p == prefix).map(|(_, n)| n + 1),
            _ => None,
        });
        let number = mine.max().unwrap_or(0).max(known);
        DeviceId::new(format!("{prefix}-{number}")).ok()
    }

    fn reserved(&self, id: &DeviceId) -> Option<&Device> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Reserved(device) if device.id == *id => Some(&**device),
            _ => None,
        })
    }

    /// Whether `scope` holds a device, after what this message has done.
    pub fn is_held(&self, id: &DeviceId, scope: &Scope) -> bool {
        let mine = self.changes.iter().rev().find_map(|change| match change {
            Change::Held(held, by) if held == id && by == scope => Some(true),
            Change::LetGo(held, by) if held == id && by == scope => Some(false),
            _ => None,
        });
        mine.unwrap_or_else(|| self.view.get(id).is_some_and(|device| device.holders.contains(&holder(scope))))
    }

    /// The device with a key, as it stands after what this message has done.
    pub fn find(&self, key: &DeviceKey) -> Option<Device> {
        let mine = self.changes.iter().rev().find_map(|change| match change {
            Change::Reserved(device) if device.key.as_ref() == Some(key) => Some(&**device),
            _ => None,
        });
        let mut device = mine.or_else(|| self.view.by_key(key))?.clone();
        for change in self.changes.iter().filter(|change| *change.device() == device.id) {
            match change {
                Change::Plugged(_, path) => {
                    device.phase = Phase::Present;
                    device.pci_path.clone_from(path);
                }
                Change::Refused(_) | Change::Gone(_) => return None,
                Change::Doubted(_) => device.phase = Phase::Doubtful,
                Change::Removing(_) => device.phase = Phase::Removing,
                Change::Held(_, scope) => {
                    device.holders.insert(holder(scope));
                }
                Change::LetGo(_, scope) => {
                    device.holders.remove(&holder(scope));
                }
                Change::Reserved(_) => {}
            }
        }
        Some(device)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
