//! Throw-away namespaces: what is made in them vanishes with the last process in them, even after
//! `kill -9`.
//!
//! `main` calls [`enter`] before any thread exists: a process with threads cannot enter a user
//! namespace, and a thread that had been started before would stay outside.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::output::{Code, Failure};

/// Enters a mount, network and IPC namespace of our own, and a user namespace unless we are root,
/// and puts an empty tmpfs where sandboxes keep their state, not over what is `needed`.
///
/// # Errors
/// The kernel or a policy forbids it. Nothing on the host has changed: the process exits then.
pub(crate) fn enter(state_dir: &Path, needed: &[&Path]) -> Result<(), Failure> {
    let (user, group) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|errno| failed("unshare", errno))?;
    if !user.is_root() {
        // setgroups must be denied before a user without rights may map a group (user_namespaces(7)).
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {user} 1"))?;
        write("/proc/self/gid_map", &format!("0 {group} 1"))?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|errno| failed("make / private", errno))?;
    cover(state_dir, needed)
}

/// Nothing of ours may land on the host, so a tmpfs covers the state directory. By default it covers
/// all of `/run`: helpers keep their pid files there, and making a directory that does not exist would
/// already leave something behind. What is still needed below `/run` (a bundle, a namespace) stays
/// visible if the state directory exists and can be covered alone.
fn cover(state_dir: &Path, needed: &[&Path]) -> Result<(), Failure> {
    let run = Path::new("/run");
    let target = if state_dir.starts_with(run) && !needed.iter().any(|path| path.starts_with(run)) {
        run
    } else if state_dir.is_dir() {
        state_dir
    } else {
        let why = format!("{} does not exist, and making it would leave it behind", state_dir.display());
        let advice = "mkdir it first, or name another --state-dir that exists";
        return Err(Failure::early(Code::PRIVATE, "cannot hide the state directory", why, advice));
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0700"))
        .map_err(|errno| failed(&format!("mount tmpfs on {}", target.display()), errno))?;
    // The library uses no state directory that others may enter.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(|error| failed(&format!("mkdir {}", state_dir.display()), error))
}

fn write(path: &str, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| failed(&format!("write {text:?} to {path}"), error))
}

fn failed(operation: &str, cause: impl std::fmt::Display) -> Failure {
    let what = "cannot enter throw-away namespaces";
    Failure::early(
        Code::PRIVATE,
        what,
        format!("{operation}: {cause}"),
        "sandboxctl help E0402, or run as root with --host real",
    )
}
