//! What a guest or workload plants in a tree, and what is mounted over it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifecycle_tests::ground::{Ground, mounts, on_ground, print, soon};
use nix::mount::{MsFlags, mount, umount};
use sandbox_model::device::Access;
use sandbox_model::{ErrorKind, Instant};
use sharefs_actor::{
    Attach, Detach, Export, LinuxShareFsHost, Mounted, Remove, SetId, ShareFsHost, Source, StartDaemon, VerifyDaemon,
};

const HOST: LinuxShareFsHost = LinuxShareFsHost;

async fn source(path: &Path) -> Source {
    HOST.open_source(path.to_owned(), soon()).await.unwrap()
}

fn attach(ground: &Ground, at: &str, source: Source, access: Access) -> Attach {
    Attach { at: ground.below(at), source, access, set_id: SetId::Ignored }
}

fn detach(ground: &Ground, at: &str, made: Option<Mounted>, source: &Path) -> Detach {
    Detach { at: ground.below(at), mount_id: made.map(|made| made.mount_id), source: source.to_owned() }
}

/// `rw` and its exported view `ro`, with a place to mount at.
async fn exported(ground: &Ground, place: &str) -> Mounted {
    for name in ["rw", "ro"] {
        HOST.make_directory(ground.below(name), soon()).await.unwrap();
    }
    HOST.make_directory(ground.below(format!("rw/{place}")), soon()).await.unwrap();
    HOST.export(Export { from: ground.below("rw"), to: ground.below("ro") }, soon()).await.unwrap()
}

/// Puts a link to `target` where `path` was.
fn plant(path: PathBuf, target: &Path) {
    fs::remove_dir(&path).unwrap();
    symlink(target, path).unwrap();
}

/// The guest swapped its root file system's name for a link, and the teardown's unmount followed it.
#[test]
fn cve_2020_2024_an_unmount_does_not_follow_a_planted_link() {
    on_ground(|ground| async move {
        let canary = ground.canary("hosts");
        mount(Some(&canary), &canary, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        HOST.make_directory(ground.below("rw"), soon()).await.unwrap();
        HOST.make_directory(ground.below("rw/rootfs"), soon()).await.unwrap();
        plant(ground.dir.join("rw/rootfs"), &canary);
        let before = mounts();
        for made in [None, Some(Mounted { mount_id: 1 })] {
            assert!(HOST.detach(detach(&ground, "rw/rootfs", made, &canary), soon()).await.is_err());
        }
        assert_eq!(mounts(), before);
        umount(&canary).unwrap();
    });
}

/// The guest planted a link at a mount target that could be guessed, and the host mounted through it.
#[test]
fn cve_2020_2026_a_mount_does_not_follow_a_planted_link() {
    on_ground(|ground| async move {
        let (canary, victim) = (ground.canary("volume"), ground.canary("victim"));
        exported(&ground, "c").await;
        plant(ground.dir.join("rw/c"), &victim);
        let (before, tree) = (mounts(), print(&victim));
        let request = attach(&ground, "ro/c", source(&canary).await, Access::ReadWrite);
        assert!(HOST.attach(request, soon()).await.is_err());
        assert!(HOST.make_directory(ground.below("rw/c/deeper"), soon()).await.is_err());
        assert_eq!((mounts(), print(&victim)), (before, tree));
    });
}

/// A volume was read-only in the container's mount table, and writable for the guest.
#[test]
fn cve_2020_28914_a_read_only_volume_is_so_on_the_host() {
    on_ground(|ground| async move {
        let canary = ground.canary("volume");
        exported(&ground, "c").await;
        let request = attach(&ground, "ro/c", source(&canary).await, Access::ReadOnly);
        HOST.attach(request, soon()).await.unwrap();
        let view = ground.dir.join("ro/c");
        let written = fs::write(view.join("file"), "changed").unwrap_err();
        assert_eq!(written.raw_os_error(), Some(nix::libc::EROFS));
        assert!(fs::remove_file(view.join("file")).is_err() && fs::create_dir(view.join("new")).is_err());
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "untouched");
        fs::write(canary.join("file"), "the owner still may").unwrap();
    });
}

