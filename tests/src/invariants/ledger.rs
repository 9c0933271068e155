//! I7 to I14: what the ledger says and what is true.

use std::collections::BTreeSet;

use resource_actors::ledger::LedgerTable;
use resource_actors::trace::NEWS;
use sandbox_model::ledger::{Entry, HostObject, Identity, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::Event;

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I7", says: "what is shared has holders, and holders hold what is there", look: holds_fit },
    Check { id: "I9", says: "what exists is in the ledger", look: objects_are_recorded },
    Check { id: "I10", says: "records follow from those before them", look: records_follow },
    Check { id: "I12", says: "what is others' is untouched", look: strangers_are_untouched },
];

/// I7: a device, a binding and a shared volume exist exactly as long as somebody holds them; no
/// holder is of a container that is gone. Looked at when the supervisor has answered.
fn holds_fit(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let (Some(table), Event::Replied { place, message, .. }) = (scene.ledger, scene.event) else { return Ok(()) };
    let Some(handle) = scene.handle.filter(|_| !scene.disk_lags) else { return Ok(()) };
    if place.actor != ActorName::Supervisor || message == "Stop" || NEWS.contains(&message.as_str()) {
        return Ok(());
    }
    let vm_lives = scene.ours("process").any(|name| name.starts_with(scene.sandbox.as_str()));
    if !vm_lives || !matches!(handle.status().state, sandbox_model::lifecycle::LifecycleState::Running) {
        return Ok(());
    }
    let held: BTreeSet<&str> = table
        .entries()
        .filter_map(|entry| match &entry.object {
            HostObject::Hold { object } => Some(object.as_str()),
            _ => None,
        })
        .collect();
    let names: Vec<String> = table.entries().filter_map(held_name).collect();
    // What was let go of and could not be taken away is nobody's until the next release.
    let is_kept = |entry: &&Entry| !memory.tried.contains(&entry.id.0);
    let mut kept = table.entries().filter(is_kept).filter_map(held_name);
    if let Some(name) = kept.find(|name| !held.contains(name.as_str())) {
        return Err(format!("nobody holds {name}"));
    }
    let is_there =
        |hold: &&str| names.iter().any(|name| name == hold) || table.entries().any(|entry| is_part(entry, hold));
    match held.iter().find(|hold| !is_there(hold) && !is_bound_by_others(scene, hold)) {
        Some(hold) => Err(format!("{hold} is held and is not there")),
        None => Ok(()),
    }
}

/// What is known to be there and must be held.
fn held_name(entry: &Entry) -> Option<String> {
    entry.identity.as_ref()?;
    match &entry.object {
        HostObject::VmDevice { device, .. } => Some(device.to_string()),
        HostObject::VfioBinding { bdf, .. } => Some(bdf.clone()),
        _ => None,
    }
}

/// Whether it is a part of a share: its mount, or the placeholder below it.
fn is_part(entry: &Entry, place: &str) -> bool {
    let path = match &entry.object {
        HostObject::Mount { target, .. } => target,
        HostObject::Directory { path } | HostObject::File { path } => path,
        _ => return false,
    };
    entry.scope == Scope::Sandbox && path.ends_with(place)
}

fn is_bound_by_others(scene: &Scene<'_>, bdf: &str) -> bool {
    scene.baseline.contains_key(&("vfio-binding", bdf.to_owned()))
}

/// I9 (and I8): every object of ours has a record, which was written before the object was made. One
/// that is closed in the ledger does not exist any more.
fn objects_are_recorded(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    if !scene.has_changed {
        return Ok(());
    }
    let empty = LedgerTable::default();
    let recorded = recorded(scene, scene.ledger.unwrap_or(&empty));
    for key in scene.objects.keys().filter(|key| !scene.baseline.contains_key(*key)) {
        let (kind, name) = (key.0, key.1.as_str());
        if kind == "vm-device" && scene.vmm_lied {
            continue;
        }
        // A mark stands behind what it marks.
        let (kind, name) = match (kind, name.split_once(' ')) {
            ("tap-alias", Some((name, _))) => ("tap", name),
            ("qdisc-cookie", Some((name, _))) => ("qdisc", name),
            _ => (kind, name),
        };
        if !recorded.contains(&(kind, name.to_owned())) {
            return Err(format!("{kind} {name} exists and the ledger does not name it"));
        }
    }
    Ok(())
}

