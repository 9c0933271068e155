//! The share-fs actor on this kernel, with the virtiofsd of this host.
//!
//! Each test has a thread in a mount namespace of its own with a tmpfs for its files, so nothing it
//! mounts is seen elsewhere or left behind. They need root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use helper_process::is_alive;
use sandbox_model::ErrorKind;
use sandbox_model::device::Access::{self, ReadOnly, ReadWrite};
use sandbox_model::ledger::{EntryId, HostObject, Identity, Ledger, ProcessIdentity};
use sandbox_model::request::SandboxBindMount;
use sharefs_actor::{LinuxShareFsHost, ShareFsError, VerifyShare};
use support::Sandbox;

const DAEMON: &str = "/usr/lib/qemu/virtiofsd";
const GUEST: &str = "/run/kata-containers/shared/containers";

/// A place of its own: `state` for the sandbox, the rest for sources.
struct Ground {
    root: PathBuf,
}

impl Ground {
    fn source(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("canary"), "untouched").unwrap();
        path
    }

    /// The sandbox's id, and with it the tag of its daemon: no two tests may have the same, since
    /// each ends what carries its tag.
    fn id(&self) -> String {
        self.root.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new(Arc::new(LinuxShareFsHost), &self.root.join("state"), &self.id())
    }
}

fn canary(source: &Path) {
    assert_eq!(fs::read_to_string(source.join("canary")).unwrap(), "untouched");
}

/// Runs `test` in a mount namespace and runtime of its own, and holds it to leave no mount, no file
/// and no daemon.
fn on_ground<F: Future<Output = ()>>(test: impl FnOnce(Ground, Sandbox) -> F + Send + 'static) {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("root is needed")
    } else if !Path::new(DAEMON).exists() {
        Some("/usr/lib/qemu/virtiofsd is needed (package qemu-system-common)")
    } else {
        None
    };
    if let Some(missing) = missing {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    let outside = tempfile::Builder::new().prefix("share-").tempdir().unwrap();
    let root = outside.path().to_owned();
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(none, "/", none, private, none).unwrap();
        nix::mount::mount(Some("none"), &root, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
        let ground = Ground { root };
        let own = ground.root.join("state").join(ground.id());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&own).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let before = mountinfo();
            let sandbox = ground.sandbox();
            test(ground, sandbox).await;
            assert_eq!(mountinfo(), before, "mounts are as they were");
            assert_eq!(names(&own), Vec::<String>::new(), "no file is left");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Without ids, which are never used again.
fn mountinfo() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = |line: &str| line.split(' ').skip(2).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn set_up(sandbox: &Sandbox) {
    sandbox.ask(Sandbox::wish(DAEMON, vec![])).await.unwrap();
}

fn daemon(sandbox: &Sandbox) -> ProcessIdentity {
    let process = sandbox.ledger.live().into_iter().find_map(|entry| match entry.identity {
        Some(Identity::Process(process)) => Some(process),
        _ => None,
    });
    process.unwrap()
}

fn children(process: ProcessIdentity) -> Vec<ProcessIdentity> {
    let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid)).unwrap();
    text.split_whitespace().map(|pid| helper_process::identify(pid.parse().unwrap()).unwrap()).collect()
}

