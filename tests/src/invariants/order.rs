//! I15 to I21: the order of a life.

use sandbox_model::ledger::Record;
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::trace::{Ended, Event};

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I15", says: "a sandbox moves only along its lifecycle", look: states_follow },
    Check {
        id: "I16",
        says: "nothing is plugged after the VM's end, nobody calls an agent out of reach",
        look: in_time,
    },
    Check { id: "I19", says: "an actor undoes the newest first", look: newest_first },
    Check { id: "I20", says: "what serves the VM outlives it", look: backends_outlive },
    Check { id: "I21", says: "a clean-up after a crash makes nothing", look: recovery_makes_nothing },
];

/// I15: from where a sandbox stood to where it stands.
fn states_follow(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    use LifecycleState::{Created, Failed, Prepared, Released, Running, Started, Stopped};
    let Some(handle) = scene.handle else { return Ok(()) };
    let now = handle.watch().borrow().state;
    let before = memory.state.replace(now).unwrap_or(now);
    let follows = before == now
        || matches!(
            (before, now),
            (Created, Prepared) | (Prepared, Started) | (Started, Running) | (_, Stopped | Released | Failed)
        );
    let leads_out_of_failed = before == Failed && !matches!(now, Released | Failed);
    let comes_back = before == Released;
    if follows && !leads_out_of_failed && !(comes_back && now != Released) {
        return Ok(());
    }
    Err(format!("from {before} to {now}"))
}

/// I16: no device is plugged after the VM was asked to end, and only `connect` and `disconnect` go to
/// an agent that was not reached.
fn in_time(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called() else { return Ok(()) };
    let Event::Called { place, took_us, .. } = scene.event else { return Ok(()) };
    let (began_us, ended_us) = (place.at_us.saturating_sub(*took_us), place.at_us);
    let was_dropped = *call.result == Ended::Dropped;
    match (call.port, call.method) {
        ("hypervisor", "start_vm") => memory.vm_down_us = None,
        ("hypervisor", "stop_vm" | "kill_vm") => memory.vm_down_us = Some(ended_us),
        // One that was dropped may have begun before.
        ("hypervisor", "add_device" | "resize_vcpus" | "resize_memory" | "resume_vm")
            if memory.vm_down_us.is_some_and(|down| began_us > down || (began_us == down && !was_dropped)) =>
        {
            return Err(format!("{} after the VM's end", call.method));
        }
        ("guest-agent", "connect") => memory.agent_is_up = call.reply().is_some(),
        ("guest-agent", "disconnect") => memory.agent_is_up = false,
        ("guest-agent", method) if !memory.agent_is_up && call.reply().is_some() => {
            return Err(format!("{method} before the agent was reached"));
        }
        _ => {}
    }
    Ok(())
}

/// I19: within one message an actor begins to undo entries from the newest to the oldest, but for what
/// a last hold takes along.
fn newest_first(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Event::Noted { place, record: Record::UndoIntent { entry }, refused: None } = scene.event else {
        return Ok(());
    };
    let before = memory.undoing.insert(place.actor, (place.cause, entry.0));
    let Some((cause, newer)) = before.filter(|(cause, _)| *cause == place.cause && cause.is_some()) else {
        return Ok(());
    };
    let takes_along = matches!(place.actor, ActorName::Device | ActorName::ShareFs);
    if entry.0 > newer && !takes_along {
        return Err(format!("{} undoes #{} after #{newer} (message {cause:?})", place.actor, entry.0));
    }
    Ok(())
}

/// I20: the daemons that serve a VM's device end after the VM or after the device; a tap and a PCI
/// function are taken away only when no VM has them.
fn backends_outlive(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.reply().is_some()) else { return Ok(()) };
    let plugged = call.request.pointer("/config/vfio/bdf").zip(call.request.get("id"));
    if let Some((function, id)) = plugged.and_then(|(function, id)| function.as_str().zip(id.as_str())) {
        memory.functions.insert(function.to_owned(), id.to_owned());
    }
    let user = match (call.port, call.method) {
        ("share-fs-host", "end_daemon") => scene.device_of("fs"),
        ("device-host", "end_daemon") => scene.device_of("vsock"),
        ("network-host", "remove_tap") => scene.device_of("net"),
        ("device-host", "give_back_vfio") => {
            let function = call.request.get("bdf").and_then(|bdf| bdf.as_str()).unwrap_or_default();
            memory.functions.get(function).and_then(|id| scene.device_of(id))
        }
        _ => None,
    };
    match user {
        Some(device) if !scene.vmm_lied => Err(format!("{} while the VM has {device}", call.method)),
        _ => Ok(()),
    }
}

/// Calls that make something.
const SET_UP: [&str; 17] = [
    "add_device",
    "start_vm",
    "resume_vm",
    "create_tap",
    "create_file",
    "create_namespace",
    "redirect",
    "make_directory",
    "make_file",
    "export",
    "attach",
    "start_daemon",
    "make_group",
    "place",
    "start_vsock_daemon",
    "bind_vfio",
    "update_interface",
];

/// I21: a process that releases what another has left probes and undoes, and sets nothing up.
fn recovery_makes_nothing(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|_| memory.is_recovering) else { return Ok(()) };
    if SET_UP.contains(&call.method) { Err(format!("{} during recovery", call.method)) } else { Ok(()) }
}
