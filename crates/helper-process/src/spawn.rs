//! Making the process: what it inherits is decided here, and nowhere else.
#![expect(unsafe_code, reason = "only code between fork and exec can decide which descriptors a child keeps")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::libc;
use rustix::io::fcntl_dupfd_cloexec;
use sandbox_model::ledger::ENTRY_ENV;
use sandbox_model::{ErrorKind, PassedFd, PortError, PortResult};

/// The lowest descriptor number that a child may be given: below are stdin, stdout and stderr.
const PASSED_MIN: RawFd = 3;
/// The highest.
const PASSED_MAX: RawFd = 255;

/// A helper as it shall be started.
///
/// It runs in a process group of its own (a terminal's Ctrl-C is not for it), in directory `/` (it
/// holds no mount busy), makes files for its owner only (umask 077), and gains no right by executing
/// another program.
///
/// It outlives us. Its stderr is a pipe that we read; when we are gone its writes to it fail, and do
/// neither block nor kill it, since SIGPIPE is ignored in it.
#[derive(Debug, Clone, Default)]
pub struct HelperSpec {
    /// The program: a path, or a name that is sought in `PATH`.
    pub program: PathBuf,
    /// Its arguments, without the program's name. Paths among them must be absolute.
    pub args: Vec<OsString>,
    /// Value of [`ENTRY_ENV`] in its environment: by this a later run of ours finds it.
    pub tag: String,
    /// What it inherits: a descriptor and its number in the child, 3 to 255.
    pub passed: Vec<(PassedFd, RawFd)>,
}

/// Forks and executes `spec`. Blocks until the exec has succeeded or failed (milliseconds).
pub(crate) fn spawn(spec: &HelperSpec) -> PortResult<Child> {
    let refused = |error: io::Error| PortError::os("exec", spec.program.display().to_string(), error);
    let passed = Passed::prepare(&spec.passed)?;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
        .env(ENTRY_ENV, &spec.tag)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let numbers = passed.numbers();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls
    // (umask, prctl, signal, close_range, dup2) on memory that was allocated before the fork.
    unsafe { command.pre_exec(move || inherit_only(&numbers)) };
    let child = command.spawn().map_err(refused)?;
    drop(passed);
    Ok(child)
}

/// The descriptors to pass, out of the way of the numbers that they shall get.
struct Passed {
    sources: Vec<(OwnedFd, RawFd)>,
    /// Occupies the numbers in this process, so that the pipe by which a failed exec is reported
    /// does not sit on one of them.
    _reserved: Vec<OwnedFd>,
}

impl Passed {
    fn prepare(passed: &[(PassedFd, RawFd)]) -> PortResult<Self> {
        let refused = |error: rustix::io::Errno| PortError::os("F_DUPFD_CLOEXEC", "a passed descriptor", error);
        let mut sources = Vec::new();
        let mut reserved = Vec::new();
        for (fd, number) in passed {
            if !(PASSED_MIN..=PASSED_MAX).contains(number) {
                return Err(invalid(*number, "is not between 3 and 255"));
            }
            if sources.iter().any(|(_, taken)| taken == number) {
                return Err(invalid(*number, "is asked for twice"));
            }
            let fd = fd.get().ok_or_else(|| invalid(*number, "has no live descriptor behind it"))?;
            sources.push((fcntl_dupfd_cloexec(fd, PASSED_MAX + 1).map_err(refused)?, *number));
            reserved.push(fcntl_dupfd_cloexec(fd, *number).map_err(refused)?);
        }
        Ok(Self { sources, _reserved: reserved })
    }

    fn numbers(&self) -> Vec<(RawFd, RawFd)> {
        self.sources.iter().map(|(source, number)| (source.as_raw_fd(), *number)).collect()
    }
}

fn invalid(number: RawFd, cause: &str) -> PortError {
    PortError::new(ErrorKind::Invalid, "exec", format!("descriptor number {number}"), cause)
}

/// Marks everything but stdin, stdout and stderr close-on-exec, then puts the passed descriptors
/// where the child expects them. Runs in the child: allocates nothing.
fn inherit_only(numbers: &[(RawFd, RawFd)]) -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: ignoring a signal installs no handler. It holds across the exec.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on descriptors of this child.
    let set = unsafe {
        libc::syscall(libc::SYS_close_range, PASSED_MIN as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    for (source, number) in numbers {
        // SAFETY: `source` is open; whatever sits on `number` belongs to this child alone.
        if unsafe { libc::dup2(*source, *number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
