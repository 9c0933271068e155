//! The table as the ledger and the VMM have it, after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hypervisor::PresentDevice;
use sandbox_model::DeviceId;
use sandbox_model::adopt::AdoptError;
use sandbox_model::device::{DeviceRole, PciPath, PciSlot};
use sandbox_model::ledger::{Entry, HostObject, Scope};

use crate::slots::SlotPool;
use crate::table::{Change, Device, DeviceKey, DeviceTable, DiskUse};

/// What became of the ledger's devices.
#[derive(Debug)]
pub struct Rebuilt {
    /// The table: devices that were made are present, those of which only the intent is known are
    /// doubtful, as after a message that was cut off.
    pub table: DeviceTable,
    /// What nobody holds.
    pub orphans: Vec<Arc<Entry>>,
    /// Devices that the VMM has where the ledger says.
    pub confirmed: usize,
}

/// Rebuilds the table from the device actor's live `entries` and from what the VMM has.
///
/// # Errors
/// [`AdoptError`]: two devices on one place, a hold on nothing, a device that the VMM does not have
/// where it was put, or one that nobody put there.
pub fn rebuild(
    bridges: u8,
    first_bridge_slot: u8,
    entries: &[Arc<Entry>],
    present: &[PresentDevice],
) -> Result<Rebuilt, AdoptError> {
    let present: BTreeMap<&DeviceId, Option<&PciPath>> =
        present.iter().map(|device| (&device.id, device.pci_path.as_ref())).collect();
    let holders = holders(entries)?;
    let (mut slots, mut keys) = (SlotPool::new(bridges), BTreeSet::new());
    let (mut changes, mut orphans, mut known, mut lost) = (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
    for entry in entries {
        let HostObject::VmDevice { device: id, slot, role, .. } = &entry.object else {
            if matches!(&entry.object, HostObject::VfioBinding { bdf, .. } if !holders.contains_key(bdf.as_str())) {
                orphans.push(entry.clone());
            }
            continue;
        };
        if !known.insert(id) {
            return Err(AdoptError::contradiction(entry, "is there twice"));
        }
        if !slots.take(*slot) {
            return Err(AdoptError::contradiction(entry, "sits in a slot that another has, or that there is not"));
        }
        let device = device(id, *slot, role);
        if device.key.as_ref().is_some_and(|key| !keys.insert(key.clone())) {
            return Err(AdoptError::contradiction(entry, "is a device that another entry is too"));
        }
        let held = holders.get(id.as_str());
        changes.push(Change::Reserved(Box::new(device)));
        let expected = PciPath::behind_bridge(first_bridge_slot + slot.bridge, slot.slot);
        match (entry.identity.is_some(), present.get(id)) {
            // An undo settles it.
            (false, _) => {}
            (true, Some(path)) if path.is_none_or(|path| *path == expected) => {
                changes.push(Change::Plugged(id.clone(), path.cloned()));
            }
            // It was on its way out: its last holder has gone before it.
            (true, None) if held.is_none() => {}
            (true, _) => lost.push(&entry.object),
        }
        match held {
            None => orphans.push(entry.clone()),
            Some(scopes) => changes.extend(scopes.iter().map(|scope| Change::Held(id.clone(), (*scope).clone()))),
        }
    }
    AdoptError::unless_all(lost)?;
    if let Some(stranger) = present.keys().find(|id| !known.contains(**id)) {
        return Err(AdoptError::Contradiction {
            what: format!("the VM has a device {stranger} that nobody put there"),
        });
    }
    let confirmed = changes.iter().filter(|change| matches!(change, Change::Plugged(..))).count();
    let mut table = DeviceTable::new(bridges, []);
    table.fold(changes);
    Ok(Rebuilt { table, orphans, confirmed })
}

/// Who holds what, by the name of what is held.
fn holders(entries: &[Arc<Entry>]) -> Result<BTreeMap<&str, Vec<&Scope>>, AdoptError> {
    let named = entries.iter().filter_map(|entry| match &entry.object {
        HostObject::VmDevice { device, .. } => Some(device.as_str()),
        HostObject::VfioBinding { bdf, .. } => Some(bdf.as_str()),
        _ => None,
    });
    let named: BTreeSet<&str> = named.collect();
    let mut holders: BTreeMap<&str, Vec<&Scope>> = BTreeMap::new();
    for entry in entries {
        match &entry.object {
            // It is about to be given back.
            HostObject::Hold { .. } if entry.identity.is_none() => {}
            HostObject::Hold { object } if named.contains(object.as_str()) => {
                holders.entry(object.as_str()).or_default().push(&entry.scope);
            }
            HostObject::Hold { .. } => return Err(AdoptError::contradiction(entry, "holds what is not there")),
            HostObject::VmDevice { .. }
            | HostObject::VfioBinding { .. }
            | HostObject::Process { .. }
            | HostObject::File { .. } => {}
            _ => return Err(AdoptError::strange(entry)),
        }
    }
    Ok(holders)
}

/// Reserved, until it is known what became of it.
fn device(id: &DeviceId, slot: PciSlot, role: &DeviceRole) -> Device {
    let (key, disk_use, group) = match role {
        DeviceRole::Disk { identity, access, format, direct } => {
            let disk_use = DiskUse { access: *access, format: *format, direct: *direct };
            (Some(DeviceKey::Disk(*identity)), Some(disk_use), None)
        }
        DeviceRole::Function { bdf, group } => (Some(DeviceKey::Function(bdf.clone())), None, Some(*group)),
        DeviceRole::Vsock => (Some(DeviceKey::Vsock), None, None),
        DeviceRole::Plain => (None, None, None),
    };
    Device { disk_use, group, ..Device::reserved(id.clone(), slot, key) }
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
