//! Disks, prefixes and names.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use device_actor::LinuxDeviceHost;
use device_actor::host::{DeviceHost, InspectDisk};
use futures::future::BoxFuture;
use lifecycle_tests::ground::{on_ground, soon};
use lifecycle_tests::simulated::{bind, boot, container, create, in_virtual_time, system};
use resource_actors::ResourceSystem;
use resource_actors::host::PathKind;
use resource_actors::ledger::MemoryStore;
use resource_actors::planning::{VolumePlan, plan_volume};
use sandbox_model::device::{Access, BlockDevice, DiskFormat};
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::request::{ResourceConfig, VolumesRequest};
use sandbox_model::{ErrorKind, PortResult};
use serde_json::Value;
use sharefs_actor::{Below, LinuxShareFsHost, ShareFsHost};
use simulation::{SimulatedFacts, World, simulated_ports};

/// What the VMM was asked to plug.
#[derive(Debug, Clone, Default)]
struct Plugged(Arc<Mutex<Vec<Value>>>);

impl Interceptor for Plugged {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'a, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        if call.method == "add_device" {
            self.0.lock().unwrap().push(call.request);
        }
        inner
    }
}

/// Lets a sandbox have one volume, and returns the disks that the VMM was asked to plug for it.
fn disks_of(source: &str, kind: PathKind, options: &[&str]) -> Vec<Value> {
    let plugged = Plugged::default();
    let ear = plugged.clone();
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let facts = SimulatedFacts { kinds: [(source.into(), Some(kind))].into() };
        let system = ResourceSystem::builder(simulated_ports(&world))
            .store(Arc::new(MemoryStore::new("/run/simulated")))
            .facts(Arc::new(facts))
            .intercept(Arc::new(move |_, _, _| Some(Arc::new(ear.clone()) as Arc<dyn Interceptor>)))
            .here();
        let sandbox = create(&system, "disks").await.unwrap();
        boot(&sandbox).await.unwrap();
        plugged.0.lock().unwrap().clear();
        let request = VolumesRequest { container: container("c"), mounts: vec![bind(source, "/data", options)] };
        sandbox.set_up_volumes(request).await.unwrap();
    });
    let all = plugged.0.lock().unwrap().clone();
    all.into_iter().filter_map(|device| device.pointer("/config/block").cloned()).collect()
}

/// A guest could write to the image that all later guests boot from; a container made a node for it.
#[test]
fn cve_2020_2023_cve_2020_2025_the_guests_root_disk_is_read_only() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "image").await.unwrap();
        let disk = |access| {
            let (path, format) = ("/images/guest".into(), DiskFormat::Raw);
            ResourceConfig::VmRootfs(BlockDevice { path, access, format, direct: false, serial: None })
        };
        let refused = sandbox.prepare_before_start_vm(vec![disk(Access::ReadWrite)]).await.unwrap_err();
        assert!(refused.to_string().contains("read-only"), "{refused}");
        assert_eq!(world.list(), Vec::<String>::new());
        sandbox.prepare_before_start_vm(vec![disk(Access::ReadOnly)]).await.unwrap();
    });
}

/// A memory-backed disk was never attached read-only, whatever was asked for.
#[test]
fn cve_2026_24834_a_read_only_disk_is_so_in_the_vmm() {
    let disks = disks_of("/dev/loop9", PathKind::BlockDevice, &["rbind", "ro"]);
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0]["access"], "read-only");
    assert_eq!(disks_of("/dev/loop9", PathKind::BlockDevice, &["rbind", "rw"])[0]["access"], "read-write");
}

/// An image without layers gave an empty directory, and the search for its device found the host's
/// root disk.
#[test]
fn cve_2026_24054_a_directory_is_never_taken_for_the_disk_below_it() {
    assert_eq!(disks_of("/empty", PathKind::Directory, &["rbind"]), Vec::<Value>::new());
    let plan = plan_volume(&bind("/empty", "/data", &["rbind"]), Some(PathKind::Directory)).unwrap();
    assert!(matches!(plan, VolumePlan::Share { .. }), "{plan:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for path in ["/", "/proc", "/dev/null"] {
            let inspect = InspectDisk { path: path.into(), access: Access::ReadWrite };
            let refused = LinuxDeviceHost::new().inspect_disk(inspect, soon()).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Invalid, "{path}: {refused}");
        }
    });
}

/// A guest wrote a QCOW2 header to its raw disk, which the next start read as one with a backing file.
#[test]
fn cve_2026_27211_a_disks_format_is_said_and_never_probed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let mut content = b"QFI\xfb\0\0\0\x03".to_vec();
    content.resize(4096, 0);
    fs::write(&disk, content).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inspect = InspectDisk { path: disk, access: Access::ReadWrite };
    let facts = runtime.block_on(LinuxDeviceHost::new().inspect_disk(inspect, soon())).unwrap();
    assert_eq!(facts.bytes, 4096, "its size is the file's, not what the header says");
    let disks = disks_of("/dev/loop9", PathKind::BlockDevice, &["rbind"]);
    assert_eq!(disks[0]["format"], "raw");
    assert!(serde_json::from_str::<DiskFormat>("\"qcow2\"").is_err(), "there is no other format");
}

/// A path was compared by its text, so `/shared-evil` lay below `/shared`, and then written through
/// a link.
#[test]
fn cve_2026_41326_cve_2026_49238_a_prefix_is_whole_components() {
    let dir = Path::new("/run/ra/pod");
    assert!(Below::of(dir, Path::new("/run/ra/pod/rw")).is_ok());
    for path in ["/run/ra/pod-evil/rw", "/run/ra/podrw", "/run/ra/pod", "/run/ra", "rw"] {
        assert_eq!(Below::of(dir, Path::new(path)).unwrap_err().kind, ErrorKind::Foreign, "{path}");
    }
    on_ground(|ground| async move {
        let victim = ground.canary("victim");
        let path = ground.dir.join("../../victim/new");
        let at = Below::of(&ground.dir, &path).unwrap();
        assert!(LinuxShareFsHost.make_directory(at, soon()).await.is_err(), "`..` leads nowhere");
        assert!(!victim.join("new").exists());
    });
}
