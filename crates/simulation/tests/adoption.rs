//! What an earlier client left running in a world, another one takes over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use device_actor::host::{AdoptDaemon, DeviceHost, EndDaemon, StartVsockDaemon};
use hypervisor::{AdoptVm, Hypervisor, KillVm, RemoveDevice, StartVm, StopVm, VmCondition, VmSpec, VmmFactory};
use sandbox_model::config::{Accelerator, SandboxConfig};
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, PciSlot, PlacedDevice};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{DeviceId, ErrorKind, Instant, Live, SandboxId};
use simulation::{SimulatedDeviceHost, SimulatedVmmFactory, World};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn client(world: &Arc<World>) -> Arc<dyn Hypervisor> {
    let factory = SimulatedVmmFactory::new(world.clone());
    factory
        .create(&SandboxId::new("pod").expect("an id"), Path::new("/run/pod"), &SandboxConfig::default())
        .expect("a client")
}

fn disk(name: &str, slot: u8) -> PlacedDevice {
    let config = DeviceConfig::Block(BlockDevice {
        path: "/disk".into(),
        access: Access::ReadOnly,
        format: DiskFormat::Raw,
        direct: false,
        serial: None,
    });
    PlacedDevice {
        id: DeviceId::new(name).expect("an id"),
        slot: PciSlot { bridge: 0, slot },
        config,
        disk: Live::absent(),
    }
}

fn spec() -> VmSpec {
    VmSpec {
        program: "vmm".into(),
        machine: "q35".into(),
        accelerator: Accelerator::Auto,
        kernel: "/kernel".into(),
        initrd: None,
        kernel_params: String::new(),
        vcpus: 2,
        vcpus_max: 4,
        memory_mib: 512,
        memory_max_mib: 1024,
        memory_slots: 4,
        shared_memory: false,
        bridges: 1,
    }
}

/// Starts a VM with one disk and forgets the client.
async fn leave_behind(world: &Arc<World>) -> ProcessIdentity {
    let first = client(world);
    first.add_device(disk("cold", 1), soon()).await.expect("plugged");
    let started = first.start_vm(StartVm { spec: spec(), tag: "pod/7".into() }, soon()).await.expect("started");
    started.process.expect("a process")
}

fn adopt(process: Option<ProcessIdentity>) -> AdoptVm {
    AdoptVm { process, tag: "pod/7".into() }
}

#[tokio::test]
async fn a_vm_outlives_its_client_and_is_adopted_as_it_is() {
    let world = Arc::new(World::new());
    let process = leave_behind(&world).await;
    let second = client(&world);
    let adopted = second.adopt_vm(adopt(Some(process)), soon()).await.unwrap();
    assert_eq!(adopted.condition, VmCondition::NotYetRun);
    assert_eq!((adopted.vm.process, adopted.vcpus, adopted.memory_mib), (Some(process), 2, 512));
    second.resume_vm((), soon()).await.unwrap();
    second.add_device(disk("hot", 2), soon()).await.unwrap();
    drop(second);

    let third = client(&world);
    assert_eq!(third.adopt_vm(adopt(None), soon()).await.unwrap().condition, VmCondition::Running);
    let present = third.query_devices((), soon()).await.unwrap();
    let places: Vec<_> = present.iter().map(|it| (it.id.as_str(), it.pci_path.clone().unwrap().0)).collect();
    assert_eq!(places, [("cold", "02/01".to_owned()), ("hot", "02/02".to_owned())]);
    assert_eq!(third.add_device(disk("hot", 3), soon()).await.unwrap_err().kind, ErrorKind::Exists);
    third.remove_device(RemoveDevice { id: DeviceId::new("cold").unwrap() }, soon()).await.unwrap();
    assert_eq!(third.adopt_vm(adopt(None), soon()).await.unwrap_err().kind, ErrorKind::Exists);

    // Its end, by a client that has not adopted it, is seen by the one that has.
    let kill = KillVm { process: Some(process), tag: "pod/7".into(), term_ms: 0 };
    client(&world).kill_vm(kill, soon()).await.unwrap();
    assert_eq!(third.wait_exit((), soon()).await.unwrap().signal, Some(9));
    assert_eq!(world.list(), Vec::<String>::new());
    assert!(client(&world).adopt_vm(adopt(None), soon()).await.unwrap_err().is_absent());
}

#[tokio::test]
async fn another_process_is_not_adopted() {
    let world = Arc::new(World::new());
    let process = leave_behind(&world).await;
    let client = client(&world);
    let reused = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    assert!(client.adopt_vm(adopt(Some(reused)), soon()).await.unwrap_err().is_absent());
    let untagged = AdoptVm { process: Some(process), tag: "pod/8".into() };
    assert!(client.adopt_vm(untagged, soon()).await.unwrap_err().is_absent());
    client.adopt_vm(adopt(Some(process)), soon()).await.unwrap();
    client.stop_vm(StopVm { term_ms: 0 }, soon()).await.unwrap();
    assert_eq!(world.list(), Vec::<String>::new());
}

#[tokio::test]
async fn a_daemon_is_adopted_while_it_runs() {
    let world = Arc::new(World::new());
    let start = StartVsockDaemon {
        program: "vsock".into(),
        cid: 3,
        socket: "/run/pod/vsock.sock".into(),
        hybrid_socket: "/run/pod/hybrid.sock".into(),
        tag: "pod/1".into(),
    };
    let started = SimulatedDeviceHost::new(world.clone()).start_vsock_daemon(start, soon()).await.unwrap();
    let host = SimulatedDeviceHost::new(world.clone());
    let adopt = AdoptDaemon { process: started.process, tag: "pod/1".into() };
    assert_eq!(host.adopt_daemon(adopt.clone(), soon()).await.unwrap().process, started.process);
    host.end_daemon(EndDaemon { process: Some(started.process), tag: "pod/1".into() }, soon()).await.unwrap();
    assert!(host.adopt_daemon(adopt, soon()).await.unwrap_err().is_absent());
}
