//! Which hierarchies there are and what is missing in them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::hierarchies::{V1, is_cgroup2_unified_mode};
use cgroups_rs::fs::{Hierarchy, Subsystem};
use rustix::fs::{Access, FileType, Mode, OFlags, StatFs, access, fstat, fstatfs, lstat, open};
use rustix::io::Errno;
use sandbox_model::Live;

use super::directories::names_cpuset;
use crate::host::{CgroupMode, Group, GroupPath, Survey};

/// Where a v2-only host has its hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup";
/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP_MAGICS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// The hierarchies of a host.
#[derive(Debug)]
pub(super) struct Hierarchies {
    mode: CgroupMode,
    v1: Live<V1>,
    has_cpuset: bool,
    /// One for each mount: controllers that are mounted together share their directories.
    roots: Vec<Root>,
}

/// Where a hierarchy is mounted.
#[derive(Debug)]
struct Root {
    controller: String,
    path: PathBuf,
    /// Whether we may write there.
    entry: rustix::io::Result<()>,
    /// Its `st_dev`, if it is a cgroup file system. That is held, so that no other gets the number.
    device: Option<(u64, OwnedFd)>,
}

impl Root {
    fn new(controller: String, path: PathBuf) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = open(&path, flags, Mode::empty()).ok();
        let held = held.filter(|held| fstatfs(held).is_ok_and(|found| is_cgroupfs(&found)));
        let device = held.and_then(|held| Some((fstat(&held).ok()?.st_dev, held)));
        let entry = access(&path, Access::WRITE_OK);
        Self { controller, path, entry, device }
    }
}

/// Whether a file system is one of cgroups.
pub(super) fn is_cgroupfs(found: &StatFs) -> bool {
    CGROUP_MAGICS.contains(&found.f_type)
}

impl Hierarchies {
    /// The v2 hierarchy at `root`.
    pub(super) fn unified_at(root: PathBuf) -> Self {
        Self { mode: CgroupMode::V2, v1: Live::absent(), has_cpuset: true, roots: vec![Root::new("v2".into(), root)] }
    }

    /// Looks for them. For v1 that reads the whole table of mounts, which grows with every sandbox.
    pub(super) fn find() -> Self {
        if is_cgroup2_unified_mode() {
            return Self::unified_at(UNIFIED.into());
        }
        // A hybrid host, too: its controllers are where limits of the pod are.
        let v1 = V1::new();
        let mut mounted: Vec<_> = v1.subsystems().iter().map(|sub| (base(sub), sub.controller_name())).collect();
        let has_cpuset = mounted.iter().any(|(_, controller)| controller == "cpuset");
        mounted.sort_by(|a, b| a.0.cmp(&b.0));
        mounted.dedup_by(|a, b| a.0 == b.0);
        let roots = mounted.into_iter().map(|(path, controller)| Root::new(controller, path)).collect();
        Self { mode: CgroupMode::V1, v1: Live::new(v1), has_cpuset, roots }
    }

    /// Whether `st_dev` is that of one of them.
    pub(super) fn has_device(&self, device: u64) -> bool {
        self.roots.iter().any(|root| matches!(root.device, Some((known, _)) if known == device))
    }
}

/// What a group would be.
pub(super) fn survey(hierarchies: &Hierarchies, wanted: &GroupPath) -> Survey {
    Search::new(wanted, hierarchies).finish(hierarchies)
}

fn base(subsystem: &Subsystem) -> PathBuf {
    subsystem.to_controller().path().to_owned()
}

struct Search<'a> {
    wanted: &'a GroupPath,
    survey: Survey,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a GroupPath, hierarchies: &Hierarchies) -> Self {
        let (mode, v1) = (hierarchies.mode, hierarchies.v1.clone());
        let group = Group { path: wanted.path.clone(), directories: Vec::new(), mode, hierarchies: v1 };
        Self { wanted, survey: Survey { group, ..Survey::default() } }
    }

    fn finish(mut self, hierarchies: &Hierarchies) -> Survey {
        if hierarchies.roots.is_empty() {
            self.survey.not_enforced.push("this host has no cgroup hierarchy mounted".into());
        } else if !hierarchies.has_cpuset {
            self.survey.not_enforced.push("cpuset: it is not mounted as a v1 controller".into());
        }
        for root in &hierarchies.roots {
            self.hierarchy(root);
        }
        self.survey
    }

    fn hierarchy(&mut self, root: &Root) {
        let leaf = root.path.join(&self.wanted.path);
        let Way { mut missing, inode, holder, entry } = Way::to(&leaf, root);
        // Where something is made, we must be able to write; likewise in the group itself if it is there.
        if let Err(error) = entry {
            let reason = std::io::Error::from(error);
            self.survey.not_enforced.push(format!(
                "{}: {} is not writable: {reason}",
                root.controller,
                holder.display()
            ));
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
            let parent = leaf.parent().filter(|parent| is_below(parent, &root.path));
            let listed = [Some(leaf.as_path()), parent].into_iter().flatten();
            let added: Vec<_> = listed.filter(|path| !missing.contains(path)).collect();
            missing.extend(added);
        }
        self.survey.missing.extend(missing.into_iter().rev().map(Path::to_owned));
        self.survey.inodes.push(inode);
        self.survey.group.directories.push(leaf);
    }
}

fn is_below(path: &Path, root: &Path) -> bool {
    path.starts_with(root) && path != root
}

/// A file on the way to it is none, either: the making runs into that and says so.
fn is_absent(entry: &rustix::io::Result<()>) -> bool {
    matches!(entry, Err(Errno::NOENT | Errno::NOTDIR))
}

/// What there is of a group and of what leads to it.
struct Way<'a> {
    /// What is not there, the group first.
    missing: Vec<&'a Path>,
    /// `st_ino` of the group.
    inode: Option<u64>,
    /// The group, or what there is that is next to it.
    holder: &'a Path,
    /// Whether we may write there.
    entry: rustix::io::Result<()>,
}

impl<'a> Way<'a> {
    /// From its parent up: if that is missing so is the group, and need not be looked for.
    fn to(leaf: &'a Path, root: &'a Root) -> Self {
        let enter = |path: &Path| if path == root.path { root.entry } else { access(path, Access::WRITE_OK) };
        let mut missing = vec![leaf];
        let mut holder = leaf.parent().unwrap_or(&root.path);
        let mut entry = enter(holder);
        if !is_absent(&entry) {
            let found = lstat(leaf).ok();
            if let Some(found) = found.filter(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory) {
                return Self { missing: Vec::new(), inode: Some(found.st_ino), holder: leaf, entry: enter(leaf) };
            }
        }
        while is_absent(&entry) && is_below(holder, &root.path) {
            missing.push(holder);
            holder = holder.parent().unwrap_or(&root.path);
            entry = enter(holder);
        }
        Self { missing, inode: None, holder, entry }
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
        std::fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(missing("file/b/c", false), ["file/b", "file/b/c"], "which cannot be made");
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
