//! Z9: bytes become requests and faults, run with all rules: what a fuzzer drives.

use sandbox_model::lifecycle::ActorName;
use simulation::fault::{FaultPlan, PlannedFault, Site, applicable};

use super::{Report, run, setting};
use crate::lifecycles::{Act, Command, Lifecycle, lifecycle};

/// At most this many requests and faults: more of them find nothing that fewer do not.
const ACTS_MAX: usize = 24;
const FAULTS_MAX: usize = 6;

/// Calls and records at which a fault of a byte may strike: an actor and what it calls.
const PLACES: [(ActorName, &str, &str); 32] = [
    (ActorName::Device, "hypervisor", "add_device"),
    (ActorName::Device, "hypervisor", "remove_device"),
    (ActorName::Device, "hypervisor", "query_devices"),
    (ActorName::Device, "device-host", "inspect_disk"),
    (ActorName::Device, "device-host", "start_vsock_daemon"),
    (ActorName::Device, "device-host", "await_vsock_daemon"),
    (ActorName::Device, "device-host", "bind_vfio"),
    (ActorName::Device, "device-host", "give_back_vfio"),
    (ActorName::Device, "device-host", "end_daemon"),
    (ActorName::Supervisor, "hypervisor", "start_vm"),
    (ActorName::Supervisor, "hypervisor", "resume_vm"),
    (ActorName::Supervisor, "hypervisor", "stop_vm"),
    (ActorName::Supervisor, "hypervisor", "kill_vm"),
    (ActorName::Supervisor, "guest-agent", "connect"),
    (ActorName::Supervisor, "guest-agent", "update_interface"),
    (ActorName::Network, "network-host", "open_namespace"),
    (ActorName::Network, "network-host", "create_tap"),
    (ActorName::Network, "network-host", "redirect"),
    (ActorName::Network, "network-host", "remove_tap"),
    (ActorName::ShareFs, "share-fs-host", "make_directory"),
    (ActorName::ShareFs, "share-fs-host", "attach"),
    (ActorName::ShareFs, "share-fs-host", "detach"),
    (ActorName::ShareFs, "share-fs-host", "start_daemon"),
    (ActorName::ShareFs, "share-fs-host", "remove_directory"),
    (ActorName::Cgroup, "cgroup-host", "make_group"),
    (ActorName::Cgroup, "cgroup-host", "remove_group"),
    (ActorName::Cpu, "hypervisor", "resize_vcpus"),
    (ActorName::Cpu, "guest-agent", "online_cpu_mem"),
    (ActorName::Device, "ledger", "intent"),
    (ActorName::ShareFs, "ledger", "done"),
    (ActorName::Network, "ledger", "undone"),
    (ActorName::Supervisor, "ledger", "undo-intent"),
];

/// What the bytes mean: a life with its faults. Any bytes mean something.
pub fn decode(bytes: &[u8]) -> (Lifecycle, FaultPlan) {
    let setting = setting();
    // The widest life's requests, and those of the others, are the alphabet.
    let ids = ["L12", "L8", "L5", "L6", "L7"];
    let lives: Vec<Lifecycle> = ids.iter().filter_map(|id| lifecycle(id, &setting)).collect();
    let alphabet: Vec<Command> = lives
        .iter()
        .flat_map(|life| &life.acts)
        .filter_map(|act| match act {
            Act::Ask(command) => Some(command.clone()),
            Act::Kill | Act::TakeOver | Act::Dies(_) => None,
        })
        .collect();
    let mut life = lives.into_iter().next().unwrap_or_else(|| unreachable!("the simulated host has all lives"));
    (life.id, life.title) = ("Z9", "requests from bytes");
    let mut bytes = bytes.iter().copied().map(usize::from);
    let count = bytes.next().unwrap_or_default() % (ACTS_MAX + 1);
    // Most lives begin as lives do; one in four is a jumble.
    let begin = if count % 4 == 3 { 0 } else { 3 };
    life.acts.truncate(begin);
    for _ in 0..count {
        let Some(byte) = bytes.next() else { break };
        life.acts.push(Act::Ask(alphabet[byte % alphabet.len()].clone()));
    }
    life.acts.push(Act::Ask(Command::Cleanup));
    let mut plan = FaultPlan::default();
    while let (Some(place), Some(how), true) = (bytes.next(), bytes.next(), plan.faults.len() < FAULTS_MAX) {
        let (actor, port, method) = PLACES[place % PLACES.len()];
        let nth = u32::try_from(1 + how / 64).unwrap_or(1);
        let site = Site { sandbox: None, actor, port: port.to_owned(), method: method.to_owned(), nth };
        let modes = applicable(&site);
        plan.faults.push(PlannedFault { mode: modes[how % modes.len()], site });
    }
    (life, plan)
}

/// Runs what the bytes mean, with all rules.
pub fn from_bytes(bytes: &[u8]) -> Report {
    let (life, plan) = decode(bytes);
    run(&life, &plan, None)
}
