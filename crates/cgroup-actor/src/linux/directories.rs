//! Making and removing the groups' directories.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, lstat, mkdir, statfs, unlinkat};
use rustix::io::Errno;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};

use super::attach::{cpuset_on_v1, read, write};
use super::survey::{Hierarchies, is_cgroupfs};
use super::within;
use crate::host::{CgroupMode, MadeGroup, MakeGroup, RemoveGroup};

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
        CgroupMode::V1 => fill_cpuset(request, made)?,
        CgroupMode::V2 => pass_cpuset_on(request)?,
    }
    let inode = |path: &PathBuf| lstat(path).map(|facts| facts.st_ino).map_err(|error| failed("lstat", path, error));
    Ok(MadeGroup { inodes: request.missing.iter().map(inode).collect::<PortResult<_>>()? })
}

/// Paths to look for as plain text: comparing them part by part takes longer than making or removing
/// them.
fn texts<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<&'a OsStr> {
    paths.map(Path::as_os_str).collect()
}

fn make_all(request: &MakeGroup, made: &mut BTreeSet<PathBuf>) -> PortResult<()> {
    let leaves = texts(request.group.directories.iter().map(PathBuf::as_path));
    for path in &request.missing {
        let is_leaf = leaves.contains(path.as_os_str());
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
fn fill_cpuset(request: &MakeGroup, made: &BTreeSet<PathBuf>) -> PortResult<()> {
    let Some(leaf) = cpuset_on_v1(&request.group)? else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (list, empty) = inherited(&leaf, file, made)?;
        for group in empty.into_iter().rev() {
            write(&group.join(file), &list)?;
        }
    }
    Ok(())
}

/// What the nearest group above has, and the groups up to there, which have nothing. Those that we
/// have made need not be asked; a joint parent may be one that another sandbox is about to fill.
fn inherited<'a>(leaf: &'a Path, file: &str, made: &BTreeSet<PathBuf>) -> PortResult<(String, Vec<&'a Path>)> {
    let mut empty = Vec::new();
    for group in leaf.ancestors() {
        if !made.contains(group) {
            let list = read(&group.join(file))?;
            if !list.is_empty() {
                return Ok((list, empty));
            }
        }
        empty.push(group);
    }
    let cause = format!("no group above has a {file}");
    Err(PortError::new(ErrorKind::Refused, "fill cpuset of", leaf.display().to_string(), cause))
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
pub(super) async fn remove(
    hierarchies: Arc<OnceLock<Hierarchies>>,
    request: RemoveGroup,
    deadline: Instant,
) -> PortResult<()> {
    let patience = deadline.min(Instant::now() + EMPTY_PATIENCE);
    let mut pause = FIRST_PAUSE;
    loop {
        let (known, again) = (hierarchies.clone(), request.clone());
        let object = request.directories.first().map(|path| path.display().to_string()).unwrap_or_default();
        let call = move || Ok(remove_all(known.get_or_init(Hierarchies::find), &again));
        let attempt = within("rmdir", object, deadline, call).await?;
        let is_busy = attempt.iter().any(|(_, removal)| matches!(removal, Ok(Removal::Busy(_))));
        if !is_busy || Instant::now() + pause > patience {
            return verdict(attempt);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

fn remove_all(known: &Hierarchies, request: &RemoveGroup) -> Vec<(PathBuf, PortResult<Removal>)> {
    let mut removals = Vec::new();
    // What leads to another is listed itself.
    let parents = texts(request.directories.iter().filter_map(|path| path.parent()));
    for (n, path) in request.directories.iter().enumerate().rev() {
        let inode = request.inodes.as_ref().and_then(|inodes| inodes.get(n).copied());
        let is_parent = parents.contains(path.as_os_str());
        removals.push((path.clone(), remove_one(known, path, inode, is_parent)));
    }
    removals
}

fn remove_one(known: &Hierarchies, path: &Path, inode: Option<u64>, is_parent: bool) -> PortResult<Removal> {
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
    let is_group = match is_of_cgroups(known, path, &facts) {
        Ok(is_of_cgroups) => is_of_cgroups && FileType::from_raw_mode(facts.st_mode) == FileType::Directory,
        // Another sandbox has taken away the parent that both had, just now.
        Err(_) => return Ok(Removal::Absent),
    };
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

/// Whether a file is on a file system of cgroups; the error is that it has gone.
fn is_of_cgroups(known: &Hierarchies, path: &Path, facts: &Stat) -> Result<bool, Errno> {
    if known.has_device(facts.st_dev) {
        return Ok(true);
    }
    match statfs(path) {
        Err(Errno::NOENT) => Err(Errno::NOENT),
        found => Ok(found.is_ok_and(|found| is_cgroupfs(&found))),
    }
}

/// The processes in a group; a thread of one is enough.
fn processes(path: &Path) -> Vec<i32> {
    let listed = read(&path.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// All removals as one: every hierarchy's trouble is told.
fn verdict(removals: Vec<(PathBuf, PortResult<Removal>)>) -> PortResult<()> {
    let (mut trouble, mut kind, mut was_there) = (Vec::new(), None, false);
    for (path, removal) in removals.into_iter().rev() {
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