/// The world's names of what the ledger says may exist.
fn recorded(scene: &Scene<'_>, table: &LedgerTable) -> BTreeSet<(&'static str, String)> {
    let mut names = BTreeSet::new();
    let inode = |entry: &Entry, namespace: &std::path::Path| match entry.identity {
        Some(Identity::Link { namespace_inode, .. }) => namespace_inode,
        _ => scene.objects.get(&("netns", namespace.display().to_string())).copied().unwrap_or_default(),
    };
    for entry in table.entries() {
        match &entry.object {
            HostObject::Directory { path } => drop(names.insert(("directory", path.display().to_string()))),
            HostObject::File { path } => {
                names.insert(("file", path.display().to_string()));
                names.insert(("socket", path.display().to_string()));
            }
            HostObject::Mount { target, .. } => drop(names.insert(("mount", target.display().to_string()))),
            HostObject::NetNamespace { path } => drop(names.insert(("netns", path.display().to_string()))),
            HostObject::Tap { namespace, name, .. } => {
                names.insert(("tap", format!("{}/{name}", inode(entry, namespace))));
            }
            HostObject::IngressQdisc { namespace, link } => {
                names.insert(("qdisc", format!("{}/{link}", inode(entry, namespace))));
            }
            HostObject::Process { program } => {
                let tag = format!("{}/{}", scene.sandbox, entry.id.0);
                names.insert(("process", if program == "vmm" { tag } else { format!("{program} {tag}") }));
            }
            HostObject::Cgroup { paths } => {
                names.extend(paths.iter().map(|path| ("cgroup", path.display().to_string())));
            }
            HostObject::VmDevice { device, .. } => {
                names.insert(("vm-device", format!("{}/{device}", scene.sandbox)));
            }
            HostObject::VfioBinding { bdf, .. } => drop(names.insert(("vfio-binding", bdf.clone()))),
            HostObject::Hold { .. } | HostObject::ResourceShare { .. } => {}
        }
    }
    names
}

/// I10: an intent is answered once, an undo closes what is open, and nothing else is recorded. The
/// ledger on disk refuses a record that does not follow, so it is enough that it has taken each.
fn records_follow(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    use sandbox_model::ledger::Record;
    let (Some(table), Event::Noted { record, refused: None, .. }) = (scene.ledger, scene.event) else { return Ok(()) };
    if scene.disk_lags {
        return Ok(());
    }
    match record {
        Record::Intent { entry, .. } | Record::UndoIntent { entry } | Record::UndoFailed { entry, .. }
            if table.entry(*entry).is_none() =>
        {
            Err(format!("entry {entry} is not open on disk"))
        }
        Record::Done { entry, .. } if table.entry(*entry).is_none_or(|open| open.identity.is_none()) => {
            Err(format!("entry {entry} is not done on disk"))
        }
        Record::Undone { entry } | Record::Refused { entry } if table.entry(*entry).is_some() => {
            Err(format!("entry {entry} is still open on disk"))
        }
        _ => Ok(()),
    }
}

/// I12, I34: what others have made is there, and is the same.
fn strangers_are_untouched(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    if !scene.has_changed {
        return Ok(());
    }
    match scene.baseline.iter().find(|(key, identity)| scene.objects.get(*key) != Some(*identity)) {
        Some(((kind, name), _)) => Err(format!("{kind} {name}, a stranger's, is gone or is another")),
        None => Ok(()),
    }
}
