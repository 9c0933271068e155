//! I27 to I30: vCPUs, memory and the cgroup.

use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::Event;
use serde_json::Value;

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I27", says: "vCPUs are between those at the start and the most", look: vcpus_fit },
    Check { id: "I28", says: "memory is a multiple of the guest's block and between its bounds", look: memory_fits },
    Check { id: "I29", says: "the guest is told of what was added", look: guest_is_told },
    Check { id: "I30", says: "vCPUs run when the VM is in its cgroup", look: placed_before_run },
];

fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name)?.as_u64()
}

/// I27: whatever containers ask for.
fn vcpus_fit(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.port == "hypervisor") else { return Ok(()) };
    if call.method == "start_vm" {
        let spec = call.request.get("spec").ok_or("a VM without a description")?;
        memory.vcpus = number(spec, "vcpus").zip(number(spec, "vcpus_max"));
        memory.memory_mib = number(spec, "memory_mib").zip(number(spec, "memory_max_mib"));
    }
    let (Some((least, most)), "resize_vcpus") = (memory.vcpus, call.method) else { return Ok(()) };
    let target = number(call.request, "target").unwrap_or_default();
    if (least..=most).contains(&target) { Ok(()) } else { Err(format!("{target} is not within {least}..={most}")) }
}

/// I28: what is added to the memory is whole blocks, and there is never more than the most.
fn memory_fits(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.is("hypervisor", "resize_memory")) else { return Ok(()) };
    let Some((least, most)) = memory.memory_mib else { return Ok(()) };
    let block = number(call.request, "block_mib").unwrap_or_default().max(1);
    let has = call.reply().and_then(|reply| number(reply, "memory_mib"));
    match has {
        Some(has) if has < least || has > most => {
            if scene.vmm_lied {
                Ok(())
            } else {
                Err(format!("{has} MiB are not within {least}..={most}"))
            }
        }
        Some(has) if (has - least) % block != 0 => Err(format!("{has} MiB are no whole blocks of {block} more")),
        _ => Ok(()),
    }
}

/// I29: `online_cpu_mem` after each plug, before the container hears of it.
fn guest_is_told(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    match scene.event {
        Event::Received { place, message, .. } if place.actor == ActorName::Cpu && message == "ResizeFor" => {
            memory.is_untold = false;
        }
        Event::Replied { place, message, reply, .. } if place.actor == ActorName::Cpu && message == "ResizeFor" => {
            let succeeded = reply.get("Ok").is_some_and(|answer| answer.get("Ok").is_some());
            if succeeded && memory.is_untold {
                return Err("vCPUs or memory were added and the guest was not told".to_owned());
            }
        }
        _ => {
            let Some(call) = scene.called().filter(|call| call.actor == ActorName::Cpu) else { return Ok(()) };
            match call.method {
                "resize_vcpus" | "resize_memory" => memory.is_untold = true,
                "online_cpu_mem" => memory.is_untold = false,
                _ => {}
            }
        }
    }
    Ok(())
}

/// I30: nothing that the guest does is charged elsewhere.
fn placed_before_run(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called() else { return Ok(()) };
    match (call.port, call.method) {
        ("hypervisor", "start_vm") => memory.vm_is_placed = false,
        ("cgroup-host", "place") if call.reply().is_some() => memory.vm_is_placed = true,
        ("hypervisor", "resume_vm") if !memory.vm_is_placed => {
            return Err("the vCPUs run and the VM was not moved into its cgroup".to_owned());
        }
        _ => {}
    }
    Ok(())
}
