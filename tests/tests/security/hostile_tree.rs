//! What may lie in a tree that a guest or workload writes to (tests S2 and S3): names and kinds of
//! all sorts, and mounts of others. Nothing of it is followed, executed, waited for or removed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use lifecycle_tests::ground::{Ground, mounts, on_ground, print, soon};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use sandbox_model::device::Access;
use sandbox_model::{ErrorKind, PortResult};
use sharefs_actor::{Attach, Detach, Export, LinuxShareFsHost, Mounted, Remove, SetId, ShareFsHost};

const HOST: LinuxShareFsHost = LinuxShareFsHost;

/// Makes one of each in `tree`, and returns their names.
fn corpus(tree: &Path, victim: &Path) -> Vec<PathBuf> {
    let at = |name: &[u8]| tree.join(OsStr::from_bytes(name));
    symlink(victim, at(b"link")).unwrap();
    symlink("../../../../../../etc", at(b"link-up")).unwrap();
    symlink("link-loop", at(b"link-loop")).unwrap();
    fs::hard_link(victim.join("file"), at(b"hard-link")).unwrap();
    mkfifo(&at(b"fifo"), Mode::S_IRWXU).unwrap();
    drop(UnixListener::bind(at(b"socket")).unwrap());
    mknod(&at(b"null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
    mknod(&at(b"disk"), SFlag::S_IFBLK, Mode::S_IRWXU, makedev(7, 200)).unwrap();
    fs::create_dir(at(b"bound")).unwrap();
    mount(Some(victim), &at(b"bound"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    fs::create_dir(at(b"tmpfs")).unwrap();
    mount(Some("none"), &at(b"tmpfs"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(at(b"tmpfs/data"), "data").unwrap();
    fs::create_dir(at(&[b'x'; 255])).unwrap();
    for name in [&b"new\nline"[..], b"... ", b"-rf", b"\xff\xfe", b"tab\t", b"$(reboot)", b"\x1b[2J"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), "data").unwrap();
    }
    fs::read_dir(tree).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn detach_all(tree: &Path) {
    for name in ["bound", "tmpfs"] {
        umount2(&tree.join(name), MntFlags::MNT_DETACH).unwrap();
    }
}

async fn tree_of(ground: &Ground) -> PathBuf {
    for name in ["rw", "rw/c"] {
        HOST.make_directory(ground.below(name), soon()).await.unwrap();
    }
    ground.dir.join("rw/c")
}

/// Every call that could touch what is at a name, none of which made it.
async fn try_everything(ground: &Ground, name: &Path, source: &Path) -> Vec<(&'static str, PortResult<()>)> {
    let at = || ground.below(name);
    let opened = HOST.open_source(source.to_owned(), soon()).await.unwrap();
    let (access, set_id) = (Access::ReadWrite, SetId::Ignored);
    let detach = |mount_id| Detach { at: at(), mount_id, source: source.to_owned() };
    let made = sharefs_actor::Inode { device: 1, inode: 1 };
    vec![
        ("make_directory", HOST.make_directory(at(), soon()).await.map(drop)),
        ("make_file", HOST.make_file(at(), soon()).await.map(drop)),
        ("remove_directory of ours", HOST.remove_directory(Remove { at: at(), made: Some(made) }, soon()).await),
        ("remove_file of ours", HOST.remove_file(Remove { at: at(), made: Some(made) }, soon()).await),
        ("detach", HOST.detach(detach(None), soon()).await),
        ("detach of ours", HOST.detach(detach(Some(1)), soon()).await),
        ("attach", attach_and_back(ground, Attach { at: at(), source: opened, access, set_id }).await),
    ]
}

/// Attaches, and if that is possible, takes it away again.
async fn attach_and_back(ground: &Ground, request: Attach) -> PortResult<()> {
    let (at, source) = (request.at.clone(), request.source.path.clone());
    let Mounted { mount_id } = HOST.attach(request, soon()).await?;
    assert!(at.absolute().starts_with(&ground.dir));
    HOST.detach(Detach { at, mount_id: Some(mount_id), source }, soon()).await
}

#[test]
fn no_name_in_a_hostile_tree_leads_out_of_it() {
    on_ground(|ground| async move {
        let (victim, volume) = (ground.canary("victim"), ground.canary("volume"));
        let tree = tree_of(&ground).await;
        let names = corpus(&tree, &victim);
        assert!(names.len() >= 18, "{names:?}");
        let (before, mounted, outside) = (print(&tree), mounts(), (print(&victim), print(&volume)));
        for name in &names {
            let below = name.strip_prefix(&ground.dir).unwrap();
            for (call, outcome) in try_everything(&ground, below, &volume).await {
                let text = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
                let is_plain =
                    name.is_dir() && !name.is_symlink() && !name.ends_with("bound") && !name.ends_with("tmpfs");
                // Only to be mounted on and freed again is what a plain directory or file is good for.
                let may = call == "attach" && (is_plain || name.ends_with("hard-link") || !text.is_empty());
                assert!(outcome.is_err() || may, "{call} of {name:?} succeeded");
            }
        }
        assert_eq!((print(&tree), mounts()), (before, mounted));
        assert_eq!((print(&victim), print(&volume)), outside);
        detach_all(&tree);
    });
}

#[test]
fn what_is_no_directory_or_file_is_not_shared_and_not_waited_for() {
    on_ground(|ground| async move {
        let victim = ground.canary("victim");
        let tree = ground.root.join("tree");
        fs::create_dir(&tree).unwrap();
        corpus(&tree, &victim);
        for (name, kind) in [
            ("fifo", ErrorKind::Invalid),
            ("socket", ErrorKind::Invalid),
            ("null", ErrorKind::Invalid),
            ("disk", ErrorKind::Invalid),
            ("none", ErrorKind::NotFound),
        ] {
            let refused = HOST.open_source(tree.join(name), soon()).await.unwrap_err();
            assert_eq!(refused.kind, kind, "{name}: {refused}");
        }
        assert!(HOST.open_source(tree.join("link-loop"), soon()).await.is_err());
        assert!(HOST.open_source("relative".into(), soon()).await.is_err());
        detach_all(&tree);
    });
}

/// A directory that we made is swapped for another before it is removed.
#[test]
fn a_directory_that_was_swapped_after_it_was_made_stays() {
    on_ground(|ground| async move {
        let tree = tree_of(&ground).await;
        let made = HOST.make_directory(ground.below("rw/c/ours"), soon()).await.unwrap();
        fs::rename(tree.join("ours"), tree.join("moved")).unwrap();
        fs::create_dir(tree.join("ours")).unwrap();
        let remove = |name: &str| Remove { at: ground.below(name), made: Some(made) };
        let refused = HOST.remove_directory(remove("rw/c/ours"), soon()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Foreign, "{refused}");
        assert!(tree.join("ours").is_dir());
        HOST.remove_directory(remove("rw/c/moved"), soon()).await.unwrap();
    });
}

/// S3: the host's side of a share is cleaned up while a hostile tree and mounts of others are in it.
#[test]
fn a_clean_up_leaves_every_file_of_others_byte_for_byte() {
    on_ground(|ground| async move {
        let (victim, volume) = (ground.canary("victim"), ground.canary("volume"));
        corpus(&volume, &victim);
        let (inside, outside) = (print(&volume), print(&victim));
        for name in ["rw", "ro", "rw/c"] {
            HOST.make_directory(ground.below(name), soon()).await.unwrap();
        }
        let export = Export { from: ground.below("rw"), to: ground.below("ro") };
        let exported = HOST.export(export, soon()).await.unwrap();
        let source = HOST.open_source(volume.clone(), soon()).await.unwrap();
        let (at, access) = (ground.below("ro/c"), Access::ReadWrite);
        let attach = Attach { at: at.clone(), source, access, set_id: SetId::Ignored };
        let attached = HOST.attach(attach, soon()).await.unwrap();
        // Somebody mounts on top of ours, and inside of it.
        let place = ground.dir.join("ro/c");
        let foreign = place.join("inner");
        mount(Some(&victim), &foreign, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        mount(Some("none"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(place.join("file"), "a stranger's").unwrap();
        let detach = || Detach { at: at.clone(), mount_id: Some(attached.mount_id), source: volume.clone() };
        let refused = HOST.detach(detach(), soon()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Foreign, "another mount is on top: {refused}");
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "a stranger's");
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        HOST.detach(detach(), soon()).await.unwrap();
        let (at, source) = (ground.below("ro"), ground.dir.join("rw"));
        HOST.detach(Detach { at, mount_id: Some(exported.mount_id), source }, soon()).await.unwrap();
        for name in ["rw/c", "rw", "ro"] {
            HOST.remove_directory(Remove { at: ground.below(name), made: None }, soon()).await.unwrap();
        }
        assert_eq!((print(&volume), print(&victim)), (inside, outside));
        detach_all(&volume);
    });
}