/// Does what a VMM does first; the daemon answers when it has shut itself in.
fn connect(sandbox: &Sandbox) -> UnixStream {
    let mut stream = UnixStream::connect(sandbox.dir.virtiofsd_socket()).unwrap();
    let get_features: Vec<u8> = [1u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    stream.write_all(&get_features).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    stream
}

/// The exported tree as the daemon serves it, in its mount namespace.
fn served(sandbox: &Sandbox, guest_path: &str) -> PathBuf {
    let serving = children(daemon(sandbox))[0];
    let relative = guest_path.strip_prefix(GUEST).unwrap();
    PathBuf::from(format!("/proc/{}/root{relative}", serving.pid))
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

const EROFS: Option<i32> = Some(30);

#[test]
fn the_guest_sees_what_it_may_and_writes_where_it_may() {
    on_ground(|ground, sandbox| async move {
        let (ro, rw, own) = (ground.source("ro"), ground.source("rw"), ground.source("own"));
        let file = ground.root.join("hosts");
        fs::write(&file, "127.0.0.1").unwrap();
        let bind = SandboxBindMount { source: own.clone(), access: ReadOnly };
        let device = sandbox.ask(Sandbox::wish(DAEMON, vec![bind])).await.unwrap();
        assert_eq!((device.tag.as_str(), device.queue_size), ("kataShared", 1024));
        let mode = fs::symlink_metadata(&device.socket).unwrap();
        assert!(mode.file_type().is_socket() && mode.mode() & 0o777 == 0o600);

        // One share before the VMM connects, the others after.
        let before = sandbox.ask(Sandbox::volume("a", &rw, "/data", ReadWrite)).await.unwrap();
        let _vmm = connect(&sandbox);
        let rootfs = sandbox.ask(Sandbox::rootfs("a", &rw, ReadWrite)).await.unwrap();
        assert_eq!(rootfs.guest_path, format!("{GUEST}/passthrough/a/rootfs"));
        let ro_root = sandbox.ask(Sandbox::rootfs("b", &ro, ReadOnly)).await.unwrap();
        let volume = sandbox.ask(Sandbox::volume("a", &ro, "/etc/x", ReadOnly)).await.unwrap();
        let single = sandbox.ask(Sandbox::volume("a", &file, "/etc/hosts", ReadWrite)).await.unwrap();

        let tree = |path: &str| served(&sandbox, path);
        for writable in [&before.guest_path, &rootfs.guest_path] {
            fs::write(tree(writable).join("new"), writable).unwrap();
            assert_eq!(fs::read_to_string(rw.join("new")).unwrap(), *writable);
        }
        for closed in [&volume.guest_path, &ro_root.guest_path, &format!("{GUEST}/passthrough/sandbox-mounts/own")] {
            assert_eq!(fs::read_to_string(tree(closed).join("canary")).unwrap(), "untouched");
            assert_eq!(errno(fs::write(tree(closed).join("new"), "")), EROFS, "{closed}");
        }
        fs::write(tree(&single.guest_path), "changed").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
        // Where mount points are made the guest can make, rename and remove nothing.
        assert_eq!(errno(symlink("/etc", tree(&format!("{GUEST}/passthrough/trap")))), EROFS);
        assert_eq!(errno(fs::rename(tree(&format!("{GUEST}/passthrough/a")), tree(&format!("{GUEST}/b")))), EROFS);

        sandbox.release().await;
        for source in [&ro, &rw, &own] {
            canary(source);
        }
        assert_eq!(names(&ro), ["canary"]);
    });
}

#[test]
fn the_daemon_is_shut_in_and_ends_with_its_children() {
    on_ground(|_, sandbox| async move {
        set_up(&sandbox).await;
        let parent = daemon(&sandbox);
        let open = sandbox.ask(VerifyShare {}).await.unwrap_err().to_string();
        assert!(open.contains("not in a mount namespace of its own") && open.contains("shared_fs"), "{open}");
        let _vmm = connect(&sandbox);
        sandbox.ask(VerifyShare {}).await.unwrap();
        let serving = children(parent);
        assert_eq!(serving.len(), 1);
        let snapshot = sandbox.actor.snapshot().borrow().clone();
        assert_eq!(snapshot.daemon.unwrap().process, parent);
        sandbox.release().await;
        assert!(!is_alive(parent) && !is_alive(serving[0]));
        let lock = sandbox.dir.virtiofsd_socket().display().to_string().replace('/', ".");
        assert!(!Path::new("/var/run/virtiofsd").join(format!("{lock}.pid")).exists());
    });
}

#[test]
fn an_orphan_of_the_daemon_is_found_by_its_tag() {
    on_ground(|_, mut sandbox| async move {
        set_up(&sandbox).await;
        let _vmm = connect(&sandbox);
        let (parent, serving) = (daemon(&sandbox), children(daemon(&sandbox))[0]);
        let parent = rustix::process::Pid::from_raw(parent.pid).unwrap();
        rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
        sandbox.restart(false);
        sandbox.release().await;
        assert!(!is_alive(serving));
    });
}

#[test]
fn a_daemon_that_ends_early_is_reported_with_its_last_words() {
    on_ground(|ground, sandbox| async move {
        let program = ground.root.join("virtiofsd");
        let script =
            "#!/bin/sh\n[ \"$1\" = --help ] && { echo ' -o source=PATH'; exit; }\necho no luck today >&2\nexit 3\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = sandbox.ask(Sandbox::wish(program.to_str().unwrap(), vec![])).await.unwrap_err().to_string();
        assert!(error.contains("exit status 3") && error.contains("no luck today"), "{error}");
        sandbox.release().await;

        let error = sandbox.ask(Sandbox::wish("/bin/true", vec![])).await.unwrap_err().to_string();
        assert!(error.contains("is no virtiofsd") && error.contains("virtio_fs_daemon"), "{error}");
        sandbox.release().await;
    });
}

#[test]
fn a_share_lives_as_long_as_its_last_holder() {
    on_ground(|ground, sandbox| async move {
        let data = ground.source("data");
        set_up(&sandbox).await;
        let before = sandbox.ledger.live().last().unwrap().id;
        let first = sandbox.ask(Sandbox::volume("a", &data, "/data", ReadOnly)).await.unwrap();
        let own = sandbox.newer_than(before);
        let mounts = mountinfo().len();
        let second = sandbox.ask(Sandbox::volume("b", &data, "/other", ReadOnly)).await.unwrap();
        assert_eq!((first.guest_path.clone(), mounts), (second.guest_path, mountinfo().len()));
        let writable = sandbox.ask(Sandbox::volume("b", &data, "/other", ReadWrite)).await.unwrap();
        assert_ne!(writable.guest_path, first.guest_path);

        // The step that made the share is rolled back while another container uses it.
        let report = sandbox.undo(own).await;
        assert_eq!(
            report.failed().map(|(_, error)| error.kind).collect::<Vec<_>>(),
            [ErrorKind::Busy, ErrorKind::Busy]
        );
        assert_eq!(mountinfo().len(), mounts + 1);
        assert!(sandbox.undo(sandbox.of_container("b")).await.is_clean());
        assert_eq!(mountinfo().len(), mounts - 1);

        let again = sandbox.ask(Sandbox::volume("c", &data, "/data", ReadOnly)).await.unwrap();
        assert_ne!(again.guest_path, first.guest_path, "a name is never used twice");
        sandbox.release().await;
        canary(&data);
    });
}

#[test]
fn a_fresh_actor_undoes_from_the_ledger_alone() {
    for forget in [false, true] {
        on_ground(move |ground, mut sandbox| async move {
            let data = ground.source("data");
            set_up(&sandbox).await;
            sandbox.ask(Sandbox::rootfs("a", &data, ReadWrite)).await.unwrap();
            sandbox.ask(Sandbox::volume("a", &data, "/data", ReadOnly)).await.unwrap();
            let process = daemon(&sandbox);
            sandbox.restart(forget);
            sandbox.release().await;
            assert!(!is_alive(process));
            canary(&data);
        });
    }
}

#[test]
fn what_a_guest_or_a_stranger_plants_is_left_alone() {
    on_ground(|ground, sandbox| async move {
        let (data, victim, foreign) = (ground.source("data"), ground.source("victim"), ground.source("foreign"));
        fs::create_dir(data.join("sub")).unwrap();
        set_up(&sandbox).await;
        let _vmm = connect(&sandbox);
        let rootfs = sandbox.ask(Sandbox::rootfs("a", &data, ReadWrite)).await.unwrap();
        let tree = served(&sandbox, &rootfs.guest_path);
        symlink(&victim, tree.join("rootfs")).unwrap();
        symlink("/", tree.join("passthrough")).unwrap();
        fs::hard_link(tree.join("canary"), tree.join("link")).unwrap();
        fs::write(tree.join("n".repeat(255)), "").unwrap();
        fs::write(tree.join("new\nline"), "").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        // The directory is renamed away and a symlink put in its place, as in CVE-2020-2024.
        fs::rename(tree.join("sub"), tree.join("moved")).unwrap();
        symlink("/", tree.join("sub")).unwrap();
        // Somebody mounts inside of the volume, where our mount shows it.
        let inside = sandbox.dir.share_ro().join("passthrough/a/rootfs/moved");
        nix::mount::mount(Some(&foreign), &inside, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        fs::write(inside.join("canary"), "untouched").unwrap();
        sandbox.release().await;
        for source in [&data, &victim, &foreign] {
            canary(source);
        }
        assert_eq!(names(&data.join("moved")), Vec::<String>::new());
        assert!(Path::new("/etc/passwd").exists());
    });
}

#[test]
fn a_mount_or_file_that_is_not_ours_is_not_undone() {
    on_ground(|ground, sandbox| async move {
        let (data, foreign) = (ground.source("data"), ground.source("foreign"));
        set_up(&sandbox).await;
        sandbox.ask(Sandbox::rootfs("a", &data, ReadWrite)).await.unwrap();
        let target = sandbox.dir.share_ro().join("passthrough/a/rootfs");
        nix::mount::mount(Some(&foreign), &target, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        let stray = sandbox.dir.share_rw().join("passthrough/a/stray");
        fs::write(&stray, "data").unwrap();
        let report = sandbox.undo(sandbox.of_container("a")).await;
        let failed: Vec<_> = report.failed().map(|(item, error)| (item.object.clone(), error.clone())).collect();
        assert_eq!(failed[0].1.kind, ErrorKind::Foreign, "{failed:#?}");
        let texts: Vec<_> = failed.iter().map(|(_, error)| error.to_string()).collect();
        assert!(texts.iter().any(|text| text.contains("stray")), "{texts:#?}");
        canary(&target);

        nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&stray).unwrap();
        sandbox.release().await;
        canary(&data);
        canary(&foreign);
    });
}

#[test]
fn a_source_that_cannot_be_shared_is_refused_by_name() {
    on_ground(|ground, sandbox| async move {
        let early = sandbox.ask(Sandbox::volume("a", "/etc", "/x", ReadOnly)).await;
        assert_eq!(early, Err(ShareFsError::NotSetUp));
        set_up(&sandbox).await;
        let last = sandbox.ledger.live().last().unwrap().id;
        let socket = sandbox.dir.virtiofsd_socket();
        let refused = async |path: &Path| {
            let volume = Sandbox::volume("a", path, "/x", Access::ReadOnly);
            sandbox.ask(volume).await.unwrap_err().to_string()
        };
        let missing = ground.root.join("nowhere");
        let text = refused(&missing).await;
        assert_eq!(text, format!("cannot share {}: No such file or directory (os error 2)", missing.display()));
        assert!(refused(&socket).await.contains("it is a socket"));
        assert!(refused(Path::new("/dev/null")).await.contains("it is a character device"));
        assert!(refused(Path::new("relative")).await.contains("not absolute"));
        let file = sandbox.ask(Sandbox::rootfs("a", "/etc/passwd", ReadOnly)).await.unwrap_err().to_string();
        assert!(file.contains("a root file system is a directory"), "{file}");
        assert_eq!(sandbox.newer_than(last), [], "nothing was made");

        // A symlink of the host's own is followed, once.
        let data = ground.source("data");
        symlink(&data, ground.root.join("current")).unwrap();
        sandbox.ask(Sandbox::rootfs("a", ground.root.join("current"), ReadOnly)).await.unwrap();
        let twice = sandbox.ask(Sandbox::rootfs("a", &data, ReadOnly)).await;
        assert!(matches!(twice, Err(ShareFsError::RootfsExists { .. })));
        sandbox.release().await;
    });
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    on_ground(|_, sandbox| async move {
        let root = sandbox.dir.root();
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = sandbox.ask(Sandbox::wish(DAEMON, vec![])).await.unwrap_err().to_string();
        assert!(error.contains("mode 700"), "{error}");
        assert!(sandbox.newer_than(EntryId(0)).is_empty());
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    });
}

#[test]
fn no_mount_of_ours_is_writable_for_an_instant_or_carries_devices() {
    on_ground(|ground, sandbox| async move {
        let data = ground.source("data");
        // A mount inside of the source comes along, and read-only as well.
        let inner = data.join("inner");
        fs::create_dir(&inner).unwrap();
        nix::mount::mount(Some("none"), &inner, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        set_up(&sandbox).await;
        sandbox.ask(Sandbox::volume("a", &data, "/data", ReadOnly)).await.unwrap();
        let ours: Vec<_> = sandbox
            .ledger
            .live()
            .into_iter()
            .filter_map(|entry| match &entry.object {
                HostObject::Mount { target, .. } => Some(target.clone()),
                _ => None,
            })
            .collect();
        let lines = mountinfo();
        for target in &ours {
            let line = lines.iter().find(|line| line.split(' ').nth(2) == target.to_str()).unwrap();
            assert!(line.contains(" ro,nosuid,nodev"), "{line}");
        }
        let inside = ours[1].join("inner");
        assert_eq!(errno(fs::write(inside.join("x"), "")), EROFS);
        assert!(!lines.iter().any(|line| line.contains("/rw/")), "the host's side carries no mount");
        sandbox.release().await;
        fs::write(inner.join("x"), "").unwrap();
        nix::mount::umount2(&inner, nix::mount::MntFlags::empty()).unwrap();
    });
}
