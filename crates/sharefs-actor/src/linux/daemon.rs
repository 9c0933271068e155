//! virtiofsd: QEMU's (in C) and its successor in Rust, told apart by what they say of themselves.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use helper_process::{HelperProcess, HelperSpec, end_process, identify, is_alive};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chmodat, openat, statat, unlinkat};
use sandbox_model::config::VirtioFsCache;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};

use super::on_host;
use super::tree::{facts, open, refused};
use crate::host::{AdoptDaemon, AdoptedDaemon, Daemon, EndDaemon, StartDaemon, VerifyDaemon};

/// How long a daemon may take to end by itself; its guest is gone, so nothing waits to be written.
const TERM_GRACE: Duration = Duration::from_millis(500);
/// Where QEMU's daemon leaves a lock file for each socket, for ever.
const LOCK_DIR: &str = "/var/run/virtiofsd";

/// Which virtiofsd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    /// QEMU's, up to 7.2.
    C,
    /// virtio-fs/virtiofsd.
    Rust,
}

impl Flavour {
    /// Told from its `--help`.
    fn of(help: &str) -> Option<Self> {
        if help.contains("--shared-dir") {
            Some(Self::Rust)
        } else if help.contains("-o source=") {
            Some(Self::C)
        } else {
            None
        }
    }

    /// The whole command line. There is no way to add to it: every option is decided here.
    fn arguments(self, request: &StartDaemon) -> Vec<OsString> {
        let (socket, shared) = (request.socket.absolute(), request.shared_dir.absolute());
        let joined = |option: &str, path: &Path| {
            let mut argument = OsString::from(option);
            argument.push(path);
            argument
        };
        let cache = match (request.cache, self) {
            (VirtioFsCache::Never, Self::C) => "none",
            (VirtioFsCache::Never, Self::Rust) => "never",
            (VirtioFsCache::Auto, _) => "auto",
            (VirtioFsCache::Always, _) => "always",
        };
        match self {
            Self::C => vec![
                joined("--socket-path=", &socket),
                "-o".into(),
                joined("source=", &shared),
                "-o".into(),
                "sandbox=namespace".into(),
                "-o".into(),
                format!("cache={cache}").into(),
                "-f".into(),
            ],
            Self::Rust => vec![
                "--socket-path".into(),
                socket.into(),
                "--shared-dir".into(),
                shared.into(),
                "--sandbox".into(),
                "namespace".into(),
                "--seccomp".into(),
                "kill".into(),
                "--cache".into(),
                cache.into(),
            ],
        }
    }
}

/// Asks the program what it is.
async fn flavour(program: &Path, deadline: Instant) -> PortResult<Flavour> {
    let object = || program.display().to_string();
    let asked = tokio::process::Command::new(program)
        .arg("--help")
        .env_clear()
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout_at(deadline, asked)
        .await
        .map_err(|_| PortError::new(ErrorKind::TimedOut, "run --help of", object(), "no answer within the deadline"))?
        .map_err(|error| PortError::os("exec", object(), error))?;
    Flavour::of(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        let cause = "is no virtiofsd: its --help knows neither --shared-dir nor -o source=; check virtio_fs_daemon";
        PortError::new(ErrorKind::Unsupported, "start virtiofsd", object(), cause)
    })
}

pub(super) async fn start(request: StartDaemon, deadline: Instant) -> PortResult<Daemon> {
    if request.socket.absolute().as_os_str().len() > 107
        || request.shared_dir.absolute().as_os_str().as_encoded_bytes().contains(&b',')
    {
        let cause = "a socket's path has at most 107 bytes, and a directory that virtiofsd exports no comma";
        let object = request.socket.absolute().display().to_string();
        return Err(PortError::new(ErrorKind::Invalid, "start virtiofsd", object, cause));
    }
    let flavour = flavour(&request.program, deadline).await?;
    let spec = HelperSpec {
        program: request.program.clone(),
        args: flavour.arguments(&request),
        tag: request.tag.clone(),
        passed: Vec::new(),
    };
    let helper = actor_shell::to_its_end(Box::pin(HelperProcess::spawn(spec))).await?;
    match listening(&helper, &request, deadline).await {
        Ok(daemon) => Ok(daemon),
        Err(error) => {
            // Not left running while its entry waits for an undo, which will sweep up the rest.
            let _ = helper.kill().await;
            Err(error.doubtful())
        }
    }
}

async fn listening(helper: &HelperProcess, request: &StartDaemon, deadline: Instant) -> PortResult<Daemon> {
    let at = request.socket.clone();
    helper.wait_for_socket(&at.absolute(), deadline).await?;
    let socket = on_host("chmodat", at.absolute(), deadline, move || {
        let socket = open(&at)?;
        // Through the descriptor: what is at the name is a socket and no link to anything.
        let found = facts(&socket).map_err(refused("statx", &at))?;
        if found.kind != FileType::Socket {
            let object = at.absolute().display().to_string();
            return Err(PortError::new(ErrorKind::Foreign, "chmodat", object, "it is no socket"));
        }
        let by_descriptor = format!("/proc/self/fd/{}", socket.as_raw_fd());
        chmodat(CWD, by_descriptor, Mode::from_raw_mode(0o600), AtFlags::empty()).map_err(refused("chmodat", &at))?;
        Ok(found.inode)
    });
    Ok(Daemon { process: helper.identity(), socket: socket.await?, handle: Live::new(helper.clone()) })
}

