//! I31 to I37: mounts, network, PCI functions.

use std::path::Path;

use sandbox_model::ledger::{HostObject, Identity, Record};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::Event;
use serde_json::Value;

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I31", says: "mounts are the ledger's, and a child goes before its parent", look: mounts_fit },
    Check { id: "I32", says: "a read-only volume is never attached writable", look: read_only_from_the_start },
    Check { id: "I35", says: "each guest path has one host path", look: paths_are_one_to_one },
    Check { id: "I36", says: "a redirected link has qdisc and filters, or neither", look: redirects_are_whole },
    Check { id: "I37", says: "a function goes back to the driver that it had", look: drivers_go_back },
];

/// I31: a mount that the ledger calls done is there with that identity; nothing is detached while
/// something is mounted below it.
fn mounts_fit(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    if let Event::Noted { record: Record::UndoIntent { entry }, refused: None, .. } = scene.event {
        memory.tried.insert(entry.0);
    }
    if let Some(call) = scene.called().filter(|call| call.is("share-fs-host", "detach") && call.reply().is_some()) {
        let at = call.request.get("at").ok_or("a mount without a place")?;
        let text = |name| at.get(name).and_then(Value::as_str).unwrap_or_default();
        let point = Path::new(text("dir")).join(text("path"));
        // One that could not be detached by itself goes along with its parent.
        let untried = scene.ledger.into_iter().flat_map(|table| table.entries()).find(|entry| match &entry.object {
            HostObject::Mount { target, .. } => {
                *target != point && target.starts_with(&point) && !memory.tried.contains(&entry.id.0)
            }
            _ => false,
        });
        if let Some(below) = untried {
            return Err(format!("{} is detached before {}", point.display(), below.object));
        }
    }
    let (Some(table), Event::Replied { .. }, false) = (scene.ledger, scene.event, scene.disk_lags) else {
        return Ok(());
    };
    for entry in table.entries() {
        let (HostObject::Mount { target, .. }, Some(Identity::Mount { mount_id })) = (&entry.object, &entry.identity)
        else {
            continue;
        };
        let found = scene.objects.get(&("mount", target.display().to_string()));
        if found.is_some_and(|found| found != mount_id) {
            return Err(format!("{} is mount {found:?}, and the ledger says {mount_id}", target.display()));
        }
    }
    Ok(())
}

/// I32: what a request calls read-only is attached read-only in one call, without a moment before.
fn read_only_from_the_start(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    match scene.event {
        Event::Received { place, message, request, .. }
            if place.actor == ActorName::ShareFs && matches!(message.as_str(), "ShareVolume" | "ShareRootfs") =>
        {
            let access = request.get("access").cloned().unwrap_or_default();
            memory.drivers.insert("access".to_owned(), access);
            Ok(())
        }
        _ => {
            let Some(call) = scene.called().filter(|call| call.is("share-fs-host", "attach")) else { return Ok(()) };
            let wanted = memory.drivers.get("access");
            match (call.request.get("access"), wanted) {
                (Some(given), Some(wanted)) if given != wanted => Err(format!("{given} was attached, not {wanted}")),
                _ => Ok(()),
            }
        }
    }
}

/// I35: no two entries name the same mount point.
fn paths_are_one_to_one(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    let Some(table) = scene.ledger.filter(|_| scene.has_changed && !scene.disk_lags) else { return Ok(()) };
    let mut targets = std::collections::BTreeSet::new();
    for entry in table.entries() {
        if let HostObject::Mount { target, .. } = &entry.object
            && !targets.insert(target)
        {
            return Err(format!("two mounts at {}", target.display()));
        }
    }
    Ok(())
}

/// I36: qdisc and filters come and go together.
fn redirects_are_whole(scene: &Scene<'_>, _: &mut Memory) -> Result<(), String> {
    if !scene.has_changed {
        return Ok(());
    }
    let marked: Vec<&str> = scene.ours("qdisc-cookie").filter_map(|name| name.split(' ').next()).collect();
    let bare = scene.ours("qdisc").find(|name| !marked.contains(name));
    match (bare, marked.len() == scene.ours("qdisc").count()) {
        (Some(name), _) => Err(format!("{name} has a qdisc without filters")),
        (None, false) => Err("there are filters without a qdisc".to_owned()),
        (None, true) => Ok(()),
    }
}

/// I37: the driver of before is asked for by name.
fn drivers_go_back(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Some(call) = scene.called().filter(|call| call.port == "device-host") else { return Ok(()) };
    match call.method {
        "vfio_group" => {
            let functions = call.reply().and_then(|reply| reply.get("functions")?.as_array());
            for function in functions.into_iter().flatten() {
                let (Some(bdf), Some(driver)) = (function.get("bdf").and_then(Value::as_str), function.get("driver"))
                else {
                    continue;
                };
                if driver.as_str() != Some("vfio-pci") {
                    memory.drivers.insert(bdf.to_owned(), driver.clone());
                }
            }
            Ok(())
        }
        "give_back_vfio" => {
            let bdf = call.request.get("bdf").and_then(Value::as_str).unwrap_or_default();
            match (memory.drivers.get(bdf), call.request.get("original_driver")) {
                (Some(had), Some(given)) if had != given => Err(format!("{bdf} had {had} and is given to {given}")),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
