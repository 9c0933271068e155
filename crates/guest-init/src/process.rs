//! A process of a container as the agent sees it: how it is made, fed, read and waited for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::kill;
use nix::unistd::{Pid, pipe2};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::cgroup::Cgroup;
use crate::child::{self, Job};
use crate::readiness;
use crate::reaper::{ExitWatch, Reaper};

/// A process that was prepared, and perhaps started.
pub(crate) struct Process {
    /// Its number in the guest's own PID namespace.
    pub(crate) pid: Pid,
    /// Its exit status, once there is one.
    pub(crate) exit: ExitWatch,
    /// Where the prepared process waits; gone once it is started.
    gate: Mutex<Option<BufReader<UnixStream>>>,
    stdin: Mutex<Option<Arc<Stream>>>,
    stdout: Arc<Stream>,
    /// A terminal has no standard error of its own.
    stderr: Option<Arc<Stream>>,
    terminal: bool,
}

impl Process {
    /// Makes a process that has everything but its program, which [`Process::start`] gives it.
    pub(crate) async fn prepare(job: &Job, cgroup: &Cgroup, reaper: &Reaper) -> Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let terminal = job.terminal();
        let (pipes, stdio) = if terminal { Pipes::terminal()? } else { Pipes::plain()? };
        let direct = spawn(job, &theirs, stdio)?;
        drop(theirs);
        cgroup.add(direct).context("join the container's cgroup")?;
        ours.set_nonblocking(true)?;
        let mut gate = BufReader::new(UnixStream::from_std(ours)?);
        let message = job.encode()?;
        gate.write_u32(u32::try_from(message.len())?).await?;
        gate.write_all(&message).await?;
        let (pid, exit) = until_ready(&mut gate, reaper).await?;
        Ok(Self {
            pid,
            exit,
            gate: Mutex::new(Some(gate)),
            stdin: Mutex::new(Some(pipes.stdin)),
            stdout: pipes.stdout,
            stderr: pipes.stderr,
            terminal,
        })
    }

    /// Lets the prepared process execute its program.
    pub(crate) async fn start(&self) -> Result<()> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut gate = gate.context("already started")?;
        gate.write_all(child::START).await?;
        // The gate closes when the program is executed; before that only a complaint comes.
        let mut complaint = String::new();
        gate.read_to_string(&mut complaint).await?;
        match complaint.trim().strip_prefix(child::ERROR) {
            None => Ok(()),
            Some(error) => bail!("{}", error.trim()),
        }
    }

    /// Whether the process is over.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for the end; the answer stays the same for ever.
    pub(crate) async fn wait(&self) -> Result<i32> {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await?;
        status.context("no exit status")
    }

    /// Sends a signal; a process that is over has nothing against it.
    ///
    /// Real-time signals, which have no name, are refused.
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        let number = i32::try_from(signal)?;
        let signal = nix::sys::signal::Signal::try_from(number).with_context(|| format!("signal {number}"))?;
        match kill(self.pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(anyhow!("signal {number} to {}: {error}", self.pid)),
        }
    }

    /// The stream behind standard output or standard error.
    pub(crate) fn output(&self, error: bool) -> Option<Arc<Stream>> {
        if error { self.stderr.clone() } else { Some(self.stdout.clone()) }
    }

    /// Standard input, unless it was closed.
    pub(crate) fn input(&self) -> Option<Arc<Stream>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends standard input.
    pub(crate) fn close_input(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Tells the terminal its size.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        if !self.terminal {
            bail!("the process has no terminal");
        }
        let size =
            Winsize { ws_row: u16::try_from(rows)?, ws_col: u16::try_from(columns)?, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.stdout.0.get_ref(), size)?)
    }
}

fn spawn(job: &Job, gate: &StdUnixStream, stdio: [OwnedFd; 3]) -> Result<Pid> {
    // Nothing else is spawned between here and the end of the function: there is one thread.
    fcntl(gate, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let [stdin, stdout, stderr] = stdio;
    let spawned = Command::new("/proc/self/exe")
        .args([child::ARGUMENT, &gate.as_raw_fd().to_string()])
        .args(job.arguments())
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .spawn()
        .context("execute the container's first stage")?;
    Ok(Pid::from_raw(i32::try_from(spawned.id())?))
}

/// Reads the two reports of a new process, which may come in either order.
async fn until_ready(gate: &mut BufReader<UnixStream>, reaper: &Reaper) -> Result<(Pid, ExitWatch)> {
    let (mut watched, mut ready) = (None, false);
    loop {
        let mut line = String::new();
        if gate.read_line(&mut line).await? == 0 {
            bail!("the container's process ended before it was ready");
        }
        let line = line.trim();
        if let Some(error) = line.strip_prefix(child::ERROR) {
            bail!("{}", error.trim());
        } else if let Some(pid) = line.strip_prefix(child::PID) {
            let pid = Pid::from_raw(pid.trim().parse()?);
            watched = Some((pid, reaper.watch(pid)));
        } else if line == child::READY {
            ready = true;
        }
        if ready && let Some(watched) = watched.take() {
            return Ok(watched);
        }
    }
}

/// The agent's ends of a process's streams.
struct Pipes {
    stdin: Arc<Stream>,
    stdout: Arc<Stream>,
    stderr: Option<Arc<Stream>>,
}

impl Pipes {
    fn plain() -> Result<(Self, [OwnedFd; 3])> {
        let (stdin, write) = pipe2(OFlag::O_CLOEXEC)?;
        let (read, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (read_error, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let pipes =
            Self { stdin: Stream::new(write)?, stdout: Stream::new(read)?, stderr: Some(Stream::new(read_error)?) };
        Ok((pipes, [stdin, stdout, stderr]))
    }

    fn terminal() -> Result<(Self, [OwnedFd; 3])> {
        let pty = openpty(None, None).context("open a terminal")?;
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        fcntl(&pty.slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let master = Stream::new(pty.master)?;
        let slaves = [pty.slave.try_clone()?, pty.slave.try_clone()?, pty.slave];
        Ok((Self { stdin: master.clone(), stdout: master, stderr: None }, slaves))
    }
}

/// One descriptor that is read or written without blocking the guest's only thread.
pub(crate) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    fn new(fd: OwnedFd) -> Result<Arc<Self>> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Arc::new(Self(readiness::register(fd)?)))
    }

    /// Waits for data; nothing means that there will be no more.
    pub(crate) async fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; limit];
        loop {
            let mut ready = self.0.readable().await?;
            let result = ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut buffer)?));
            let length = match result {
                Ok(Ok(length)) => length,
                // A terminal whose last user is gone says so by an error.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => 0,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => continue,
            };
            buffer.truncate(length);
            return Ok(buffer);
        }
    }

    /// Writes everything, however long the reader takes.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), data)?)) {
                data = &data[written?..];
            }
        }
        Ok(())
    }
}
