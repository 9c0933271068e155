//! Laws of requests: what is added and taken away was never there, twice is as good as once, and what
//! does not depend on each other may come in any order.

use std::sync::Arc;

use lifecycle_tests::faults::picture;
use lifecycle_tests::simulated::{add_container, bind, boot, container, create, in_virtual_time, limits, system};
use resource_actors::ledger::{DirectoryStore, SandboxStore};
use resource_actors::{SandboxHandle, SandboxSpec};
use sandbox_model::SandboxId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::request::{DevicesRequest, ResourceUpdate, RootfsRequest, RootfsSource, VolumesRequest};
use serde_json::Value;
use simulation::fault::{FaultPlan, Mode, Peer};
use simulation::{SimulatedHost, World};

/// Everything that can be seen of a sandbox, but for what only counts.
fn seen(world: &World, sandbox: &SandboxHandle) -> (Vec<String>, Value, Value, usize) {
    let dump = sandbox.dump();
    let (shares, mut device) = (dump["cpu"]["shares"].clone(), dump["device"].clone());
    if let Some(process) = device.pointer_mut("/vsock_daemon/process") {
        *process = Value::from("its process");
    }
    (picture(world, &Default::default()), shares, device, sandbox.status().objects)
}

#[test]
fn what_is_added_and_taken_away_was_never_there() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "law").await.unwrap();
        boot(&sandbox).await.unwrap();
        let before = seen(&world, &sandbox);
        for round in 0..20 {
            add_container(&sandbox, "one").await.unwrap();
            assert!(sandbox.release_container(container("one")).await.unwrap().is_clean());
            assert_eq!(seen(&world, &sandbox), before, "round {round}");
        }
    });
}

#[test]
fn twice_is_as_good_as_once() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "law").await.unwrap();
        boot(&sandbox).await.unwrap();
        add_container(&sandbox, "one").await.unwrap();
        sandbox.release_container(container("one")).await.unwrap();
        let once = seen(&world, &sandbox);
        assert!(sandbox.release_container(container("one")).await.unwrap().items.is_empty());
        assert_eq!(seen(&world, &sandbox), once);
        sandbox.stop().await.unwrap();
        let once = seen(&world, &sandbox);
        sandbox.stop().await.unwrap();
        assert_eq!(seen(&world, &sandbox), once);
        assert!(sandbox.cleanup().await.unwrap().is_clean());
        assert!(sandbox.cleanup().await.unwrap().items.is_empty());
        assert_eq!(world.list(), Vec::<String>::new());
    });
}

#[test]
fn containers_that_fail_to_join_do_not_add_up() {
    in_virtual_time(|| async {
        let host = SimulatedHost::new(FaultPlan::default());
        let system = host.process(None);
        let sandbox = create(&system, "law").await.unwrap();
        boot(&sandbox).await.unwrap();
        let join =
            || sandbox.update_linux_resources(container("c"), Some(limits(100_000, 128 << 20)), ResourceUpdate::Add);
        let first = join().await.unwrap();
        sandbox.release_container(container("c")).await.unwrap();
        for nth in 2..30 {
            let site = format!("cpu:guest-agent.online_cpu_mem#{nth}").parse().unwrap();
            host.faults.add(FaultPlan::one(site, Mode::Error));
            join().await.unwrap_err();
        }
        host.faults.relent();
        let last = join().await.unwrap();
        assert_eq!((last.vcpus, last.memory_mib), (first.vcpus, first.memory_mib));
    });
}

#[test]
fn what_is_independent_may_come_in_any_order() {
    let mut ends = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        ends.push(in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, None, None);
            let sandbox = create(&system, "law").await.unwrap();
            boot(&sandbox).await.unwrap();
            for what in order {
                let id = container("one");
                match what {
                    0 => {
                        let source = RootfsSource::Directory { path: "/images/one".into() };
                        let request = RootfsRequest { container: id, source, read_only: true };
                        sandbox.set_up_rootfs(request).await.map(drop).unwrap();
                    }
                    1 => {
                        let mounts = vec![bind("/srv/a", "/a", &["rbind", "ro"])];
                        sandbox.set_up_volumes(VolumesRequest { container: id, mounts }).await.map(drop).unwrap();
                    }
                    2 => {
                        let request = DevicesRequest { container: id, devices: Vec::new(), resources: None };
                        sandbox.set_up_devices(request).await.map(drop).unwrap();
                    }
                    _ => {
                        let limits = Some(limits(150_000, 300 << 20));
                        sandbox.update_linux_resources(id, limits, ResourceUpdate::Add).await.map(drop).unwrap();
                    }
                }
            }
            seen(&world, &sandbox)
        }));
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:#?}");
}

#[test]
fn a_create_that_failed_can_be_tried_again_as_if_it_had_not() {
    in_virtual_time(|| async {
        let whole = {
            let host = SimulatedHost::new(FaultPlan::default());
            let system = host.process(None);
            let sandbox = create(&system, "law").await.unwrap();
            boot(&sandbox).await.unwrap();
            seen(&host.world, &sandbox)
        };
        for plan in [
            "network:network-host.create_tap#1=E",
            "device:hypervisor.add_device#2=P",
            "cgroup:ledger.intent#1=R:ENOSPC",
        ] {
            let host = SimulatedHost::new(plan.parse().unwrap());
            let system = host.process(None);
            let sandbox = create(&system, "law").await.unwrap();
            boot(&sandbox).await.unwrap_err();
            assert_eq!(host.world.list(), Vec::<String>::new(), "{plan}");
            boot(&sandbox).await.unwrap();
            assert_eq!(seen(&host.world, &sandbox), whole, "{plan}");
        }
    });
}

#[test]
fn one_is_made_while_the_last_other_goes_and_takes_the_state_directory_along() {
    let temporary = tempfile::tempdir().unwrap();
    let state = temporary.path().join("state");
    let lives = |name: &'static str| {
        let store = DirectoryStore::new(&state);
        let id = SandboxId::new(name).unwrap();
        move || {
            for _ in 0..2000 {
                let spec = SandboxSpec { id: id.clone(), config: SandboxConfig::default().into(), cgroups_path: None };
                drop(store.create(&spec).unwrap());
                assert!(store.destroy(&id).is_clean());
            }
        }
    };
    let threads = ["one", "two", "three"].map(|name| std::thread::spawn(lives(name)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!state.exists());
}

#[test]
fn a_vm_that_dies_does_so_once_whoever_tells_of_it() {
    in_virtual_time(|| async {
        let host = SimulatedHost::new(FaultPlan::default());
        let system = host.process(None);
        let sandbox = create(&system, "law").await.unwrap();
        boot(&sandbox).await.unwrap();
        host.faults.kill(sandbox.id(), Peer::Vmm);
        host.faults.kill(sandbox.id(), Peer::Vmm);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let failure = sandbox.status().failure.unwrap();
        assert!(failure.contains("ended by itself"), "{failure}");
        assert!(sandbox.cleanup().await.unwrap().is_clean());
    });
}
