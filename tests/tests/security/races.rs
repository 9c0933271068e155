//! Names that change while they are used (rule R1, test S1): a thread exchanges a name with a link
//! out of the tree, without rest, while every call that takes a path is made again and again.
//!
//! Rounds are few here; `RESOURCE_ACTORS_SECURITY_FULL` has 10,000 of each, and 400,000 exchanges (G10).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use device_actor::LinuxDeviceHost;
use device_actor::host::{DeviceHost, InspectDisk, RemoveSocket};
use lifecycle_tests::ground::{Ground, mounts, on_ground, print, soon};
use network_actor::host::{CreateFile, CreateNamespace, OpenNamespace, RemoveFile, RemoveNamespace, Want};
use network_actor::{LinuxNetworkHost, NetworkHost};
use resource_actors::host::{HostFacts, InspectPath, LinuxHostFacts, PathKind};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sandbox_model::device::Access;
use sharefs_actor::{Attach, Detach, Export, LinuxShareFsHost, Remove, SetId, ShareFsHost};

const SHARE: LinuxShareFsHost = LinuxShareFsHost;

/// How much of a race there is.
struct Extent {
    rounds: u64,
    flips: u64,
}

fn extent() -> Extent {
    match std::env::var_os("RESOURCE_ACTORS_SECURITY_FULL") {
        Some(_) => Extent { rounds: 10_000, flips: 400_000 },
        None => Extent { rounds: 300, flips: 1 },
    }
}

/// Whether one more round is made: so many, and more as long as the race has not been one.
fn goes_on(round: u64, flipper: &Flipper, is_enough: bool) -> bool {
    let Extent { rounds, flips } = extent();
    assert!(round < rounds * 200, "the names are never as they should be");
    round < rounds || flipper.flips() < flips || !is_enough
}

