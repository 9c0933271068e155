//! What the guest may see, as the ledger has it after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use sandbox_model::ContainerId;
use sandbox_model::adopt::AdoptError;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Identity, ProcessIdentity, Scope, SharedSource};

use crate::host::{Inode, Seen};
use crate::names::Place;
use crate::shares::Shares;

/// The shared directory and all that is in it.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) daemon: Option<LeftDaemon>,
    pub(crate) shares: Shares,
    pub(crate) rootfs: BTreeSet<ContainerId>,
    /// Parts of volumes that nobody holds, or that are not whole.
    pub(crate) orphans: Vec<Arc<Entry>>,
}

/// The daemon, with what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftDaemon {
    /// Of the shared directory, the sandbox's bind mounts, the socket and the daemon.
    pub(crate) entries: Vec<EntryId>,
    pub(crate) process: ProcessIdentity,
    pub(crate) process_entry: EntryId,
    pub(crate) socket: Inode,
}

/// The parts of one volume.
#[derive(Default)]
struct Parts<'a> {
    placeholder: Option<&'a Arc<Entry>>,
    mount: Option<(&'a Arc<Entry>, SharedSource)>,
    holds: Vec<(EntryId, ContainerId)>,
}

/// Rebuilds the actor's state from its live `entries`.
///
/// # Errors
/// [`AdoptError::Contradiction`].
pub(crate) fn rebuild(dir: &SandboxDir, entries: &[Arc<Entry>]) -> Result<Rebuilt, AdoptError> {
    let (rw, ro) = (dir.share_rw(), dir.share_ro());
    let mut rebuilt = Rebuilt::default();
    let mut volumes: BTreeMap<PathBuf, Parts<'_>> = BTreeMap::new();
    let (mut own, mut process, mut socket) = (Vec::new(), None, None);
    for entry in entries {
        match (&entry.object, &entry.scope) {
            // One that is about to be given back holds nothing.
            (HostObject::Hold { .. }, Scope::Container(_)) if entry.identity.is_none() => {}
            (HostObject::Hold { object }, Scope::Container(container)) => {
                volumes.entry(object.into()).or_default().holds.push((entry.id, container.clone()));
            }
            (HostObject::Mount { target, shared: Some(shared), .. }, Scope::Sandbox) => {
                let place = below(&ro, target, entry)?;
                volumes.entry(place).or_default().mount = Some((entry, *shared));
            }
            (HostObject::Directory { path } | HostObject::File { path }, Scope::Sandbox) if is_volume(&rw, path) => {
                let place = below(&rw, path, entry)?;
                volumes.entry(place).or_default().placeholder = Some(entry);
            }
            (HostObject::Directory { path }, Scope::Container(container)) => {
                if *path == rw.join(Place::container(container).path()) {
                    rebuilt.rootfs.insert(container.clone());
                }
            }
            (HostObject::Mount { .. } | HostObject::File { .. }, Scope::Container(_)) => {}
            (HostObject::File { path }, Scope::Sandbox) if *path == dir.virtiofsd_socket() => {
                socket = inode(entry);
                own.push(entry.id);
            }
            (HostObject::Process { .. }, Scope::Sandbox) => {
                if let Some(Identity::Process(identity)) = entry.identity {
                    process = Some((identity, entry.id));
                }
                own.push(entry.id);
            }
            (HostObject::Directory { .. } | HostObject::Mount { .. } | HostObject::File { .. }, Scope::Sandbox) => {
                own.push(entry.id);
            }
            _ => return Err(AdoptError::strange(entry)),
        }
    }
    rebuilt.daemon = process.zip(socket).map(|((process, process_entry), socket)| LeftDaemon {
        entries: own,
        process,
        process_entry,
        socket,
    });
    for (place, parts) in volumes {
        add(&mut rebuilt, Place::from_ledger(place), parts)?;
    }
    Ok(rebuilt)
}

/// A volume that is whole and held is offered again; of any other, the parts are orphans.
fn add(rebuilt: &mut Rebuilt, place: Place, parts: Parts<'_>) -> Result<(), AdoptError> {
    let Parts { placeholder, mount, holds } = parts;
    let is_made = |entry: &&Arc<Entry>| entry.identity.is_some();
    let whole = placeholder.filter(is_made).zip(mount.filter(|(entry, _)| is_made(entry)));
    let mut holds = holds.into_iter();
    match (whole, holds.next()) {
        (Some((placeholder, (mount, shared))), Some(first)) => {
            if rebuilt.shares.index().contains_key(&shared.into()) {
                return Err(AdoptError::contradiction(mount, "shows what another entry shows too"));
            }
            rebuilt.shares.add(place.clone(), shared.into(), vec![placeholder.id, mount.id], first);
            holds.for_each(|hold| rebuilt.shares.hold(&place, hold));
        }
        _ => rebuilt.orphans.extend(placeholder.into_iter().chain(mount.map(|(entry, _)| entry)).cloned()),
    }
    Ok(())
}

fn is_volume(rw: &Path, path: &Path) -> bool {
    path.strip_prefix(rw).is_ok_and(Place::is_volume)
}

fn below(dir: &Path, path: &Path, entry: &Entry) -> Result<PathBuf, AdoptError> {
    let relative = path.strip_prefix(dir).ok().filter(|relative| is_plain(relative));
    relative.map(Path::to_owned).ok_or_else(|| AdoptError::contradiction(entry, "lies outside of the shared directory"))
}

fn is_plain(relative: &Path) -> bool {
    relative.components().all(|component| matches!(component, Component::Normal(_)))
}

fn inode(entry: &Entry) -> Option<Inode> {
    match entry.identity {
        Some(Identity::Inode { device, inode }) => Some(Inode { device, inode }),
        _ => None,
    }
}

/// Where an entry's object is to be looked at; none for what has no path, or may not be there.
pub(crate) fn path_of(entry: &Entry) -> Option<&Path> {
    entry.identity.as_ref()?;
    match &entry.object {
        HostObject::Directory { path } | HostObject::File { path } | HostObject::Mount { target: path, .. } => {
            Some(path)
        }
        _ => None,
    }
}

/// Compares what is seen at each entry's path with what was made there, and counts what fits. The
/// exported directory hides the one below it, so that one is believed to be there.
///
/// # Errors
/// [`AdoptError::Unconfirmed`].
pub(crate) fn confirm(dir: &SandboxDir, looked_at: &[(Arc<Entry>, Option<Seen>)]) -> Result<usize, AdoptError> {
    let mut lost = Vec::new();
    for (entry, seen) in looked_at {
        let is_same = match (&entry.identity, seen) {
            (Some(Identity::Mount { mount_id }), Some(seen)) => seen.mount_id == *mount_id,
            (Some(Identity::Inode { device, inode }), Some(seen)) => {
                let is_hidden = path_of(entry) == Some(dir.share_ro().as_path());
                is_hidden || seen.inode == Inode { device: *device, inode: *inode }
            }
            _ => false,
        };
        if !is_same {
            lost.push(&entry.object);
        }
    }
    AdoptError::unless_all(lost)?;
    Ok(looked_at.len())
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
