//! vCPUs and memory: added, never taken away.
//!
//! QEMU 7.2 and 10.0 corrupt their heap when a vCPU is unplugged under TCG, and a guest does not
//! give back memory that is online. What was added stays, and what is reported is what QEMU has.

use std::time::Duration;

use sandbox_model::{Instant, PortResult};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout_at;

use super::qmp::{Command, Event};
use super::vm::{Vm, items};
use crate::{ResizeMemory, ResizeVcpus, ResizedMemory, ResizedVcpus};

const MIB: u64 = 1 << 20;
/// Size of a guest's memory block if nobody says otherwise, in MiB (x86-64 below 64 GiB).
const BLOCK_MIB: u64 = 128;
/// What the names of DIMMs begin with.
const DIMM: &str = "dimm-";
/// How long a running guest may take to notice new memory (80 ms when measured). An agent that is
/// told to bring memory online before the guest has seen it does nothing.
const NOTICE: Duration = Duration::from_secs(2);

/// Adds the vCPUs that are missing to `target` or to the VM's maximum.
///
/// # Errors
/// Not one could be added. If some could, the answer is their true number.
pub(super) async fn vcpus(vm: &Vm, request: &ResizeVcpus, deadline: Instant) -> PortResult<ResizedVcpus> {
    let wanted = request.target as usize;
    let slots = vm.execute(Command::new("query-hotpluggable-cpus", Value::Null), deadline).await?;
    let (present, free): (Vec<&Value>, Vec<&Value>) = items(&slots).partition(|slot| slot.get("qom-path").is_some());
    let mut free: Vec<(u64, &Value)> =
        free.into_iter().filter_map(|slot| Some((slot["props"]["socket-id"].as_u64()?, slot))).collect();
    free.sort_unstable_by_key(|(socket, _)| *socket);
    let missing = wanted.saturating_sub(present.len());
    for (added, (socket, slot)) in free.into_iter().take(missing).enumerate() {
        let id = format!("cpu-{socket}");
        let mut arguments = slot["props"].clone();
        arguments["driver"] = slot["type"].clone();
        arguments["id"] = id.as_str().into();
        if let Err(error) = vm.execute_on(&id, Command::new("device_add", arguments), deadline).await {
            if added == 0 {
                return Err(error);
            }
            tracing::warn!(%error, wanted, "fewer vCPUs than asked for");
            break;
        }
    }
    let vcpu_threads = vm.vcpu_threads(deadline).await?;
    let vcpus = u32::try_from(vcpu_threads.len()).unwrap_or(u32::MAX);
    Ok(ResizedVcpus { vcpus, vcpu_threads })
}

/// Adds a DIMM of what is missing, in whole blocks, as far as the VM's maximum allows. A running
/// guest has seen it when this returns.
pub(super) async fn memory(vm: &Vm, request: &ResizeMemory, deadline: Instant) -> PortResult<ResizedMemory> {
    let now = memory_mib(vm, deadline).await?;
    let add = to_add(now, request, vm.limits.memory_max_mib);
    if add > 0 {
        plug_dimm(vm, add, deadline).await?;
    }
    Ok(ResizedMemory { memory_mib: memory_mib(vm, deadline).await? })
}

/// MiB to add: enough for the target, in whole blocks, within the maximum.
fn to_add(now: u64, request: &ResizeMemory, max: u64) -> u64 {
    let block = if request.block_mib == 0 { BLOCK_MIB } else { request.block_mib };
    let wanted = request.target_mib.saturating_sub(now).div_ceil(block);
    let possible = max.saturating_sub(now) / block;
    wanted.min(possible) * block
}

pub(super) async fn memory_mib(vm: &Vm, deadline: Instant) -> PortResult<u64> {
    let summary = vm.execute(Command::new("query-memory-size-summary", Value::Null), deadline).await?;
    let bytes = |field: &str| summary[field].as_u64().unwrap_or(0);
    Ok(bytes("base-memory").saturating_add(bytes("plugged-memory")) / MIB)
}

async fn plug_dimm(vm: &Vm, mib: u64, deadline: Instant) -> PortResult<()> {
    take_orphans(vm, deadline).await?;
    let dimm = free_name(&vm.device_names(deadline).await?);
    let backend = backend_of(&dimm);
    let (kind, share) =
        if vm.limits.shared_memory { ("memory-backend-memfd", true) } else { ("memory-backend-ram", false) };
    let arguments = json!({ "qom-type": kind, "id": backend, "size": mib * MIB, "share": share });
    vm.execute_on(&dimm, Command::new("object-add", arguments), deadline).await?;
    let events = vm.qmp.listen();
    let arguments = json!({ "driver": "pc-dimm", "id": dimm, "memdev": backend });
    if let Err(error) = vm.execute_on(&dimm, Command::new("device_add", arguments), deadline).await {
        if error.outcome == sandbox_model::Outcome::NotDone {
            let removal = Command::new("object-del", json!({ "id": backend }));
            if let Err(left) = vm.execute_on(&dimm, removal, Instant::now() + NOTICE).await {
                tracing::warn!(error = %left, "a DIMM's memory stays in QEMU");
            }
        }
        return Err(error);
    }
    if let Some(events) = events
        && vm.runs(deadline).await?
    {
        noticed(events, &dimm, deadline.min(Instant::now() + NOTICE)).await;
    }
    Ok(())
}

/// Name of a DIMM's memory.
fn backend_of(dimm: &str) -> String {
    format!("mem-{dimm}")
}

/// Takes away the memory of a DIMM that was never plugged: its plugging was cut short by a deadline
/// or by the end of an earlier process of ours.
async fn take_orphans(vm: &Vm, deadline: Instant) -> PortResult<()> {
    let dimms = vm.device_names(deadline).await?;
    for object in vm.parts("/objects", deadline).await? {
        let is_dimm_s = object.name.starts_with(&backend_of(DIMM));
        if is_dimm_s && !dimms.iter().any(|dimm| backend_of(dimm) == object.name) {
            let removal = Command::new("object-del", json!({ "id": object.name }));
            vm.execute_on(&object.name, removal, deadline).await?;
        }
    }
    Ok(())
}

/// The lowest `dimm-N` that is free.
fn free_name(taken: &[String]) -> String {
    let mut number = 0;
    while taken.iter().any(|name| *name == format!("{DIMM}{number}")) {
        number += 1;
    }
    format!("{DIMM}{number}")
}

/// Waits for the guest's word (`_OST`) on the DIMM. A guest that never says it has the DIMM all the
/// same: that is a matter for the agent's own deadline.
async fn noticed(mut events: Receiver<Event>, dimm: &str, deadline: Instant) {
    loop {
        match timeout_at(deadline, events.recv()).await {
            Ok(Ok(event)) if event.name == "ACPI_DEVICE_OST" && event.data["info"]["device"] == dimm => return,
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
            Ok(Err(RecvError::Closed)) => return,
            Err(_) => {
                tracing::debug!(dimm, "the guest said nothing on a new DIMM");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_in_whole_blocks_within_the_maximum() {
        for (now, target, block, max, add) in [
            (512, 512, 128, 2048, 0),
            (512, 256, 128, 2048, 0),
            (512, 513, 128, 2048, 128),
            (512, 641, 128, 2048, 256),
            (512, 768, 0, 2048, 256),
            (512, 4096, 128, 2048, 1536),
            (512, 4096, 128, 600, 0),
            (512, 600, 2048, 4096, 2048),
        ] {
            let request = ResizeMemory { target_mib: target, block_mib: block };
            assert_eq!(to_add(now, &request, max), add, "{now} to {target}");
        }
    }
}