/// Exchanges two names until it is dropped, and counts how often.
struct Flipper {
    goes_on: Arc<AtomicBool>,
    flips: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flipper {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let (goes_on, flips) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (go, count) = (goes_on.clone(), flips.clone());
        let flip = move || {
            while go.load(Ordering::Relaxed) {
                // One of them may be away for a moment: the calls make and remove.
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        Self { goes_on, flips, thread: Some(std::thread::spawn(flip)) }
    }

    fn flips(&self) -> u64 {
        self.flips.load(Ordering::Relaxed)
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A sandbox's tree with a parent that is exchanged for a link to `victim`, and what must not change.
struct Scene {
    ground: Ground,
    victim: PathBuf,
    tree: Vec<String>,
    mounts: usize,
    flipper: Flipper,
}

impl Scene {
    /// `rw/flip` is a directory, or a link to the victim.
    async fn new(ground: Ground) -> Self {
        let victim = ground.canary("victim");
        for name in ["rw", "ro"] {
            SHARE.make_directory(ground.below(name), soon()).await.unwrap();
        }
        SHARE.make_directory(ground.below("rw/flip"), soon()).await.unwrap();
        let link = ground.dir.join("rw/link");
        symlink(&victim, &link).unwrap();
        let (tree, mounts) = (print(&victim), mounts().len());
        let flipper = Flipper::start(ground.dir.join("rw/flip"), link);
        Self { ground, victim, tree, mounts, flipper }
    }

    /// Nothing has escaped, and the race was one.
    fn judge(&self, what: &str, hits: u64) {
        assert_eq!(print(&self.victim), self.tree, "{what}: it reached the victim");
        assert!(self.flipper.flips() > 0, "{what}: no flips");
        assert!(hits > 0, "{what}: no call ever found the name as it should be");
    }
}

#[test]
fn making_and_removing_below_a_parent_that_is_exchanged() {
    on_ground(|ground| async move {
        let scene = Scene::new(ground).await;
        let mut made = 0;
        for round in 0.. {
            if !goes_on(round, &scene.flipper, made > 0) {
                break;
            }
            let at = || scene.ground.below("rw/flip/new");
            for is_directory in [true, false] {
                let make = if is_directory {
                    SHARE.make_directory(at(), soon()).await
                } else {
                    SHARE.make_file(at(), soon()).await
                };
                // Otherwise the link was met.
                if let Ok(inode) = make {
                    made += 1;
                    // The directory is at either name now.
                    for name in ["rw/flip/new", "rw/link/new"] {
                        let remove = Remove { at: scene.ground.below(name), made: Some(inode) };
                        let _ = if is_directory {
                            SHARE.remove_directory(remove, soon()).await
                        } else {
                            SHARE.remove_file(remove, soon()).await
                        };
                    }
                }
            }
            for name in ["rw/flip/file", "rw/flip/inner"] {
                let remove = |made| Remove { at: scene.ground.below(name), made };
                assert!(SHARE.remove_file(remove(None), soon()).await.is_err());
                assert!(SHARE.remove_directory(remove(None), soon()).await.is_err());
            }
        }
        scene.judge("making and removing", made);
    });
}

#[test]
fn mounting_at_a_place_that_is_exchanged() {
    on_ground(|ground| async move {
        let source = ground.canary("volume");
        let scene = Scene::new(ground).await;
        let mut attached = 0;
        for round in 0.. {
            if !goes_on(round, &scene.flipper, attached > 0) {
                break;
            }
            let opened = SHARE.open_source(source.clone(), soon()).await.unwrap();
            let at = scene.ground.below("rw/flip");
            let access = if round % 2 == 0 { Access::ReadOnly } else { Access::ReadWrite };
            let request = Attach { at, source: opened, access, set_id: SetId::Ignored };
            if let Ok(mounted) = SHARE.attach(request, soon()).await {
                attached += 1;
                for _ in 0..100 {
                    let mut gone = false;
                    // A name with a mount on it is not exchanged, so it is where it was put.
                    for name in ["rw/flip", "rw/link"] {
                        let (at, mount_id) = (scene.ground.below(name), Some(mounted.mount_id));
                        gone |= SHARE.detach(Detach { at, mount_id, source: source.clone() }, soon()).await.is_ok();
                    }
                    if gone {
                        break;
                    }
                }
            }
            assert_eq!(mounts().len(), scene.mounts, "a mount went astray in round {round}");
        }
        scene.judge("mounting", attached);
    });
}

#[test]
fn exporting_a_tree_that_is_exchanged() {
    on_ground(|ground| async move {
        let scene = Scene::new(ground).await;
        let mut exported = 0;
        for round in 0.. {
            if !goes_on(round, &scene.flipper, exported > 0) {
                break;
            }
            let (from, to) = (scene.ground.below("rw/flip"), scene.ground.below("ro"));
            if let Ok(mounted) = SHARE.export(Export { from, to: to.clone() }, soon()).await {
                exported += 1;
                assert!(!scene.ground.dir.join("ro/file").exists(), "the victim was exported");
                let source = scene.ground.dir.join("rw/flip");
                SHARE.detach(Detach { at: to, mount_id: Some(mounted.mount_id), source }, soon()).await.unwrap();
            }
        }
        scene.judge("exporting", exported);
        assert_eq!(mounts().len(), scene.mounts);
    });
}

/// A source is the caller's and may lead through links; what was opened is what is used.
#[test]
fn opening_a_source_that_is_exchanged() {
    on_ground(|ground| async move {
        let (one, other) = (ground.canary("one"), ground.canary("other"));
        fs::write(other.join("file"), "another").unwrap();
        for name in ["rw", "ro"] {
            SHARE.make_directory(ground.below(name), soon()).await.unwrap();
        }
        SHARE.make_directory(ground.below("rw/c"), soon()).await.unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let both = [inode(&one), inode(&other)];
        let flipper = Flipper::start(one.clone(), other);
        let mut seen = [0_u64; 2];
        for round in 0.. {
            if !goes_on(round, &flipper, seen.iter().all(|count| *count > 0)) {
                break;
            }
            let opened = SHARE.open_source(one.clone(), soon()).await.unwrap();
            let which = both.iter().position(|inode| *inode == opened.inode.inode).unwrap();
            seen[which] += 1;
            let (at, access) = (ground.below("rw/c"), Access::ReadOnly);
            let mounted = SHARE
                .attach(Attach { at: at.clone(), source: opened.clone(), access, set_id: SetId::Ignored }, soon())
                .await
                .unwrap();
            assert_eq!(inode(&ground.dir.join("rw/c")), opened.inode.inode, "it is what was opened");
            let detach = Detach { at, mount_id: Some(mounted.mount_id), source: one.clone() };
            SHARE.detach(detach, soon()).await.unwrap();
        }
        assert!(seen.iter().sum::<u64>() >= extent().rounds && seen.iter().all(|count| *count > 0), "{seen:?}");
    });
}

#[test]
fn files_and_namespaces_at_a_name_that_is_exchanged() {
    on_ground(|ground| async move {
        let network = LinuxNetworkHost::new();
        let victim = ground.root.join("victim-file");
        fs::write(&victim, "").unwrap();
        let before = mounts().len();
        let (path, link) = (ground.dir.join("netns"), ground.dir.join("link"));
        symlink(&victim, &link).unwrap();
        let flipper = Flipper::start(path.clone(), link.clone());
        let (mut created, mut bound) = (0, 0);
        for round in 0.. {
            if !goes_on(round, &flipper, created > 0 && bound > 0) {
                break;
            }
            if fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_symlink()) {
                fs::rename(&path, &link).unwrap();
            }
            let file = network.create_file(CreateFile { path: path.clone() }, soon()).await;
            created += u64::from(file.is_ok());
            let namespace = network.create_namespace(CreateNamespace { path: path.clone(), tuns: 0 }, soon()).await;
            bound += u64::from(namespace.is_ok());
            let open = OpenNamespace { path: path.clone(), want: Want::Socket };
            drop(network.open_namespace(open, soon()).await);
            for name in [&path, &link] {
                for _ in 0..2 {
                    let remove = RemoveNamespace { path: name.clone(), identity: None };
                    let _ = network.remove_namespace(remove, soon()).await;
                }
            }
            for name in [&path, &link] {
                let remove = RemoveFile { path: name.clone(), identity: None };
                let _ = network.remove_file(remove, soon()).await;
            }
            assert_eq!(fs::read(&victim).unwrap(), b"", "the victim is as it was");
            assert!(fs::symlink_metadata(&victim).unwrap().is_file());
        }
        drop(flipper);
        for name in [&path, &link] {
            while nix::mount::umount2(name, nix::mount::MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        }
        assert_eq!(mounts().len(), before, "no namespace is bound to the victim");
        assert!(created > 0 && bound > 0, "{created} {bound}");
    });
}

#[test]
fn disks_and_sockets_at_a_name_that_is_exchanged() {
    on_ground(|ground| async move {
        let host = LinuxDeviceHost::new();
        let (disk, other) = (ground.root.join("disk"), ground.root.join("other"));
        fs::write(&disk, [0; 512]).unwrap();
        symlink("/dev/null", &other).unwrap();
        let victim = ground.root.join("victim.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&victim).unwrap();
        let link = ground.dir.join("vsock.sock");
        symlink(&victim, &link).unwrap();
        let flipper = Flipper::start(disk.clone(), other);
        let (mut sizes, mut refused) = (0, 0);
        for round in 0.. {
            if !goes_on(round, &flipper, sizes > 0 && refused > 0) {
                break;
            }
            let inspect = InspectDisk { path: disk.clone(), access: Access::ReadWrite };
            match host.inspect_disk(inspect, soon()).await {
                Ok(facts) => {
                    sizes += 1;
                    assert_eq!(facts.bytes, 512, "what was looked at is what was opened");
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.cause.contains("neither"), "{error}");
                }
            }
            let remove = RemoveSocket { path: link.clone(), file: None };
            assert!(host.remove_socket(remove, soon()).await.is_err(), "a link is no socket of ours");
            let kind = LinuxHostFacts.inspect(InspectPath { path: disk.clone() }, soon()).await.unwrap();
            assert!(matches!(kind, PathKind::File | PathKind::Other), "{kind:?}");
        }
        assert!(victim.exists() && flipper.flips() > 0);
    });
}
