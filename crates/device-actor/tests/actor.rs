//! The actor on simulated ports: what it asks, what it keeps, what it gives back.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity, NoTrace};
use device_actor::host::DeviceHostProxy;
use device_actor::{
    AttachDevice, AttachOciDevices, AttachVfio, AttachVsock, AttachedDevice, DeviceActor, DeviceError, UndoDevices,
};
use hypervisor::HypervisorProxy;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use sandbox_model::config::VfioMode;
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, VsockBackend};
use sandbox_model::ledger::{Entry, Journal, Ledger, Scope, Undo, UndoReport, Undone, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::VsockRequest;
use sandbox_model::{ContainerId, ErrorKind, Instant, PortError, SandboxId};
use simulation::{Fault, Faults, MemoryLedger, SimulatedDeviceHost, SimulatedVmm, World};

struct Lab {
    world: Arc<World>,
    ledger: Rc<MemoryLedger>,
    vmm: Arc<SimulatedVmm>,
    faults: Arc<Faults>,
    actor: Address<DeviceActor>,
}

impl Lab {
    fn new() -> Self {
        let world = Arc::new(World::new());
        let sandbox = SandboxId::new("pod").expect("a valid id");
        let vmm = Arc::new(SimulatedVmm::new(world.clone(), sandbox));
        Self::with(world, MemoryLedger::new(), vmm)
    }

    fn with(world: Arc<World>, ledger: Rc<MemoryLedger>, vmm: Arc<SimulatedVmm>) -> Self {
        let faults = Faults::new();
        let sandbox = SandboxId::new("pod").expect("a valid id");
        let host = Arc::new(SimulatedDeviceHost::new(world.clone()));
        let domain = DeviceActor::new(
            Journal::new(ledger.clone(), ActorName::Device),
            HypervisorProxy::wrap(vmm.clone(), faults.clone()),
            DeviceHostProxy::wrap(host, faults.clone()),
            sandbox.clone(),
            1,
            2,
        );
        let domain = domain.allow_vfio(["0000:0C:00.0".to_owned()]);
        let (sink, cause) = (Arc::new(NoTrace), CurrentCause::default());
        let identity = Identity { actor: ActorName::Device, sandbox, bound: 16, sink, cause };
        Self { world, ledger, vmm, faults, actor: actor_shell::spawn(domain, identity) }
    }

    /// The same sandbox in a new process of ours.
    fn reborn(&self) -> Self {
        Self::with(self.world.clone(), self.ledger.clone(), self.vmm.clone())
    }

    async fn attach(&self, config: DeviceConfig, holder: Scope) -> Result<AttachedDevice, DeviceError> {
        self.actor.ask(AttachDevice { config, holder }, soon()).await.expect("served")
    }

    async fn undo(&self, entries: Vec<Arc<Entry>>, vm: VmFate) -> UndoReport {
        self.actor.ask(UndoDevices(Undo { entries, vm }), soon()).await.expect("served")
    }

    fn entries_of(&self, container: &str) -> Vec<Arc<Entry>> {
        let scope = scope(container);
        self.ledger.newest_first().into_iter().filter(|entry| entry.scope == scope).collect()
    }
}

fn soon() -> Ask {
    Ask { deadline: Instant::now() + Duration::from_secs(10), cause: None }
}

fn scope(container: &str) -> Scope {
    Scope::Container(ContainerId::new(container).expect("a valid id"))
}

fn disk(path: &str, access: Access) -> DeviceConfig {
    let block = BlockDevice { path: path.into(), access, format: DiskFormat::Raw, direct: false, serial: None };
    DeviceConfig::Block(block)
}

fn refusal(kind: ErrorKind) -> PortError {
    PortError::new(kind, "test", "device", "injected")
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("complete");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn two_containers_share_a_disk_and_the_last_one_unplugs_it() {
    run(async {
        let lab = Lab::new();
        let first = lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap();
        let second = lab.attach(disk("/disk", Access::ReadOnly), scope("b")).await.unwrap();
        let again = lab.attach(disk("/disk", Access::ReadOnly), scope("b")).await.unwrap();
        assert_eq!((&first, &second), (&second, &again));
        assert_eq!(first.pci_path.unwrap().0, "02/01");
        assert_eq!(lab.ledger.list(), ["block device blk-0", "hold on blk-0", "hold on blk-0"]);

        assert!(lab.undo(lab.entries_of("a"), VmFate::Alive).await.is_clean());
        assert_eq!(lab.ledger.list(), ["block device blk-0", "hold on blk-0"]);
        let report = lab.undo(lab.entries_of("b"), VmFate::Alive).await;
        let objects: Vec<_> = report.items.iter().map(|item| item.object.as_str()).collect();
        assert_eq!(objects, ["hold on blk-0", "block device blk-0"]);
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
        assert_eq!(lab.actor.snapshot().borrow().free_slots, 30);
    });
}

#[test]
fn one_disk_is_not_plugged_in_two_ways() {
    run(async {
        let lab = Lab::new();
        lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap();
        let error = lab.attach(disk("/disk", Access::ReadWrite), scope("b")).await.unwrap_err();
        let DeviceError::ConflictingAccess { present, wanted, .. } = &error else { panic!("{error}") };
        assert!(present.contains("read-only") && wanted.contains("read-write"), "{error}");
        assert_eq!(lab.ledger.list().len(), 2);
    });
}

#[test]
fn a_refused_device_leaves_nothing_and_its_slot_comes_back() {
    run(async {
        let lab = Lab::new();
        for _ in 0..10 {
            lab.faults.on("add_device", Fault::Fails(refusal(ErrorKind::Refused)));
            lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap_err();
        }
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
        let attached = lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap();
        assert_eq!((attached.device.as_str(), attached.pci_path.unwrap().0.as_str()), ("blk-10", "02/01"));
    });
}

#[test]
fn a_device_that_hangs_is_doubtful_until_an_undo_has_asked_the_vmm() {
    run(async {
        for (fault, is_there) in [(Fault::Hangs, false), (Fault::HappensAndHangs, true)] {
            let lab = Lab::new();
            lab.faults.on("add_device", fault);
            let error = lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap_err();
            assert_eq!(error, DeviceError::DeadlinePassed);
            assert_eq!(*lab.actor.snapshot().borrow(), brief(29, 1));
            let error = lab.attach(disk("/disk", Access::ReadOnly), scope("b")).await.unwrap_err();
            assert!(matches!(&error, DeviceError::Port(error) if error.kind == ErrorKind::Busy), "{error}");
            let other = lab.attach(disk("/other", Access::ReadOnly), scope("b")).await.unwrap();
            assert_eq!(other.pci_path.unwrap().0, "02/02", "the doubtful device keeps its slot");

            let doubtful: Vec<_> = lab.ledger.newest_first().into_iter().filter(|e| e.identity.is_none()).collect();
            let report = lab.undo(doubtful, VmFate::Alive).await;
            let undone = if is_there { Undone::Undone } else { Undone::AlreadyGone };
            assert_eq!(report.items[0].result, Ok(undone));
            assert_eq!(*lab.actor.snapshot().borrow(), brief(29, 0));
        }
    });
}

fn brief(free_slots: usize, doubtful: usize) -> device_actor::DevicesInBrief {
    device_actor::DevicesInBrief { free_slots, slots: 30, doubtful, vsock_daemon: None }
}

#[test]
fn a_removal_that_times_out_is_decided_by_what_the_vmm_has() {
    run(async {
        for (fault, is_gone) in [(Fault::Hangs, false), (Fault::HappensAndHangs, true)] {
            let lab = Lab::new();
            lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap();
            lab.faults.on("remove_device", fault);
            let report = lab.undo(lab.entries_of("a"), VmFate::Alive).await;
            assert_eq!((report.is_clean(), lab.ledger.list().is_empty()), (is_gone, is_gone));
            assert_eq!(*lab.actor.snapshot().borrow(), brief(if is_gone { 30 } else { 29 }, usize::from(!is_gone)));
            assert!(lab.undo(lab.ledger.newest_first(), VmFate::Alive).await.is_clean());
            assert_eq!(*lab.actor.snapshot().borrow(), brief(30, 0));
        }
    });
}

#[test]
fn one_device_that_hangs_does_not_keep_the_others() {
    run(async {
        let lab = Lab::new();
        for path in ["/1", "/2", "/3"] {
            lab.attach(disk(path, Access::ReadOnly), scope("a")).await.unwrap();
        }
        lab.faults.on("remove_device", Fault::Hangs);
        let report = lab.undo(lab.entries_of("a"), VmFate::Alive).await;
        let failed: Vec<_> = report.failed().map(|(item, _)| item.object.as_str()).collect();
        assert_eq!((failed, lab.ledger.list()), (vec!["block device blk-2"], vec!["block device blk-2".to_owned()]));
    });
}

#[test]
fn what_a_dead_vm_held_is_gone_without_asking_it() {
    run(async {
        let lab = Lab::new();
        lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap();
        lab.vmm.crash();
        let reborn = lab.reborn();
        let entries = lab.ledger.newest_first();
        let report = reborn.undo(entries.clone(), VmFate::Gone).await;
        assert!(report.is_clean() && report.items.len() == 2, "{report:?}");
        assert_eq!((reborn.faults.take_calls(), lab.world.list()), (Vec::<String>::new(), vec![]));
        assert_eq!(lab.ledger.list(), Vec::<String>::new());
    });
}

#[test]
fn the_thirty_first_device_is_refused_and_names_the_knob() {
    run(async {
        let lab = Lab::new();
        for n in 0..30 {
            lab.attach(disk(&format!("/disk{n}"), Access::ReadOnly), Scope::Sandbox).await.unwrap();
        }
        let error = lab.attach(disk("/one-more", Access::ReadOnly), Scope::Sandbox).await.unwrap_err();
        assert!(error.to_string().contains("default_bridges"), "{error}");
        lab.attach(disk("/disk7", Access::ReadOnly), scope("a")).await.unwrap();
    });
}

fn attach_vsock() -> AttachVsock {
    AttachVsock {
        request: VsockRequest { cid: None, backend: None },
        daemon: "vhost-device-vsock".into(),
        socket: "/run/pod/vsock.sock".into(),
        hybrid_socket: "/run/pod/hybrid.sock".into(),
    }
}

#[test]
fn without_a_kernel_vsock_a_daemon_serves_it_and_is_undone_in_reverse() {
    run(async {
        let lab = Lab::new();
        let vsock = lab.actor.ask(attach_vsock(), soon()).await.unwrap().unwrap();
        assert!(matches!(vsock.backend, VsockBackend::VhostUser { .. }) && vsock.cid == 3, "{vsock:?}");
        let error = lab.actor.ask(attach_vsock(), soon()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("already"), "{error}");
        let entries = lab.ledger.newest_first();
        let kinds: Vec<_> = entries.iter().map(|entry| entry.object.to_string()).collect();
        assert_eq!(
            kinds,
            [
                "hold on vsock-0",
                "vsock device vsock-0",
                "process vsock",
                "file /run/pod/hybrid.sock",
                "file /run/pod/vsock.sock"
            ]
        );
        assert!(entries.iter().all(|entry| entry.identity.is_some()));
        assert!(lab.undo(entries.clone(), VmFate::Alive).await.is_clean());
        assert!(lab.undo(entries, VmFate::Alive).await.is_clean(), "twice is once");
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
    });
}

#[test]
fn a_daemon_that_does_not_get_ready_is_found_again_by_its_entry() {
    run(async {
        let lab = Lab::new();
        lab.faults.on("await_vsock_daemon", Fault::HappensAndFails(refusal(ErrorKind::PeerGone)));
        lab.actor.ask(attach_vsock(), soon()).await.unwrap().unwrap_err();
        assert_eq!(lab.ledger.list().len(), 3, "two sockets of which nothing is known, and the daemon");
        assert!(lab.reborn().undo(lab.ledger.newest_first(), VmFate::Gone).await.is_clean());
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
    });
}

fn device(typ: LinuxDeviceType, path: &str, major: i64, minor: i64) -> LinuxDevice {
    LinuxDeviceBuilder::default().typ(typ).path(path).major(major).minor(minor).build().expect("complete")
}

fn oci(container: &str) -> AttachOciDevices {
    AttachOciDevices {
        container: ContainerId::new(container).expect("a valid id"),
        devices: vec![
            device(LinuxDeviceType::C, "/dev/null", 1, 3),
            device(LinuxDeviceType::B, "/dev/data", 8, 16),
            device(LinuxDeviceType::C, "/dev/vfio/12", 241, 0),
        ],
        resources: None,
        vfio_mode: VfioMode::GuestKernel,
        direct: false,
    }
}

#[test]
fn a_specs_devices_are_told_in_the_agents_words_and_go_with_the_last_container() {
    run(async {
        let lab = Lab::new();
        let told = lab.actor.ask(oci("a"), soon()).await.unwrap().unwrap();
        let words: Vec<_> =
            told.iter().map(|d| (d.id.as_str(), d.driver.as_str(), d.container_path.as_str())).collect();
        assert_eq!(words, [("02/01", "blk", "/dev/data"), ("12", "vfio-pci-gk", "/dev/vfio/12")]);
        assert_eq!(told[1].options, ["0000:0c:00.0=02/02"]);
        assert_eq!(lab.actor.ask(oci("b"), soon()).await.unwrap().unwrap(), told);

        assert!(lab.undo(lab.entries_of("a"), VmFate::Alive).await.is_clean());
        assert!(lab.world.identity("vfio-binding", "0000:0c:00.0").is_some(), "b still has it");
        assert!(lab.undo(lab.entries_of("b"), VmFate::Alive).await.is_clean());
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
    });
}

#[test]
fn a_function_that_the_administrator_has_not_listed_stays_with_the_host() {
    run(async {
        let lab = Lab::new();
        let denied = lab.actor.ask(AttachVfio { bdf: "0000:0d:00.0".into() }, soon()).await.unwrap().unwrap_err();
        let text = denied.to_string();
        assert!(text.contains("0000:0d:00.0") && text.contains("vfio_devices"), "{text}");
        assert!(matches!(denied, DeviceError::Port(error) if error.kind == ErrorKind::Denied));
        assert_eq!(lab.ledger.list(), Vec::<String>::new(), "nothing was begun");
        assert!(lab.world.identity("vfio-binding", "0000:0d:00.0").is_none());
    });
}

#[test]
fn a_function_that_the_vm_keeps_is_not_taken_away_from_vfio() {
    run(async {
        let lab = Lab::new();
        let bdf = "0000:0c:00.0".to_owned();
        lab.actor.ask(AttachVfio { bdf: bdf.clone() }, soon()).await.unwrap().unwrap();
        lab.faults.on("remove_device", Fault::Fails(refusal(ErrorKind::Refused)));
        // The second attempt, for the entry itself, fails too.
        lab.faults.on("remove_device", Fault::Fails(refusal(ErrorKind::Refused)));
        let report = lab.undo(lab.ledger.newest_first(), VmFate::Alive).await;
        let failed: Vec<_> = report.failed().map(|(item, error)| (item.object.as_str(), error.kind)).collect();
        let busy = ("vfio binding of 0000:0c:00.0", ErrorKind::Busy);
        assert_eq!(failed, [("vfio device vfio-0", ErrorKind::Refused), busy]);
        assert!(lab.undo(lab.ledger.newest_first(), VmFate::Alive).await.is_clean());
        assert_eq!(lab.world.list(), Vec::<String>::new());
    });
}

#[test]
fn when_one_device_of_a_spec_fails_those_before_it_are_in_the_ledger() {
    run(async {
        let lab = Lab::new();
        lab.faults.on("bind_vfio", Fault::Fails(refusal(ErrorKind::Refused)));
        lab.actor.ask(oci("a"), soon()).await.unwrap().unwrap_err();
        assert_eq!(lab.ledger.list(), ["block device blk-0", "hold on blk-0"]);
        assert!(lab.undo(lab.ledger.newest_first(), VmFate::Alive).await.is_clean());
        assert_eq!(lab.world.list(), Vec::<String>::new());
    });
}

#[test]
fn a_ledger_that_cannot_be_written_lets_nothing_start() {
    run(async {
        let lab = Lab::new();
        lab.ledger.refuse(Some(refusal(ErrorKind::Refused)));
        lab.attach(disk("/disk", Access::ReadOnly), scope("a")).await.unwrap_err();
        lab.actor.ask(attach_vsock(), soon()).await.unwrap().unwrap_err();
        assert_eq!((lab.world.list(), lab.ledger.live().len()), (vec![], 0));
        assert_eq!(*lab.actor.snapshot().borrow(), brief(30, 0));
    });
}

#[test]
fn a_binding_that_was_cut_off_is_finished_by_the_next_attempt_under_its_entry() {
    run(async {
        let lab = Lab::new();
        let bdf = "0000:0c:00.0".to_owned();
        lab.faults.on("bind_vfio", Fault::Hangs);
        lab.actor.ask(AttachVfio { bdf: bdf.clone() }, soon()).await.unwrap().unwrap_err();
        lab.actor.ask(AttachVfio { bdf: bdf.clone() }, soon()).await.unwrap().unwrap();
        let bindings = lab.ledger.list().iter().filter(|line| line.starts_with("vfio binding")).count();
        assert_eq!((bindings, lab.world.identity("vfio-binding", &bdf).is_some()), (1, true));
        assert!(lab.undo(lab.ledger.newest_first(), VmFate::Alive).await.is_clean());
        assert_eq!((lab.world.list(), lab.ledger.list()), (vec![], vec![]));
    });
}
