//! Taking over a QEMU that an earlier process of ours started.
//!
//! Whether it is that very process is told by pidfd, start time and tag, and that it is the one that
//! we talk to by the credentials of its socket. Everything else is asked of QEMU, of parts of it that
//! its guest cannot change: not `query-pci`, which follows bus numbers that the guest writes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use helper_process::{HelperProcess, LastWords, identify};
use sandbox_model::device::PciSlot;
use sandbox_model::{DeviceId, ErrorKind, Instant, Outcome, PortError, PortResult};
use serde_json::{Value, json};

use super::backend::{Backend, number_of, release};
use super::command_line::{Executor, MEMORY, bridge_of};
use super::devices::Plugged;
use super::qmp::{Command, Qmp};
use super::resize::memory_mib;
use super::sockets::{Paths, check_peer, connect};
use super::vm::{Limits, Vm, items};
use crate::{AdoptVm, AdoptedVm, StartedVm, VmCondition};

/// What QEMU is called in errors.
const PROGRAM: &str = "QEMU";
/// How long the console's queue may be full.
const CONSOLE_PATIENCE: Duration = Duration::from_millis(500);
/// The highest number in the names of backends that is believed: nobody plugs more devices.
const NUMBER_MAX: u64 = 1 << 32;

/// A VM that was taken over, and the keeper's tables as they must have been.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) vm: Vm,
    pub(super) report: AdoptedVm,
    pub(super) devices: BTreeMap<DeviceId, Plugged>,
    /// The highest number in the names of backends.
    pub(super) count: u64,
}

/// Takes it over. An error changes nothing.
pub(super) async fn adopt(paths: &Paths, request: AdoptVm, deadline: Instant) -> PortResult<Adopted> {
    let adopted = try_adopt(paths, request, deadline).await;
    adopted.map_err(|error| PortError { outcome: Outcome::NotDone, ..error })
}

async fn try_adopt(paths: &Paths, request: AdoptVm, deadline: Instant) -> PortResult<Adopted> {
    // Before its socket, whose absence tells less.
    let held = match request.process {
        Some(process) => Some(HelperProcess::adopt(PROGRAM, process, &request.tag, deadline).await?),
        None => None,
    };
    let stream = connect(&paths.qmp, deadline).await?;
    let process = match held {
        Some(process) => process,
        None => {
            // What a stranger says of itself is checked by its tag.
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
            HelperProcess::adopt(PROGRAM, identify(pid)?, &request.tag, deadline).await?
        }
    };
    check_peer(&paths.qmp, &stream, process.identity().pid)?;
    let (pid, console) = (process.identity().pid, LastWords::none());
    let limits = Limits { bridges: 0, memory_max_mib: 0, shared_memory: false };
    let mut vm = Vm { process, qmp: Qmp::new(stream), console, executor: Executor::Tcg, limits };
    vm.greet(deadline).await.map_err(|error| PortError {
        cause: format!("it does not greet: it hangs, or serves another connection ({})", error.cause),
        ..error
    })?;
    // Not before: one that does not greet would be left with a connection that it does not know.
    vm.console = console_of(paths, pid, deadline).await;
    survey(&mut vm, deadline).await.map(|(report, devices, count)| Adopted { vm, report, devices, count })
}

/// The console from now on. A VM without one is as good.
async fn console_of(paths: &Paths, pid: i32, deadline: Instant) -> LastWords {
    let connected = connect(&paths.console, deadline.min(Instant::now() + CONSOLE_PATIENCE)).await;
    let connected = connected.and_then(|stream| check_peer(&paths.console, &stream, pid).map(|()| stream));
    match connected {
        Ok(stream) => LastWords::of(stream),
        Err(error) => {
            tracing::warn!(%error, "the console of an adopted VM is not heard");
            LastWords::none()
        }
    }
}

type Table = (AdoptedVm, BTreeMap<DeviceId, Plugged>, u64);

async fn survey(vm: &mut Vm, deadline: Instant) -> PortResult<Table> {
    let condition = condition(&vm.execute(Command::new("query-status", Value::Null), deadline).await?);
    let kvm = vm.execute(Command::new("query-kvm", Value::Null), deadline).await?;
    vm.executor = if kvm["enabled"] == true { Executor::Kvm } else { Executor::Tcg };
    let memory_mib = memory_mib(vm, deadline).await?;
    let parts = vm.parts(PERIPHERAL, deadline).await?;
    vm.limits = Limits {
        bridges: parts.iter().filter_map(|part| bridge_of(&part.name)).map(|n| n.saturating_add(1)).max().unwrap_or(0),
        memory_max_mib: memory_max_mib(vm, deadline).await?.unwrap_or(memory_mib),
        shared_memory: vm
            .parts("/objects", deadline)
            .await?
            .iter()
            .any(|part| part.name == MEMORY && part.kind == "memory-backend-memfd"),
    };
    let mut devices = BTreeMap::new();
    for part in &parts {
        if let Ok(id) = DeviceId::new(&part.name)
            && let Some(plugged) = device(vm, part, deadline).await?
        {
            devices.insert(id, plugged);
        }
    }
    let count = take_orphans(vm, &devices, deadline).await?;
    let vcpu_threads = vm.vcpu_threads(deadline).await?;
    let started =
        StartedVm { process: Some(vm.process.identity()), accelerator: vm.executor.name().to_owned(), vcpu_threads };
    let vcpus = u32::try_from(started.vcpu_threads.len()).unwrap_or(u32::MAX);
    Ok((AdoptedVm { vm: started, condition, vcpus, memory_mib }, devices, count))
}

