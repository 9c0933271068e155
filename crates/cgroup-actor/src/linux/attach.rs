//! Moving processes and threads, setting cpusets, pinning.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::hierarchies::V1;
use cgroups_rs::fs::{Cgroup, Hierarchy, Subsystem};
use rustix::fs::{Mode, OFlags, fstatfs, open};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, PortError, PortResult};

use super::survey::is_cgroupfs;
use crate::host::{CgroupMode, Group, PinThreads, Place, SetCpuset};

/// What `cgroups-rs` refused, with the kernel's number if there is one.
fn refused(operation: &str, object: impl Into<String>, error: cgroups_rs::fs::error::Error) -> PortError {
    let object = object.into();
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => PortError::os(operation, object, io::Error::from_raw_os_error(errno)),
        None => PortError::new(ErrorKind::Refused, operation, object, error.to_string()),
    }
}

/// Writes to a file of a group that is there; never makes one. What is written to is the kernel's
/// and nothing that was mounted or linked over it.
pub(super) fn write(path: &Path, text: &str) -> PortResult<()> {
    let failed = |error| PortError::os(format!("write {text:?} to"), path.display().to_string(), error);
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    genuine(&file, path)?;
    File::from(file).write_all(text.as_bytes()).map_err(failed)
}

/// What a file of a group says.
pub(super) fn read(path: &Path) -> PortResult<String> {
    let read = std::fs::read_to_string(path);
    read.map(|text| text.trim().to_owned()).map_err(|error| PortError::os("read", path.display().to_string(), error))
}

/// Whether an open file or directory is of a cgroup file system.
fn genuine(file: &OwnedFd, path: &Path) -> PortResult<()> {
    let kind = fstatfs(file).map_err(|errno| PortError::os("fstatfs", path.display().to_string(), errno))?;
    if is_cgroupfs(&kind) {
        return Ok(());
    }
    Err(PortError::new(ErrorKind::Foreign, "write to", path.display().to_string(), "it is not of a cgroup file system"))
}

/// The process must still be the one meant, and the threads its own.
fn check(process: ProcessIdentity, threads: &[i32]) -> PortResult<()> {
    let object = format!("pid {}", process.pid);
    if helper_process::identify(process.pid)? != process {
        let cause = "another process has its pid now";
        return Err(PortError::new(ErrorKind::Foreign, "place in cgroup", object, cause));
    }
    let is_strange = |thread: &&i32| !Path::new(&format!("/proc/{}/task/{thread}", process.pid)).exists();
    match threads.iter().find(is_strange) {
        Some(thread) => {
            let cause = format!("{thread} is not a thread of it");
            Err(PortError::new(ErrorKind::NotFound, "place in cgroup", object, cause))
        }
        None => Ok(()),
    }
}

/// Where the hierarchies of v1 are.
fn v1(group: &Group) -> PortResult<&V1> {
    group.hierarchies.get().map(|v1| &**v1).ok_or_else(|| {
        let cause = "the message carries no hierarchies";
        PortError::new(ErrorKind::Invalid, "use cgroup", group.path.clone(), cause)
    })
}

/// The group's directory that has v1's cpuset in it, if there is one that we may write to.
pub(super) fn cpuset_on_v1(group: &Group) -> PortResult<Option<PathBuf>> {
    let subsystems = v1(group)?.subsystems();
    let cpuset = subsystems.iter().find(|subsystem| matches!(subsystem, Subsystem::CpuSet(_)));
    let directory = cpuset.map(|subsystem| subsystem.to_controller().path().join(&group.path));
    Ok(directory.filter(|directory| group.directories.contains(directory)))
}

/// The group's controllers on v1, those that we may write to.
fn on_v1(group: &Group, act: impl Fn(&Subsystem) -> PortResult<()>) -> PortResult<()> {
    let cgroup = Cgroup::load(Box::new(v1(group)?.clone()), &group.path);
    let mut done: Vec<PathBuf> = Vec::new();
    for subsystem in cgroup.subsystems() {
        let path = subsystem.to_controller().path().to_owned();
        // Controllers that are mounted together have one directory.
        if !done.contains(&path) && group.directories.contains(&path) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = open(&path, flags, Mode::empty());
            genuine(&directory.map_err(|errno| PortError::os("open", path.display().to_string(), errno))?, &path)?;
            act(subsystem)?;
            done.push(path);
        }
    }
    Ok(())
}

