//! I1 to I6: names and places of devices.

use serde_json::Value;

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I1", says: "a device id is given once", look: ids_are_unique },
    Check { id: "I2", says: "slots are taken from the lowest", look: slots_are_dense },
    Check { id: "I3", says: "a slot is given again only when its device is gone", look: slots_are_free },
    Check { id: "I4", says: "slots are in range and the VMM puts devices where they belong", look: places_are_legal },
    Check { id: "I6", says: "taps have names that fit, one each", look: taps_are_named },
];

/// Slots of one bridge (behaviour A8: 1 to 30).
const SLOTS: u64 = 30;

fn slot(request: &Value) -> Option<(u64, u64)> {
    let slot = request.get("slot")?;
    Some((slot.get("bridge")?.as_u64()?, slot.get("slot")?.as_u64()?))
}

fn id(request: &Value) -> String {
    request.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// I1: a device's id is unique in its sandbox, also after the device is gone.
fn ids_are_unique(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.is("hypervisor", "add_device")) else { return Ok(()) };
    let id = id(call.request);
    if memory.device_ids.insert(id.clone()) { Ok(()) } else { Err(format!("{id} is given a second time")) }
}

/// I2: the lowest free slot is taken, so no slot lies beyond the number of devices that there are.
fn slots_are_dense(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.is("hypervisor", "add_device")) else { return Ok(()) };
    if matches!(call.result, sandbox_model::trace::Ended::Err(error) if error.kind == sandbox_model::ErrorKind::PeerGone)
    {
        // The devices went with the VM, and who asks has not heard of it.
        return Ok(());
    }
    let (bridge, number) = slot(call.request).ok_or("a request without a slot")?;
    let taken = memory.slots.len() as u64;
    let index = bridge * SLOTS + number.saturating_sub(1);
    if index > taken {
        return Err(format!("slot {bridge}/{number} is taken while {taken} devices have one"));
    }
    Ok(())
}

/// I3: an id and a slot are freed once, and only after the VMM has let the device go.
fn slots_are_free(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.port == "hypervisor") else { return Ok(()) };
    match call.method {
        "add_device" => {
            let (id, slot) = (id(call.request), slot(call.request).ok_or("a request without a slot")?);
            if let Some((other, _)) = memory.slots.iter().find(|(_, taken)| **taken == slot)
                && !scene.vmm_lied
            {
                return Err(format!("{id} is put into the slot of {other}, which is not known to be gone"));
            }
            if !call.is_refused() {
                memory.slots.insert(id, slot);
            }
        }
        "remove_device" => {
            let is_absent = matches!(call.result, sandbox_model::trace::Ended::Err(error) if error.is_absent());
            if call.reply().is_some() || is_absent {
                memory.slots.remove(&id(call.request));
            }
        }
        "query_devices" => {
            if let Some(present) = call.reply().and_then(Value::as_array) {
                let text = |device: &Value| device.get("id").unwrap_or(device).as_str().map(str::to_owned);
                let present: Vec<String> = present.iter().filter_map(text).collect();
                memory.slots.retain(|id, _| present.contains(id));
            }
        }
        "stop_vm" | "kill_vm" | "wait_exit" if call.reply().is_some() => memory.slots.clear(),
        _ => {}
    }
    Ok(())
}

/// I4: bridge and slot are legal, slot 0 is the bridge's own, and what the VMM reports is where it was
/// told to put the device.
fn places_are_legal(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.is("hypervisor", "add_device")) else { return Ok(()) };
    let (bridge, number) = slot(call.request).ok_or("a request without a slot")?;
    if bridge >= 5 || !(1..=SLOTS).contains(&number) {
        return Err(format!("slot {bridge}/{number} is out of range"));
    }
    let path = call.reply().and_then(|reply| reply.get("pci_path")?.as_str().map(str::to_owned));
    let wanted = format!("{:02x}/{number:02x}", bridge + u64::from(hypervisor::FIRST_BRIDGE_SLOT));
    match path {
        Some(path) if path != wanted && !scene.vmm_lied => Err(format!("it is at {path}, not at {wanted}")),
        _ => Ok(()),
    }
}

/// I6: a tap's name has at most 15 bytes (IFNAMSIZ) and is its namespace's only one.
fn taps_are_named(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.is("network-host", "create_tap")) else { return Ok(()) };
    let name = call.request.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() || name.len() > 15 { Err(format!("{name:?} is no interface name")) } else { Ok(()) }
}