fn condition(status: &Value) -> VmCondition {
    match status["status"].as_str().unwrap_or_default() {
        "running" => VmCondition::Running,
        "prelaunch" => VmCondition::NotYetRun,
        "paused" | "suspended" | "debug" | "save-vm" | "restore-vm" | "postmigrate" => VmCondition::Paused,
        // io-error, internal-error, guest-panicked, shutdown, watchdog, and what is not known.
        _ => VmCondition::Halted,
    }
}

/// Memory after all hotplug; `None` from a QEMU before 7.1, which does not tell.
async fn memory_max_mib(vm: &Vm, deadline: Instant) -> PortResult<Option<u64>> {
    match vm.property("/machine", "memory", deadline).await {
        Ok(memory) => Ok(memory["max-size"].as_u64().map(|bytes| bytes >> 20)),
        Err(error) if matches!(error.kind, ErrorKind::Refused | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where QEMU keeps what has a name.
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// Something in QEMU's object model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    /// `virtio-blk-pci`.
    pub(super) kind: String,
}

impl Vm {
    /// The parts of an object.
    pub(super) async fn parts(&self, path: &str, deadline: Instant) -> PortResult<Vec<Part>> {
        let listed = self.execute(Command::new("qom-list", json!({ "path": path })), deadline).await?;
        let part = |item: &Value| {
            let kind = item["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
            Some(Part { name: item["name"].as_str()?.to_owned(), kind: kind.to_owned() })
        };
        Ok(items(&listed).filter_map(part).collect())
    }

    async fn property(&self, path: &str, property: &str, deadline: Instant) -> PortResult<Value> {
        let arguments = json!({ "path": path, "property": property });
        self.execute_on(path, Command::new("qom-get", arguments), deadline).await
    }
}

/// A device of ours: one that sits behind one of our bridges. Bridges, DIMMs and vCPUs do not.
async fn device(vm: &Vm, part: &Part, deadline: Instant) -> PortResult<Option<Plugged>> {
    if part.kind == "pc-dimm" || part.kind.ends_with("-cpu") || bridge_of(&part.name).is_some() {
        return Ok(None);
    }
    let path = format!("{PERIPHERAL}/{}", part.name);
    let bus = vm.property(&path, "parent_bus", deadline).await?;
    let Some(bridge) = bus.as_str().and_then(|bus| bridge_of(bus.rsplit('/').next()?)) else { return Ok(None) };
    // Device and function, five and three bits.
    let place = vm.property(&path, "addr", deadline).await?.as_u64();
    let Some(slot) = place.and_then(|place| u8::try_from(place).ok()).map(|place| place >> 3) else {
        let cause = format!("{} has no place on its bus", part.name);
        return Err(PortError::new(ErrorKind::Protocol, "qom-get", path, cause));
    };
    let backends = match property_of_backend(&part.kind) {
        Some(property) => backends_of(vm.property(&path, property, deadline).await?.as_str().unwrap_or_default()),
        None => Vec::new(),
    };
    Ok(Some(Plugged { place: PciSlot { bridge, slot }, backends, is_doubtful: false }))
}

/// The property of a device that names what stands behind it.
fn property_of_backend(kind: &str) -> Option<&'static str> {
    match kind {
        "virtio-blk-pci" => Some("drive"),
        "virtio-net-pci" => Some("netdev"),
        "vhost-user-fs-pci" | "vhost-user-vsock-pci" => Some("chardev"),
        _ => None,
    }
}

/// What was made for the device whose backend has this name, in the order in which it was made.
fn backends_of(name: &str) -> Vec<Backend> {
    let owned = name.to_owned();
    match number_of(name) {
        Some(("drive", number)) => vec![Backend::FdSet(number), Backend::Node(owned)],
        Some(("net", _)) => vec![Backend::Netdev(owned)],
        Some(("char", _)) => vec![Backend::Chardev(owned)],
        _ => Vec::new(),
    }
}

/// Takes away what an earlier process made for a device that it did not come to plug, or to release
/// after it. Returns the highest number that was in use: no name is used again.
async fn take_orphans(vm: &Vm, devices: &BTreeMap<DeviceId, Plugged>, deadline: Instant) -> PortResult<u64> {
    let mut made = Vec::new();
    let sets = vm.execute(Command::new("query-fdsets", Value::Null), deadline).await?;
    made.extend(items(&sets).filter_map(|set| set["fdset-id"].as_u64()).map(Backend::FdSet));
    for (query, field) in [("query-named-block-nodes", "node-name"), ("query-chardev", "label")] {
        let arguments = if field == "label" { Value::Null } else { json!({ "flat": true }) };
        let listed = vm.execute(Command::new(query, arguments), deadline).await?;
        let last = |name: &str| backends_of(name).pop();
        made.extend(items(&listed).filter_map(|item| item[field].as_str().and_then(last)));
    }
    let used: BTreeSet<&Backend> = devices.values().flat_map(|device| &device.backends).collect();
    let count = made.iter().chain(used.iter().copied()).filter_map(Backend::number).max().unwrap_or(0);
    if count > NUMBER_MAX {
        let cause = format!("a backend has the number {count}");
        return Err(PortError::new(ErrorKind::Protocol, "adopt", PROGRAM, cause));
    }
    let orphans: Vec<Backend> = made.iter().filter(|backend| !used.contains(backend)).cloned().collect();
    release(vm, PROGRAM, orphans).await;
    Ok(count)
}

#[cfg(test)]
mod tests;
