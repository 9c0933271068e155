//! Groups and cpusets, as the ledger and the host have them after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use sandbox_model::ContainerId;
use sandbox_model::adopt::AdoptError;
use sandbox_model::ledger::{Entry, HostObject, Identity};
use sandbox_model::request::ResourceUpdate;

use crate::cpuset::{CpusetTable, Share};
use crate::host::Survey;
use crate::messages::CpusetOf;

/// The containers' parts: those that were kept and of which the ledger has the share, too. A share
/// without kept limits belongs to a step that was cut off.
///
/// # Errors
/// [`AdoptError::Contradiction`]: a kept list is none.
pub(crate) fn table(entries: &[Arc<Entry>], kept: &[CpusetOf]) -> Result<CpusetTable, AdoptError> {
    let shares: BTreeSet<&ContainerId> = entries
        .iter()
        .filter_map(|entry| match &entry.object {
            HostObject::ResourceShare { container } => Some(container),
            _ => None,
        })
        .collect();
    let mut table = CpusetTable::default();
    for CpusetOf { container, cpus, mems } in kept.iter().filter(|of| shares.contains(&of.container)) {
        let share = Share::parse(cpus.as_deref(), mems.as_deref());
        let share = share.map_err(|error| AdoptError::Contradiction { what: format!("of {container}: {error}") })?;
        table = table.with(container, share, ResourceUpdate::Add);
    }
    Ok(table)
}

/// Compares the directories that we made with those that are there, and counts what fits. Of a
/// parent that sandboxes share, another inode is another sandbox's work; of a group it is not.
///
/// # Errors
/// [`AdoptError`].
pub(crate) fn confirm(entries: &[Arc<Entry>], surveys: &[&Survey]) -> Result<usize, AdoptError> {
    let found = |survey: &&Survey| survey.group.directories.clone().into_iter().zip(survey.inodes.clone());
    let found: BTreeMap<PathBuf, Option<u64>> = surveys.iter().flat_map(found).collect();
    let (mut confirmed, mut lost) = (0, Vec::new());
    for entry in entries {
        let (paths, inodes) = match (&entry.object, &entry.identity) {
            (HostObject::ResourceShare { .. }, _) | (HostObject::Cgroup { .. }, None) => continue,
            (HostObject::Cgroup { paths }, Some(Identity::Inodes { inodes })) if inodes.len() == paths.len() => {
                (paths, inodes)
            }
            (HostObject::Cgroup { .. }, Some(_)) => {
                return Err(AdoptError::contradiction(entry, "has an identity that does not fit it"));
            }
            _ => return Err(AdoptError::strange(entry)),
        };
        let groups = || paths.iter().zip(inodes).filter(|(path, _)| found.contains_key(*path));
        let is_same = |(path, inode): (&PathBuf, &u64)| found.get(path) == Some(&Some(*inode));
        if groups().next().is_some() && groups().all(is_same) {
            confirmed += 1;
        } else {
            lost.push(&entry.object);
        }
    }
    AdoptError::unless_all(lost)?;
    Ok(confirmed)
}

#[cfg(test)]
mod tests {
    use sandbox_model::ledger::{EntryId, Scope};
    use sandbox_model::lifecycle::ActorName;

    use super::*;
    use crate::host::Group;

    fn entry(object: HostObject, identity: Option<Identity>) -> Arc<Entry> {
        Arc::new(Entry { id: EntryId(1), actor: ActorName::Cgroup, scope: Scope::Sandbox, object, identity })
    }

    fn group(inodes: &[u64]) -> Arc<Entry> {
        let paths = vec!["/c/joint".into(), "/c/joint/p".into()];
        entry(HostObject::Cgroup { paths }, Some(Identity::Inodes { inodes: inodes.to_vec() }))
    }

    fn survey(inode: Option<u64>) -> Survey {
        let group = Group { directories: vec!["/c/joint/p".into()], ..Group::default() };
        Survey { group, inodes: vec![inode], ..Survey::default() }
    }

    fn share(name: &str) -> Arc<Entry> {
        entry(HostObject::ResourceShare { container: ContainerId::new(name).unwrap() }, Some(Identity::Named))
    }

    fn kept(name: &str, cpus: &str) -> CpusetOf {
        CpusetOf { container: ContainerId::new(name).unwrap(), cpus: Some(cpus.into()), mems: None }
    }

    #[test]
    fn a_group_is_recognised_by_its_inode_and_its_joint_parent_is_not_asked() {
        assert_eq!(confirm(&[group(&[1, 2]), share("a")], &[&survey(Some(2))]).unwrap(), 1);
        for (what, entry, survey) in [
            ("another group", group(&[1, 3]), survey(Some(2))),
            ("no group", group(&[1, 2]), survey(None)),
            ("the host does not enforce it any more", group(&[1, 2]), Survey::default()),
            ("too few inodes", group(&[1]), survey(Some(2))),
        ] {
            assert!(confirm(&[entry], &[&survey]).is_err(), "{what}");
        }
        let intent = entry(HostObject::Cgroup { paths: vec![] }, None);
        assert_eq!(confirm(&[intent], &[]).unwrap(), 0, "a step's that was cut off");
    }

    #[test]
    fn a_part_counts_if_it_was_kept_and_is_in_the_ledger() {
        let entries = [share("a"), share("b"), share("new")];
        let kept = [kept("a", "0-1"), kept("b", "3"), kept("released", "5")];
        assert_eq!(table(&entries, &kept).unwrap().cpuset().cpus, "0-1,3");
        assert!(table(&entries, &[super::CpusetOf { cpus: Some("x".into()), ..kept[0].clone() }]).is_err());
    }
}
