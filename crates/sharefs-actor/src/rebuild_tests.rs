use std::sync::Arc;

use sandbox_model::SandboxId;
use sandbox_model::device::Access;
use sandbox_model::lifecycle::ActorName;

use super::*;

fn dir() -> SandboxDir {
    SandboxDir::new(Path::new("/run/r"), &SandboxId::new("p").unwrap())
}

fn entry(id: u64, scope: Scope, object: HostObject) -> Arc<Entry> {
    let identity = match &object {
        HostObject::Mount { .. } => Identity::Mount { mount_id: id },
        HostObject::Process { .. } => Identity::Process(ProcessIdentity { pid: 7, start_ticks: 8 }),
        HostObject::Hold { .. } => Identity::Named,
        _ => Identity::Inode { device: 1, inode: id },
    };
    Arc::new(Entry { id: EntryId(id), actor: ActorName::ShareFs, scope, object, identity: Some(identity) })
}

fn directory(id: u64, path: &str) -> Arc<Entry> {
    entry(id, Scope::Sandbox, HostObject::Directory { path: dir().root().join(path) })
}

fn of(name: &str) -> Scope {
    Scope::Container(ContainerId::new(name).unwrap())
}

/// Placeholder, mount and one holder of a volume, from three numbers on.
fn volume(id: u64, name: &str, inode: u64, holder: &str) -> Vec<Arc<Entry>> {
    let place = format!("passthrough/{name}");
    let shared = SharedSource { device: 1, inode, mount_id: 5, access: Access::ReadOnly };
    let target = dir().share_ro().join(&place);
    let mount = HostObject::Mount { target, source: "/srv".into(), shared: Some(shared) };
    vec![
        directory(id, &format!("rw/{place}")),
        entry(id + 1, Scope::Sandbox, mount),
        entry(id + 2, of(holder), HostObject::Hold { object: place }),
    ]
}

fn set_up() -> Vec<Arc<Entry>> {
    let socket = HostObject::File { path: dir().virtiofsd_socket() };
    let mount = HostObject::Mount { target: dir().share_ro(), source: "rw".into(), shared: None };
    vec![
        directory(1, "rw"),
        directory(2, "rw/passthrough"),
        directory(3, "rw/passthrough/sandbox-mounts"),
        directory(4, "ro"),
        entry(5, Scope::Sandbox, mount),
        entry(6, Scope::Sandbox, socket),
        entry(7, Scope::Sandbox, HostObject::Process { program: "virtiofsd".into() }),
    ]
}

#[test]
fn daemon_volumes_holders_and_root_file_systems_come_back() {
    let mut entries = set_up();
    entries.push(entry(8, of("a"), HostObject::Directory { path: dir().share_rw().join("passthrough/a") }));
    entries.push(entry(9, of("a"), HostObject::Directory { path: dir().share_rw().join("passthrough/a/rootfs") }));
    entries.extend(volume(10, "sandbox-0000000a-data", 70, "a"));
    entries.push(entry(20, of("b"), HostObject::Hold { object: "passthrough/sandbox-0000000a-data".into() }));
    let rebuilt = rebuild(&dir(), &entries).unwrap();
    let daemon = rebuilt.daemon.unwrap();
    assert_eq!(daemon.entries, (1..=7).map(EntryId).collect::<Vec<_>>());
    assert_eq!((daemon.process_entry, daemon.socket.inode), (EntryId(7), 6));
    assert_eq!(rebuilt.shares.count(), (1, 2));
    assert_eq!(rebuilt.rootfs, BTreeSet::from([ContainerId::new("a").unwrap()]));
    assert!(rebuilt.orphans.is_empty());
    let both = rebuilt.shares.last_holds(&[EntryId(20), EntryId(12)]);
    assert_eq!(both, BTreeMap::from([(EntryId(12), vec![EntryId(11), EntryId(10)])]), "newest first, as before");
}

#[test]
fn a_volume_that_is_not_whole_or_not_held_is_an_orphan() {
    let whole = volume(10, "sandbox-0000000a-data", 70, "a");
    let without =
        |n: usize| whole.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, e)| e.clone()).collect::<Vec<_>>();
    for (missing, orphans) in [(0, vec![11]), (1, vec![10]), (2, vec![10, 11])] {
        let rebuilt = rebuild(&dir(), &without(missing)).unwrap();
        assert_eq!(rebuilt.orphans.iter().map(|entry| entry.id.0).collect::<Vec<_>>(), orphans);
        assert_eq!(rebuilt.shares.count(), (0, 0));
    }
    let mut leaving = whole.clone();
    Arc::make_mut(&mut leaving[2]).identity = None;
    assert_eq!(rebuild(&dir(), &leaving).unwrap().orphans.len(), 2, "its last holder is about to go");
    let mut doubtful = whole.clone();
    Arc::make_mut(&mut doubtful[1]).identity = None;
    assert_eq!(rebuild(&dir(), &doubtful).unwrap().orphans.len(), 2);
    assert!(rebuild(&dir(), &set_up()[..6]).unwrap().daemon.is_none(), "no daemon, no shared directory");
}

#[test]
fn what_does_not_add_up_is_refused() {
    let mut twice = volume(10, "sandbox-0000000a-data", 70, "a");
    twice.extend(volume(20, "sandbox-0000000b-data", 70, "b"));
    assert!(rebuild(&dir(), &twice).is_err(), "one source under two names");
    let mut outside = volume(10, "sandbox-0000000a-data", 70, "a");
    if let HostObject::Mount { target, .. } = &mut Arc::make_mut(&mut outside[1]).object {
        *target = dir().share_ro().join("../../etc");
    }
    assert!(rebuild(&dir(), &outside).is_err());
    let strange = entry(1, Scope::Sandbox, HostObject::NetNamespace { path: "/n".into() });
    assert!(rebuild(&dir(), &[strange]).is_err());
}

#[test]
fn each_object_is_recognised_or_missed() {
    let entries = volume(10, "sandbox-0000000a-data", 70, "a");
    let seen = |inode, mount_id| Some(Seen { inode: Inode { device: 1, inode }, mount_id });
    let looked = |directory, mount| vec![(entries[0].clone(), directory), (entries[1].clone(), mount)];
    assert_eq!(confirm(&dir(), &looked(seen(10, 1), seen(70, 11))).unwrap(), 2);
    for (directory, mount) in
        [(None, seen(70, 11)), (seen(9, 1), seen(70, 11)), (seen(10, 1), seen(70, 12)), (seen(10, 1), None)]
    {
        assert!(confirm(&dir(), &looked(directory, mount)).is_err());
    }
    let hidden = vec![(directory(4, "ro"), seen(1, 5))];
    assert_eq!(confirm(&dir(), &hidden).unwrap(), 1, "the exported mount stands on it");
}
