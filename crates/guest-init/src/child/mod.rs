//! Becoming a container's process.
//!
//! Executed by the agent with a socket, the gate, on which one [`Job`] comes in and reports go
//! out: `pid N` (the process, in the guest's numbers), `ready` (all is set up), `error TEXT`. The
//! process then waits for [`START`] and executes its program; the gate closes with it.
//!
//! There are two processes: the first enters the namespaces and forks, because a PID namespace
//! takes in only children; the second is the container's and outlives it.

#![expect(unsafe_code, reason = "fork, and adopting the inherited gate")]

mod credentials;
mod devices;
mod program;
mod rootfs;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use agent_protocol::oci::{self, LinuxNamespace, Spec};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Pid, fork, sethostname, setsid};
use protobuf::Message;

/// The first argument that selects this life.
pub(crate) const ARGUMENT: &str = "child";
/// What the agent sends to let the program run.
pub(crate) const START: &[u8] = b"\n";
/// Report: the number of the process follows.
pub(crate) const PID: &str = "pid ";
/// Report: set up, waiting for [`START`].
pub(crate) const READY: &str = "ready";
/// Report: a text follows.
pub(crate) const ERROR: &str = "error ";

/// What the new process is to become.
pub(crate) enum Job {
    /// The first process of a container.
    Create(Box<Spec>),
    /// One more process in the container of `target`.
    Exec {
        /// A process of the container, whose namespaces are joined.
        target: Pid,
        /// What to run.
        process: Box<oci::Process>,
    },
}

impl Job {
    /// The arguments that tell the two kinds apart.
    pub(crate) fn arguments(&self) -> Vec<String> {
        match self {
            Self::Create(_) => Vec::new(),
            Self::Exec { target, .. } => vec![target.to_string()],
        }
    }

    /// The message that follows on the gate.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Create(spec) => spec.write_to_bytes()?,
            Self::Exec { process, .. } => process.write_to_bytes()?,
        })
    }

    /// Whether the process wants a terminal.
    pub(crate) fn terminal(&self) -> bool {
        self.process().Terminal
    }

    fn decode(target: Option<Pid>, message: &[u8]) -> Result<Self> {
        Ok(match target {
            None => Self::Create(Box::new(Spec::parse_from_bytes(message)?)),
            Some(target) => {
                let process = Box::new(oci::Process::parse_from_bytes(message)?);
                Self::Exec { target, process }
            }
        })
    }

    fn process(&self) -> &oci::Process {
        match self {
            Self::Create(spec) => &spec.Process,
            Self::Exec { process, .. } => process,
        }
    }

    fn enter_namespaces(&self) -> Result<()> {
        match self {
            Self::Create(spec) => unshare_all(&spec.Linux.Namespaces),
            Self::Exec { target, .. } => join_all(*target),
        }
    }
}

/// Takes the job from the gate and does it; on success the second process never returns.
pub(crate) fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(2);
    let gate = arguments.next().context("no gate")?.parse()?;
    // SAFETY: the agent passes the number of a socket that nothing else in this program uses.
    let mut gate = unsafe { UnixStream::from_raw_fd(gate) };
    let target = match arguments.next() {
        Some(pid) => Some(Pid::from_raw(pid.parse()?)),
        None => None,
    };
    if let Err(error) = perform(target, &mut gate) {
        let text = format!("{error:#}").replace('\n', " ");
        writeln!(gate, "{ERROR}{text}")?;
        std::process::exit(1);
    }
    Ok(())
}

fn perform(target: Option<Pid>, gate: &mut UnixStream) -> Result<()> {
    let job = receive(target, gate)?;
    job.enter_namespaces()?;
    // SAFETY: this program has a single thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(writeln!(gate, "{PID}{child}")?),
        ForkResult::Child => become_process(&job, gate),
    }
}

fn receive(target: Option<Pid>, gate: &mut UnixStream) -> Result<Job> {
    let mut length = [0; 4];
    gate.read_exact(&mut length)?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    gate.read_exact(&mut message)?;
    Job::decode(target, &message).context("read the job")
}

fn become_process(job: &Job, gate: &mut UnixStream) -> Result<()> {
    let process = job.process();
    setsid().context("start a session")?;
    if process.Terminal {
        rustix::process::ioctl_tiocsctty(std::io::stdin()).context("take the terminal")?;
    }
    std::fs::write("/proc/self/oom_score_adj", process.OOMScoreAdj.to_string())
        .or_else(|error| if process.OOMScoreAdj == 0 { Ok(()) } else { Err(error) })
        .context("set the OOM score")?;
    if let Job::Create(spec) = job {
        if !spec.Hostname.is_empty() && has_namespace(spec, "uts") {
            sethostname(&spec.Hostname).context("set the host name")?;
        }
        rootfs::enter(spec)?;
    }
    let program = program::Program::prepare(process)?;
    writeln!(gate, "{READY}")?;
    gate.read_exact(&mut [0; START.len()]).context("wait for the start")?;
    program.execute(gate)
}

fn has_namespace(spec: &Spec, kind: &str) -> bool {
    spec.Linux.Namespaces.iter().any(|namespace| namespace.Type == kind)
}

/// Enters a new namespace of each kind that is listed, or the one whose path is given.
fn unshare_all(namespaces: &[LinuxNamespace]) -> Result<()> {
    // A container always has mounts of its own: its root is made by changing them.
    let mut new = CloneFlags::CLONE_NEWNS;
    for namespace in namespaces {
        let kind = match namespace.Type.as_str() {
            "pid" => CloneFlags::CLONE_NEWPID,
            "uts" => CloneFlags::CLONE_NEWUTS,
            "ipc" => CloneFlags::CLONE_NEWIPC,
            "cgroup" => CloneFlags::CLONE_NEWCGROUP,
            // The network is the guest's, for all containers of the pod.
            "mount" | "network" | "" => continue,
            other => bail!("a namespace of type `{other}` is not served by this guest"),
        };
        if namespace.Path.is_empty() {
            new |= kind;
        } else {
            let file = File::open(&namespace.Path).with_context(|| namespace.Path.clone())?;
            setns(file, kind).with_context(|| format!("join {}", namespace.Path))?;
        }
    }
    unshare(new).context("make namespaces")
}

fn join_all(target: Pid) -> Result<()> {
    let kinds = ["ipc", "uts", "cgroup", "pid", "mnt"];
    // All are opened before the mount namespace changes, and with it the meaning of /proc.
    let files = kinds
        .iter()
        .map(|kind| File::open(format!("/proc/{target}/ns/{kind}")))
        .collect::<Result<Vec<_>, _>>()
        .context("the container's process is gone")?;
    for (file, kind) in files.into_iter().zip(kinds) {
        setns(file, CloneFlags::empty()).with_context(|| format!("join the {kind} namespace"))?;
    }
    Ok(())
}
