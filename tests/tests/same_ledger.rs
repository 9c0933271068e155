//! The simulated host against the real one: the same life writes the same ledger on both.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use lifecycle_tests::lab::{Lab, Programs, World};
use lifecycle_tests::lifecycles::{Act, Command, lifecycle};
use lifecycle_tests::simulated::in_virtual_time;
use lifecycle_tests::tiers::host;
use resource_actors::host::PathKind;
use sandbox_model::SandboxId;
use serde_json::Value;
use simulation::fault::FaultPlan;
use simulation::{SimulatedHost, pod_view};

/// Lives that need nothing which only one of the worlds has.
const LIVES: [&str; 6] = ["L1", "L2", "L3", "L4", "L5", "L12"];

/// What a life has written into a simulated ledger before its clean-up.
fn simulated(life: &str, world: &World) -> Vec<String> {
    let setting = world.setting();
    let mut life = lifecycle(life, &setting).unwrap();
    let id = SandboxId::new(world.name.clone()).unwrap();
    life.spec.id = id.clone();
    let view = pod_view(&["veth", "veth", "veth"]);
    let mut host = SimulatedHost::with_pod(FaultPlan::default(), setting.pod.clone(), view).unwrap();
    host.set_kind(setting.volume_disk.clone(), Some(PathKind::BlockDevice));
    host.set_kind(setting.volumes.join("config.file"), Some(PathKind::File));
    in_virtual_time(|| async {
        let system = host.process(None);
        let sandbox = system.create_sandbox(life.spec).await.unwrap();
        let mut lines = Vec::new();
        for act in life.acts {
            let Act::Ask(command) = act else { panic!("{act} is not for this test") };
            if command == Command::Cleanup {
                lines = host.store.kept(&id).unwrap().ledger.lines().map(str::to_owned).collect();
            }
            command.send(&sandbox).await.unwrap();
        }
        lines
    })
}

/// What each actor has written, in order, in a form in which it does not matter where.
fn normalised(lines: &[String], state_dir: &str) -> BTreeMap<String, Vec<String>> {
    let mut objects: BTreeMap<u64, (String, String)> = BTreeMap::new();
    let mut written: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let record: Value = serde_json::from_str(line).unwrap();
        let kind = record["record"].as_str().unwrap();
        let Some(entry) = record["entry"].as_u64() else { continue };
        if objects.get(&entry).is_some_and(|(_, object)| is_control(object)) {
            continue;
        }
        if kind == "intent" {
            let object = format!("{} in {}", shown(&record["object"], state_dir), record["scope"]);
            let is_control = is_control(&object);
            objects.insert(entry, (record["actor"].as_str().unwrap().to_owned(), object));
            if is_control {
                continue;
            }
        }
        let (actor, object) = objects[&entry].clone();
        written.entry(actor).or_default().push(format!("{kind} {object}"));
    }
    written
}

/// A simulated VMM is no process, and has no sockets to be controlled by.
fn is_control(object: &str) -> bool {
    ["/qmp.sock", "/console.sock"].iter().any(|name| object.contains(name))
}

/// An object without what only one of the worlds has: the place of the state, the hierarchies of cgroups,
/// the numbers of a shared directory and of a disk.
fn shown(object: &Value, state_dir: &str) -> String {
    let mut object = object.clone();
    if let Some(shared) = object.pointer_mut("/mount/shared").and_then(Value::as_object_mut) {
        shared.retain(|name, _| !["device", "inode", "mount_id"].contains(&name.as_str()));
    }
    if let Some(disk) = object.pointer_mut("/vm-device/role/disk").and_then(Value::as_object_mut) {
        disk.remove("identity");
    }
    match object.get("cgroup") {
        Some(_) => "cgroup".to_owned(),
        None => object.to_string().replace(state_dir, "STATE"),
    }
}

#[test]
fn the_same_life_writes_the_same_ledger_on_both_hosts() {
    let Some(programs) = Programs::or_skip(Programs::stand_ins()) else { return };
    let mut lab = Lab::open(&programs).unwrap();
    for life in LIVES {
        let outcome = lab.run(&host::job(lab.world(), life, "")).unwrap();
        assert!(outcome.leak().is_none(), "{outcome:#?}");
        let real = host::told(&outcome.run).unwrap().ledger;
        let real = normalised(&real, lab.world().state.to_str().unwrap());
        let simulated = normalised(&simulated(life, lab.world()), "/run/simulated");
        assert!(real.values().map(Vec::len).sum::<usize>() > 5, "{real:#?}");
        for actor in real.keys().chain(simulated.keys()) {
            // In whichever order an actor's own objects come, what it writes of each is the same.
            let (mut real, mut simulated) =
                (real.get(actor).cloned().unwrap_or_default(), simulated.get(actor).cloned().unwrap_or_default());
            real.sort();
            simulated.sort();
            assert_eq!(real, simulated, "{life}: {actor}");
        }
    }
    lab.close().unwrap();
}