/// "Read-only" was a flag of the guest's own mount, which a container could change.
#[test]
fn cve_2026_46695_read_only_reaches_what_is_mounted_inside() {
    on_ground(|ground| async move {
        let canary = ground.canary("volume");
        let inner = canary.join("inner");
        mount(Some("none"), &inner, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(inner.join("file"), "untouched").unwrap();
        exported(&ground, "c").await;
        let request = attach(&ground, "ro/c", source(&canary).await, Access::ReadOnly);
        HOST.attach(request, soon()).await.unwrap();
        let inside = ground.dir.join("ro/c/inner");
        assert!(fs::write(inside.join("file"), "changed").is_err(), "the inner mount is read-only as well");
        let remounted = mount(None::<&str>, &inside, None::<&str>, MsFlags::MS_REMOUNT, None::<&str>);
        assert!(remounted.is_ok() || remounted.is_err(), "whatever the host's root does to its own view");
        assert_eq!(fs::read_to_string(inner.join("file")).unwrap(), "untouched");
        umount(&inner).unwrap();
    });
}

/// A container opened device nodes of the host through virtiofsd; set-id bits survived a create.
#[test]
fn cve_2020_35517_cve_2021_20263_cve_2022_0358_no_device_and_no_set_id_in_a_volume() {
    on_ground(|ground| async move {
        let canary = ground.canary("volume");
        let program = canary.join("program");
        fs::copy("/bin/true", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
        exported(&ground, "c").await;
        let request = attach(&ground, "ro/c", source(&canary).await, Access::ReadWrite);
        HOST.attach(request, soon()).await.unwrap();
        let node = ground.dir.join("ro/c/null");
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        nix::sys::stat::mknod(&node, kind, nix::sys::stat::Mode::S_IRUSR, nix::sys::stat::makedev(1, 3)).unwrap();
        assert_eq!(fs::read(&node).unwrap_err().raw_os_error(), Some(nix::libc::EACCES), "nodev");
        let flags = nix::sys::statvfs::statvfs(&ground.dir.join("ro/c")).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID), "{flags:?}");
        let own = nix::sys::statvfs::statvfs(&ground.dir.join("ro")).unwrap().flags();
        assert!(own.contains(nix::sys::statvfs::FsFlags::ST_RDONLY | nix::sys::statvfs::FsFlags::ST_NOSUID), "{own:?}");
    });
}

/// virtiofsd ran as root without its sandbox and without seccomp.
#[test]
fn cve_2026_47243_virtiofsd_is_started_and_found_in_its_sandbox_or_not_used() {
    on_ground(|ground| async move {
        let said = ground.root.join("arguments");
        let program = ground.root.join("virtiofsd");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --help ]; then echo '--shared-dir'; exit; fi\nprintf '%s\\n' \"$@\" > {}\n",
            said.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let start = StartDaemon {
            program,
            socket: ground.below("virtiofsd.sock"),
            shared_dir: ground.below("ro"),
            cache: sandbox_model::config::VirtioFsCache::Auto,
            tag: "pod/1".to_owned(),
        };
        assert!(HOST.start_daemon(start, Instant::now() + Duration::from_secs(5)).await.is_err(), "it never listened");
        let arguments = fs::read_to_string(said).unwrap();
        let words: Vec<_> = arguments.lines().collect();
        assert!(words.windows(2).any(|pair| pair == ["--sandbox", "namespace"]), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["--seccomp", "kill"]), "{words:?}");
        assert!(!words.contains(&"none"), "{words:?}");

        let mut naked = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = helper_process::identify(i32::try_from(naked.id()).unwrap()).unwrap();
        let verify = VerifyDaemon { process, handle: sandbox_model::Live::absent() };
        assert!(HOST.verify_daemon(verify, soon()).await.is_err(), "a process in no sandbox is no daemon");
        naked.kill().unwrap();
        naked.wait().unwrap();
    });
}

