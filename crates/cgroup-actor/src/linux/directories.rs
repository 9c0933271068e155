//! Making and removing the groups' directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::{Cgroup, Subsystem};
use rustix::fs::{AtFlags, CWD, FileType, Mode, lstat, mkdir, statfs, unlinkat};
use rustix::io::Errno;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};

use super::attach::write;
use super::within;
use crate::host::{CgroupMode, MadeGroup, MakeGroup, RemoveGroup};

/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of linux/magic.h.
pub(super) const CGROUP_MAGICS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];
/// How often the making starts over because somebody removed the joint parent in between.
const MAKE_TRIES: usize = 3;
/// How long a group may take to become empty: a process that has been reaped is gone at once, one
/// that still runs must not hold up the rest of a clean-up.
const EMPTY_PATIENCE: Duration = Duration::from_secs(1);
/// First pause between two attempts; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

fn failed(operation: &str, path: &Path, error: impl Into<io::Error>) -> PortError {
    PortError::os(operation, path.display().to_string(), error)
}

/// Makes the directories, all or none: only here it is known beyond doubt which of them are ours.
pub(super) fn make(request: &MakeGroup) -> PortResult<MadeGroup> {
    let mut made = BTreeSet::new();
    fill(request, &mut made).map_err(|error| {
        let removed = made.iter().rev().map(|path| unlinkat(CWD, path, AtFlags::REMOVEDIR));
        // A parent that another sandbox uses by now is that sandbox's, too.
        let is_left = |removal: &_| !matches!(removal, Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY));
        // Counted, so that all are tried whatever becomes of one.
        if removed.filter(is_left).count() == 0 { error } else { error.doubtful() }
    })
}

fn fill(request: &MakeGroup, made: &mut BTreeSet<PathBuf>) -> PortResult<MadeGroup> {
    let mut tries = 0;
    while let Err(error) = make_all(request, made) {
        tries += 1;
        // Another sandbox was the last to use the parent, and removed it.
        let was_removed = error.is_absent() && request.joint_parent;
        if !was_removed || tries == MAKE_TRIES {
            return Err(error);
        }
    }
    match request.group.mode {
        CgroupMode::V1 => prepare_cpuset(request)?,
        CgroupMode::V2 => pass_cpuset_on(request)?,
    }
    let inode = |path: &PathBuf| lstat(path).map(|facts| facts.st_ino).map_err(|error| failed("lstat", path, error));
    Ok(MadeGroup { inodes: request.missing.iter().map(inode).collect::<PortResult<_>>()? })
}

fn make_all(request: &MakeGroup, made: &mut BTreeSet<PathBuf>) -> PortResult<()> {
    for path in &request.missing {
        let is_leaf = request.group.directories.contains(path);
        match mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                made.insert(path.clone());
            }
            // Another sandbox's work, or that of the attempt before.
            Err(Errno::EXIST) if request.joint_parent && (!is_leaf || made.contains(path)) => {}
            Err(error) => return Err(failed("mkdir", path, error)),
        }
    }
    Ok(())
}

/// A controller reaches a group of v2 only if each ancestor passes it on. Those that we made do; what
/// others made stays as it is, and the survey told of it.
fn pass_cpuset_on(request: &MakeGroup) -> PortResult<()> {
    let is_parent = |path: &&PathBuf| !request.group.directories.contains(path);
    for parent in request.missing.iter().filter(is_parent) {
        let has_it = std::fs::read_to_string(parent.join("cgroup.controllers")).is_ok_and(|list| names_cpuset(&list));
        if has_it {
            let file = parent.join("cgroup.subtree_control");
            write(&file, "+cpuset")?;
        }
    }
    Ok(())
}

/// Whether a list of v2's controllers has `cpuset` in it.
pub(super) fn names_cpuset(list: &str) -> bool {
    list.split_whitespace().any(|controller| controller == "cpuset")
}

/// A new cpuset group of v1 is empty and takes no task: it gets what its parent has.
fn prepare_cpuset(request: &MakeGroup) -> PortResult<()> {
    let Some(v1) = request.group.hierarchies.get() else { return Ok(()) };
    let group = Cgroup::load(Box::new((**v1).clone()), &request.group.path);
    for subsystem in group.subsystems() {
        let controller = subsystem.to_controller();
        if matches!(subsystem, Subsystem::CpuSet(_)) && request.group.directories.iter().any(|d| d == controller.path())
        {
            let refused = |cause: String| {
                let group = controller.path().display().to_string();
                PortError::new(ErrorKind::Refused, "fill cpuset of", group, cause)
            };
            controller.create().map_err(|error| refused(error.to_string()))?;
            // It only logs what it could not copy.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let list = std::fs::read_to_string(controller.path().join(file));
                if list.map_err(|error| refused(error.to_string()))?.trim().is_empty() {
                    return Err(refused(format!("{file} could not be taken over from its parent")));
                }
            }
        }
    }
    Ok(())
}

