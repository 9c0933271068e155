//! The last steps before the program: limits, identity, directory, and finding it.

#![expect(unsafe_code, reason = "signal dispositions are set by number")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_protocol::oci::{POSIXRlimit, Process};
use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::execve;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::credentials;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that was found, and its arguments and environment.
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Takes on limits, directory and identity of the process, and finds its program.
    pub(super) fn prepare(process: &Process) -> Result<Self> {
        for limit in &process.Rlimits {
            set_limit(limit)?;
        }
        change_directory(&process.Cwd)?;
        credentials::assume(process)?;
        let name = process.Args.first().context("no program is given")?;
        let path = find(name, search_path(&process.Env))?;
        Ok(Self {
            path: CString::new(path.into_os_string().into_encoded_bytes())?,
            arguments: to_c_strings(&process.Args)?,
            environment: to_c_strings(&with_home(process))?,
        })
    }

    /// Becomes the program; returns only when that fails.
    pub(super) fn execute(&self, gate: &UnixStream) -> Result<()> {
        fcntl(gate, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the default disposition runs no code of ours. Rust programs ignore SIGPIPE, and
        // what is ignored stays so in a new program.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        execve(&self.path, &self.arguments, &self.environment)
            .with_context(|| format!("execute {}", self.path.to_string_lossy()))?;
        Ok(())
    }
}

fn change_directory(directory: &str) -> Result<()> {
    let directory = if directory.is_empty() { "/" } else { directory };
    ensure!(directory.starts_with('/'), "directory `{directory}` is not absolute");
    if std::env::set_current_dir(directory).is_err() {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
        std::env::set_current_dir(directory).with_context(|| format!("enter {directory}"))?;
    }
    Ok(())
}

fn search_path(environment: &[String]) -> &str {
    let given = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    given.unwrap_or(DEFAULT_PATH)
}

fn find(name: &str, path: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return Ok(name.into());
    }
    for directory in path.split(':').filter(|directory| !directory.is_empty()) {
        let candidate = Path::new(directory).join(name);
        if fs::metadata(&candidate).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0) {
            return Ok(candidate);
        }
    }
    bail!("no program `{name}` in {path}")
}

/// Shells misbehave without a home directory; nobody else need name one.
fn with_home(process: &Process) -> Vec<String> {
    let mut environment = process.Env.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", if process.User.UID == 0 { "/root" } else { "/" }));
    }
    environment
}

fn to_c_strings(strings: &[String]) -> Result<Vec<CString>> {
    Ok(strings.iter().map(|text| CString::new(text.as_str())).collect::<Result<_, _>>()?)
}

fn set_limit(limit: &POSIXRlimit) -> Result<()> {
    let resource = match limit.Type.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        other => bail!("resource limit `{other}` is not known"),
    };
    let bound = |value| (value != u64::MAX).then_some(value);
    let value = Rlimit { current: bound(limit.Soft), maximum: bound(limit.Hard) };
    setrlimit(resource, value).with_context(|| format!("set {}", limit.Type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_path_of_the_environment_is_searched() {
        let environment = ["PATH=/a".to_owned(), "X=1".to_owned(), "PATH=/b".to_owned()];
        assert_eq!(search_path(&environment), "/b");
        assert_eq!(search_path(&[]), DEFAULT_PATH);
    }

    #[test]
    fn a_program_is_found_in_the_path_or_not_at_all() {
        assert!(find("sh", DEFAULT_PATH).is_ok());
        assert!(find("no-such-program", DEFAULT_PATH).is_err());
        assert_eq!(find("./x", "").unwrap(), PathBuf::from("./x"));
    }
}
