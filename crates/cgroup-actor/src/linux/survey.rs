//! Which hierarchies there are and what is missing in them.

use std::path::{Path, PathBuf};

use cgroups_rs::fs::hierarchies::{V1, is_cgroup2_unified_mode};
use cgroups_rs::fs::{Hierarchy, Subsystem};
use rustix::fs::{Access, access};
use sandbox_model::Live;

use super::directories::names_cpuset;
use crate::host::{CgroupMode, Group, GroupPath, Survey};

/// Where a v2-only host has its hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup";

/// The hierarchies of a host.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    mode: CgroupMode,
    v1: Live<V1>,
    /// Each controller and where its hierarchy is mounted.
    roots: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// The v2 hierarchy at `root`.
    pub(super) fn unified_at(root: PathBuf) -> Self {
        Self { mode: CgroupMode::V2, v1: Live::absent(), roots: vec![("v2".into(), root)] }
    }

    /// Looks for them. For v1 that reads the whole table of mounts, which grows with every sandbox.
    pub(super) fn find() -> Self {
        if is_cgroup2_unified_mode() {
            return Self::unified_at(UNIFIED.into());
        }
        // A hybrid host, too: its controllers are where limits of the pod are.
        let v1 = V1::new();
        let roots = v1.subsystems().iter().map(|sub| (sub.controller_name(), base(sub))).collect();
        Self { mode: CgroupMode::V1, v1: Live::new(v1), roots }
    }
}

/// What a group would be.
pub(super) fn survey(hierarchies: &Hierarchies, wanted: &GroupPath) -> Survey {
    let Hierarchies { mode, v1, roots } = hierarchies.clone();
    Search::new(wanted, mode, v1).finish(roots)
}

fn base(subsystem: &Subsystem) -> PathBuf {
    subsystem.to_controller().path().to_owned()
}

struct Search<'a> {
    wanted: &'a GroupPath,
    survey: Survey,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a GroupPath, mode: CgroupMode, hierarchies: Live<V1>) -> Self {
        let group = Group { path: wanted.path.clone(), directories: Vec::new(), mode, hierarchies };
        Self { wanted, survey: Survey { group, ..Survey::default() } }
    }

    fn finish(mut self, mut roots: Vec<(String, PathBuf)>) -> Survey {
        if roots.is_empty() {
            self.survey.not_enforced.push("this host has no cgroup hierarchy mounted".into());
        }
        let is_v1 = self.survey.group.mode == CgroupMode::V1 && !roots.is_empty();
        if is_v1 && !roots.iter().any(|(controller, _)| controller == "cpuset") {
            self.survey.not_enforced.push("cpuset: it is not mounted as a v1 controller".into());
        }
        // Controllers that are mounted together share their directories.
        roots.sort_by(|a, b| a.1.cmp(&b.1));
        roots.dedup_by(|a, b| a.1 == b.1);
        for (controller, root) in roots {
            self.hierarchy(&controller, &root);
        }
        self.survey
    }

    fn hierarchy(&mut self, controller: &str, root: &Path) {
        let leaf = root.join(&self.wanted.path);
        let is_below = |path: &&Path| path.starts_with(root) && *path != root;
        let mut missing: Vec<&Path> = leaf.ancestors().take_while(is_below).take_while(|path| !path.is_dir()).collect();
        // Where something is made, we must be able to write; likewise in the group itself if it is there.
        let holder = missing.last().and_then(|path| path.parent()).unwrap_or(&leaf);
        if let Err(error) = access(holder, Access::WRITE_OK) {
            let reason = std::io::Error::from(error);
            self.survey.not_enforced.push(format!("{controller}: {} is not writable: {reason}", holder.display()));
            return;
        }
        if self.survey.group.mode == CgroupMode::V2 {
            // v2 has the controller only where all above pass it on.
            let file = holder.join(if missing.is_empty() { "cgroup.controllers" } else { "cgroup.subtree_control" });
            if !std::fs::read_to_string(&file).is_ok_and(|list| names_cpuset(&list)) {
                self.survey.not_enforced.push(format!("cpuset: {} does not name it", file.display()));
            }
        }
        if self.wanted.joint_parent {
            // Our own names: a group that is there already is another sandbox's, and making it fails.
            let parent = leaf.parent().filter(is_below);
            let listed = [Some(leaf.as_path()), parent].into_iter().flatten();
            let added: Vec<_> = listed.filter(|path| !missing.contains(path)).collect();
            missing.extend(added);
        }
        self.survey.missing.extend(missing.into_iter().rev().map(Path::to_owned));
        self.survey.inodes.push(rustix::fs::lstat(&leaf).ok().map(|found| found.st_ino));
        self.survey.group.directories.push(leaf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_listed_parents_first_and_a_joint_parent_always() {
        let root = tempfile::tempdir().unwrap();
        let missing = |path: &str, joint_parent| {
            let wanted = GroupPath { path: path.into(), joint_parent };
            let survey = survey(&Hierarchies::unified_at(root.path().into()), &wanted);
            let relative = |path: PathBuf| path.strip_prefix(root.path()).unwrap().display().to_string();
            survey.missing.into_iter().map(relative).collect::<Vec<_>>()
        };
        assert_eq!(missing("a/b/c", false), ["a", "a/b", "a/b/c"]);
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        assert_eq!(missing("a/b/c", false), ["a/b/c"]);
        assert_eq!(missing("a/b", false), Vec::<String>::new());
        assert_eq!(missing("a/x", true), ["a", "a/x"]);
        assert_eq!(missing("a/b", true), ["a", "a/b"]);
    }

    #[test]
    fn a_cpuset_that_v2_does_not_pass_on_is_told() {
        let root = tempfile::tempdir().unwrap();
        let told = |path: &str| {
            let wanted = GroupPath { path: path.into(), joint_parent: false };
            survey(&Hierarchies::unified_at(root.path().into()), &wanted).not_enforced.len()
        };
        std::fs::write(root.path().join("cgroup.subtree_control"), "memory\n").unwrap();
        assert_eq!(told("a/b"), 1);
        std::fs::write(root.path().join("cgroup.subtree_control"), "cpuset memory\n").unwrap();
        assert_eq!(told("a/b"), 0);
        std::fs::create_dir(root.path().join("a")).unwrap();
        assert_eq!(told("a"), 1);
        std::fs::write(root.path().join("a/cgroup.controllers"), "cpuset\n").unwrap();
        assert_eq!(told("a"), 0);
    }
}