/// What became of one directory.
#[derive(Debug)]
enum Removal {
    Removed,
    Absent,
    /// A parent that others use.
    Left,
    /// Not empty: with the processes in it.
    Busy(Vec<i32>),
}

/// Removes the directories, children first, each group when it has become empty.
pub(super) async fn remove(request: RemoveGroup, deadline: Instant) -> PortResult<()> {
    let patience = deadline.min(Instant::now() + EMPTY_PATIENCE);
    let mut pause = FIRST_PAUSE;
    loop {
        let again = request.clone();
        let object = request.directories.first().map(|path| path.display().to_string()).unwrap_or_default();
        let attempt = within("rmdir", object, deadline, move || Ok(remove_all(&again))).await?;
        let is_busy = attempt.values().any(|removal| matches!(removal, Ok(Removal::Busy(_))));
        if !is_busy || Instant::now() + pause > patience {
            return verdict(attempt);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

fn remove_all(request: &RemoveGroup) -> BTreeMap<PathBuf, PortResult<Removal>> {
    let mut removals = BTreeMap::new();
    for (n, path) in request.directories.iter().enumerate().rev() {
        let inode = request.inodes.as_ref().and_then(|inodes| inodes.get(n).copied());
        let is_parent = request.directories.iter().any(|other| other != path && other.starts_with(path));
        removals.insert(path.clone(), remove_one(path, inode, is_parent));
    }
    removals
}

fn remove_one(path: &Path, inode: Option<u64>, is_parent: bool) -> PortResult<Removal> {
    let facts = match lstat(path) {
        Ok(facts) => facts,
        Err(Errno::NOENT) => return Ok(Removal::Absent),
        Err(error) => return Err(failed("lstat", path, error)),
    };
    // A parent that went and came back belongs to a sandbox that is still there.
    let is_same = inode.is_none_or(|inode| inode == facts.st_ino);
    if !is_same && is_parent {
        return Ok(Removal::Left);
    }
    let is_on_cgroups = match statfs(path) {
        Ok(fs) => CGROUP_MAGICS.contains(&fs.f_type),
        // Another sandbox has taken away the parent that both had, just now.
        Err(Errno::NOENT) => return Ok(Removal::Absent),
        Err(_) => false,
    };
    let is_group = is_on_cgroups && FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
    if !is_same || !is_group {
        let cause = "it is not the group that was made here";
        return Err(PortError::new(ErrorKind::Foreign, "rmdir", path.display().to_string(), cause));
    }
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(Removal::Removed),
        Err(Errno::NOENT) => Ok(Removal::Absent),
        Err(Errno::BUSY | Errno::NOTEMPTY) if is_parent => Ok(Removal::Left),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(Removal::Busy(processes(path))),
        Err(error) => Err(failed("rmdir", path, error)),
    }
}

/// The processes in a group; a thread of one is enough.
fn processes(path: &Path) -> Vec<i32> {
    let listed = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// All removals as one: every hierarchy's trouble is told.
fn verdict(removals: BTreeMap<PathBuf, PortResult<Removal>>) -> PortResult<()> {
    let (mut trouble, mut kind, mut was_there) = (Vec::new(), None, false);
    for (path, removal) in removals {
        match removal {
            Ok(Removal::Absent | Removal::Left) => {}
            Ok(Removal::Removed) => was_there = true,
            Ok(Removal::Busy(pids)) => {
                let inside = if pids.is_empty() { "groups of others".into() } else { format!("processes {pids:?}") };
                trouble.push(format!("{} still holds {inside}", path.display()));
                kind.get_or_insert(ErrorKind::Busy);
            }
            Err(error) => {
                kind.get_or_insert(error.kind);
                trouble.push(error.to_string());
            }
        }
    }
    match kind {
        Some(kind) => Err(PortError::new(kind, "remove", "cgroup", trouble.join("; "))),
        None if was_there => Ok(()),
        None => Err(PortError::new(ErrorKind::NotFound, "remove", "cgroup", "all its directories are gone")),
    }
}