/// Moves a process or threads of it.
pub(super) fn place(request: &Place) -> PortResult<()> {
    let threads = request.threads.as_deref().unwrap_or_default();
    check(request.process, threads)?;
    let pid = |pid: i32| CgroupPid::from(u64::from(pid.unsigned_abs()));
    match (request.group.mode, &request.threads) {
        (CgroupMode::V1, None) => on_v1(&request.group, |subsystem| {
            let moved = subsystem.to_controller().add_task_by_tgid(&pid(request.process.pid));
            moved.map_err(|error| refused("place process in", place_name(subsystem), error))
        }),
        (CgroupMode::V1, Some(threads)) => on_v1(&request.group, |subsystem| {
            let controller = subsystem.to_controller();
            let moved = threads.iter().try_for_each(|thread| controller.add_task(&pid(*thread)));
            moved.map_err(|error| refused("place threads in", place_name(subsystem), error))
        }),
        (CgroupMode::V2, _) => {
            let text = request.process.pid.to_string();
            request.group.directories.iter().try_for_each(|group| write(&group.join("cgroup.procs"), &text))
        }
    }
    .map_err(|error| error.doubtful())
}

fn place_name(subsystem: &Subsystem) -> String {
    subsystem.to_controller().path().display().to_string()
}

/// Sets CPUs and memory nodes of a group.
pub(super) fn set_cpuset(request: &SetCpuset) -> PortResult<()> {
    let SetCpuset { group, cpuset } = request;
    // Nodes first: a group without nodes takes no task, and CPUs alone do not help it.
    let lists = [("cpuset.mems", &cpuset.mems), ("cpuset.cpus", &cpuset.cpus)];
    let on_v1 = |path: PathBuf| {
        lists.iter().try_for_each(|(file, list)| write(&path.join(file), &or_parents(&path, file, list)?))
    };
    let on_v2 = |path: &PathBuf| {
        lists.iter().try_for_each(|(file, list)| {
            // An empty line gives back what the parent has.
            match write(&path.join(file), &format!("{list}\n")) {
                // The controller does not reach the group: the survey told of it.
                Err(error) if error.is_absent() && path.is_dir() => Ok(()),
                written => written,
            }
        })
    };
    match group.mode {
        CgroupMode::V1 => cpuset_on_v1(group).and_then(|directory| directory.map_or(Ok(()), on_v1)),
        CgroupMode::V2 => group.directories.iter().try_for_each(on_v2),
    }
    .map_err(|error| error.doubtful())
}

/// On v1 a list cannot be emptied while tasks are in the group: "all" is what the parent has.
fn or_parents(group: &Path, file: &str, list: &str) -> PortResult<String> {
    if !list.is_empty() {
        return Ok(list.to_owned());
    }
    read(&group.parent().unwrap_or(group).join(file))
}

/// Sets on which CPUs threads may run.
pub(super) fn pin(request: &PinThreads) -> PortResult<()> {
    let threads: Vec<i32> = request.threads.iter().map(|(thread, _)| *thread).collect();
    check(request.process, &threads)?;
    for (thread, cpus) in &request.threads {
        let object = format!("thread {thread} of pid {}", request.process.pid);
        let mut set = CpuSet::new();
        let listed = cpus.iter().map(|cpu| *cpu as usize).filter(|cpu| *cpu < CpuSet::MAX_CPU);
        listed.for_each(|cpu| set.set(cpu));
        if cpus.is_empty() {
            // The kernel keeps only those of the thread's cpuset.
            (0..CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
        }
        sched_setaffinity(Pid::from_raw(*thread), &set)
            .map_err(|error| PortError::os("sched_setaffinity", object, error).doubtful())?;
    }
    Ok(())
}