pub(super) async fn adopt(request: AdoptDaemon, deadline: Instant) -> PortResult<AdoptedDaemon> {
    let helper = HelperProcess::adopt("virtiofsd", request.process, &request.tag, deadline).await?;
    Ok(AdoptedDaemon { handle: Live::new(helper) })
}

/// Both daemons shut themselves in when the VMM has connected, not before: to be asked after that.
pub(super) fn verify(request: &VerifyDaemon) -> PortResult<()> {
    let process = request.process;
    let fail =
        |kind, cause: String| Err(PortError::new(kind, "verify virtiofsd", format!("pid {}", process.pid), cause));
    if !is_alive(process) {
        let words = request.handle.get().map(|helper| helper.last_words()).unwrap_or_default();
        return fail(ErrorKind::PeerGone, format!("it has ended; last words: {words}"));
    }
    let ours = fs::read_link("/proc/thread-self/ns/mnt").ok();
    let family = family(process);
    let outside = |member: &&ProcessIdentity| {
        let theirs = fs::read_link(format!("/proc/{}/ns/mnt", member.pid)).ok();
        theirs.is_none() || theirs == ours
    };
    if let Some(member) = family.iter().find(outside) {
        return fail(
            ErrorKind::Unsupported,
            format!(
                "pid {} is not in a mount namespace of its own: it serves an untrusted guest and must be shut in. \
                 Run as root (CAP_SYS_ADMIN), or set shared_fs = \"none\"",
                member.pid
            ),
        );
    }
    if !family.iter().any(|member| seccomp_filters(member.pid)) {
        let cause = "it runs without a seccomp filter (Seccomp: 2 in /proc/PID/status): use a virtiofsd built with \
                     libseccomp, or set shared_fs = \"none\"";
        return fail(ErrorKind::Unsupported, cause.into());
    }
    Ok(())
}

fn seccomp_filters(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().filter_map(|line| line.strip_prefix("Seccomp:")).any(|mode| mode.trim() == "2")
}

/// A daemon and what it forked: both put the serving process into a pid namespace, as a child of the
/// one that was started.
fn family(process: ProcessIdentity) -> Vec<ProcessIdentity> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    std::iter::once(process).chain(pids.into_iter().filter_map(|pid| identify(pid).ok())).collect()
}

pub(super) async fn end(request: EndDaemon, deadline: Instant) -> PortResult<()> {
    let ended = match request.process.filter(|&process| is_alive(process)) {
        Some(process) => end_family(process, &request.tag, deadline).await,
        // The parent is gone or unknown; a child of it carries the same tag.
        None => end_process(None, &request.tag, TERM_GRACE, deadline).await,
    };
    if ended.as_ref().is_err_and(|error| !error.is_absent()) {
        return ended;
    }
    let socket = request.socket;
    on_host("unlinkat", socket.clone(), deadline, move || remove_lock(&socket)).await?;
    ended
}

async fn end_family(process: ProcessIdentity, tag: &str, deadline: Instant) -> PortResult<()> {
    // Listed before the parent ends: after that nothing leads to them but a scan.
    for member in family(process) {
        match end_process(Some(member), tag, TERM_GRACE, deadline).await {
            Err(error) if !error.is_absent() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// QEMU's daemon locks `LOCK_DIR/<socket path with dots for slashes>.pid` and never removes it.
fn remove_lock(socket: &Path) -> PortResult<()> {
    let Ok(holder) = openat(CWD, LOCK_DIR, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    let name = format!("{}.pid", socket.display().to_string().replace('/', "."));
    let Ok(stat) = statat(&holder, &name, AtFlags::SYMLINK_NOFOLLOW) else {
        return Ok(());
    };
    let owned = stat.st_uid == rustix::process::geteuid().as_raw();
    if !owned || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    unlinkat(&holder, &name, AtFlags::empty())
        .map_err(|errno| PortError::os("unlinkat", format!("{LOCK_DIR}/{name}"), errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Base, Below};

    fn request(cache: VirtioFsCache) -> StartDaemon {
        let below = |path: &str| Below { dir: "/run/s".into(), path: path.into(), base: Base::default() };
        StartDaemon {
            program: "virtiofsd".into(),
            socket: below("virtiofsd.sock"),
            shared_dir: below("ro"),
            cache,
            tag: "s/1".into(),
        }
    }

    #[test]
    fn each_flavour_is_told_the_same_in_its_own_words() {
        let words = |flavour: Flavour, cache| {
            let arguments = flavour.arguments(&request(cache));
            arguments.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            words(Flavour::C, VirtioFsCache::Never),
            "--socket-path=/run/s/virtiofsd.sock -o source=/run/s/ro -o sandbox=namespace -o cache=none -f"
        );
        assert_eq!(
            words(Flavour::Rust, VirtioFsCache::Auto),
            "--socket-path /run/s/virtiofsd.sock --shared-dir /run/s/ro --sandbox namespace --seccomp kill --cache auto"
        );
    }

    #[test]
    fn a_program_that_is_no_virtiofsd_is_not_started() {
        assert_eq!(Flavour::of("  -o source=PATH             shared directory tree"), Some(Flavour::C));
        assert_eq!(Flavour::of("      --shared-dir <SHARED_DIR>"), Some(Flavour::Rust));
        assert_eq!(Flavour::of("usage: true"), None);
    }
}