/// Between check and mount a source was replaced by a link (to `/dev/null`, to a console).
#[test]
fn cve_2025_31133_cve_2025_52565_what_was_opened_is_what_is_mounted() {
    on_ground(|ground| async move {
        let (canary, victim) = (ground.canary("volume"), ground.canary("victim"));
        exported(&ground, "c").await;
        let opened = source(&canary).await;
        fs::rename(&canary, ground.root.join("moved")).unwrap();
        symlink(&victim, &canary).unwrap();
        HOST.attach(attach(&ground, "ro/c", opened.clone(), Access::ReadWrite), soon()).await.unwrap();
        let seen = fs::metadata(ground.dir.join("ro/c")).unwrap();
        assert_eq!((seen.dev(), seen.ino()), (opened.inode.device, opened.inode.inode));
    });
}

/// A subPath was checked, and mounted after its parent had been replaced by a link out of the volume.
#[test]
fn cve_2021_25741_cve_2017_1002101_a_parent_that_is_swapped_later_changes_nothing() {
    on_ground(|ground| async move {
        let (canary, victim) = (ground.canary("volume"), ground.canary("victim"));
        exported(&ground, "c").await;
        let opened = source(&canary.join("inner")).await;
        fs::rename(&canary, ground.root.join("moved")).unwrap();
        symlink(&victim, &canary).unwrap();
        HOST.attach(attach(&ground, "ro/c", opened, Access::ReadWrite), soon()).await.unwrap();
        let seen = fs::metadata(ground.dir.join("ro/c")).unwrap().ino();
        assert_eq!(seen, fs::metadata(ground.root.join("moved/inner")).unwrap().ino());
        assert_ne!(seen, fs::metadata(victim.join("inner")).unwrap().ino());
    });
}

/// A parent of the mount target was exchanged for a link while the runtime was mounting.
#[test]
fn cve_2021_30465_cve_2019_19921_a_link_on_the_way_leads_nowhere() {
    on_ground(|ground| async move {
        let victim = ground.canary("victim");
        HOST.make_directory(ground.below("rw"), soon()).await.unwrap();
        HOST.make_directory(ground.below("rw/parent"), soon()).await.unwrap();
        plant(ground.dir.join("rw/parent"), &victim);
        let before = print(&victim);
        for path in ["rw/parent/new", "rw/parent/inner/new", "rw/parent/../../../victim/new", "../victim/new"] {
            assert!(HOST.make_directory(ground.below(path), soon()).await.is_err(), "{path}");
            assert!(HOST.make_file(ground.below(path), soon()).await.is_err(), "{path}");
        }
        for path in ["rw/parent/inner", "rw/parent/file", "rw/parent"] {
            let remove = |made| Remove { at: ground.below(path), made };
            assert!(HOST.remove_directory(remove(None), soon()).await.is_err(), "{path}");
            assert!(HOST.remove_file(remove(None), soon()).await.is_err(), "{path}");
        }
        assert_eq!(print(&victim), before);
    });
}

/// QEMU's 9p server resolved names of a guest by path, not by descriptor.
#[test]
fn cve_2016_9602_a_name_is_resolved_from_the_sandboxs_own_directory() {
    on_ground(|ground| async move {
        let victim = ground.canary("victim");
        let before = print(&ground.root);
        for path in ["/etc/new", "..", ".", "", "../../victim/new", "rw/../../../victim/new"] {
            let error = HOST.make_directory(ground.below(path), soon()).await.unwrap_err();
            assert_ne!(error.kind, ErrorKind::TimedOut, "{path:?}: {error}");
        }
        assert_eq!(print(&ground.root), before);
        assert!(victim.is_dir());
    });
}

/// The standard library's recursive removal followed a directory that was swapped for a link.
#[test]
fn cve_2022_21658_ghsa_mc8h_8q98_g5hr_nothing_is_removed_recursively() {
    on_ground(|ground| async move {
        let victim = ground.canary("victim");
        HOST.make_directory(ground.below("rw"), soon()).await.unwrap();
        let made = HOST.make_directory(ground.below("rw/c"), soon()).await.unwrap();
        symlink(&victim, ground.dir.join("rw/c/link")).unwrap();
        let before = print(&ground.root);
        let remove = Remove { at: ground.below("rw/c"), made: Some(made) };
        let error = HOST.remove_directory(remove, soon()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.cause.contains("link"), "it says who is in it: {error}");
        assert_eq!(print(&ground.root), before);
    });
}
