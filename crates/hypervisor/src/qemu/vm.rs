//! A running QEMU: its process, its control channel, its console.
//!
//! Nothing here changes after the start, so everybody may use it at once: what there is to order is
//! ordered by QMP, one command at a time.

use std::os::fd::OwnedFd;
use std::time::Duration;

use helper_process::{HelperExit, HelperProcess, HelperSpec, LastWords};
use sandbox_model::{ErrorKind, Instant, Outcome, PassedFd, PortError, PortResult};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{timeout, timeout_at};

use super::command_line::{CONSOLE_FD, Executor, QMP_FD, arguments};
use super::qmp::{Command, Qmp};
use crate::{StartVm, VmExit, VmSpec};

/// How long a QEMU that closed its control channel may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// One QEMU.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) process: HelperProcess,
    pub(super) qmp: Qmp,
    pub(super) console: LastWords,
    pub(super) executor: Executor,
    pub(super) spec: VmSpec,
}

impl Vm {
    /// Starts the process. Its control channel is negotiated by [`greet`](Self::greet).
    ///
    /// Both sockets are pairs made here: nobody else can connect, and no file is left behind.
    pub(super) async fn spawn(request: StartVm, name: &str, executor: Executor) -> PortResult<Self> {
        let (qmp, qmp_theirs) = socket_pair()?;
        let (console, console_theirs) = socket_pair()?;
        let process = HelperProcess::spawn(HelperSpec {
            program: request.spec.program.clone(),
            args: arguments(&request.spec, name, executor),
            tag: request.tag,
            passed: vec![(qmp_theirs, QMP_FD), (console_theirs, CONSOLE_FD)],
        })
        .await?;
        Ok(Self { process, qmp: Qmp::new(qmp), console: LastWords::of(console), executor, spec: request.spec })
    }

    /// Opens the control channel.
    ///
    /// # Errors
    /// QEMU did not start, with its last words.
    pub(super) async fn greet(&self, deadline: Instant) -> PortResult<()> {
        self.execute(Command::new("qmp_capabilities", Value::Null), deadline).await.map(|_| ())
    }

    /// Executes a command that needs no object to be named.
    pub(super) async fn execute(&self, command: Command, deadline: Instant) -> PortResult<Value> {
        self.execute_on("QEMU", command, deadline).await
    }

    /// Executes a command on `object`. If QEMU is gone, the error says how it ended.
    pub(super) async fn execute_on(&self, object: &str, command: Command, deadline: Instant) -> PortResult<Value> {
        let answer = self.qmp.execute(command, object, deadline).await;
        match answer {
            Err(error) if error.kind == ErrorKind::PeerGone => Err(self.with_last_words(error).await),
            other => other,
        }
    }

    /// That QEMU is gone, for a listener whose events have ended.
    pub(super) async fn gone(&self, operation: &str, object: &str) -> PortError {
        let error = PortError::new(ErrorKind::PeerGone, operation, object, "QEMU closed the control channel");
        self.with_last_words(error).await.doubtful()
    }

    async fn with_last_words(&self, mut error: PortError) -> PortError {
        if let Ok(exit) = timeout(END_PATIENCE, self.process.wait()).await {
            error.cause = format!("QEMU ended with {exit}");
        }
        let words = self.last_words();
        if !words.is_empty() {
            error.cause = format!("{}: {words}", error.cause);
        }
        error
    }

    /// The tails of stderr and console.
    pub(super) fn last_words(&self) -> String {
        let console = self.console.text();
        let stderr = self.process.last_words();
        match (stderr.is_empty(), console.is_empty()) {
            (_, true) => stderr,
            (true, false) => format!("console:\n{console}"),
            (false, false) => format!("{stderr}\nconsole:\n{console}"),
        }
    }

    /// The vCPU threads, in the order of vCPUs.
    pub(super) async fn vcpu_threads(&self, deadline: Instant) -> PortResult<Vec<i32>> {
        let listed = self.execute(Command::new("query-cpus-fast", Value::Null), deadline).await?;
        let mut vcpus: Vec<(i64, i32)> = items(&listed)
            .filter_map(|cpu| Some((cpu["cpu-index"].as_i64()?, i32::try_from(cpu["thread-id"].as_i64()?).ok()?)))
            .collect();
        vcpus.sort_unstable();
        Ok(vcpus.into_iter().map(|(_, thread)| thread).collect())
    }

    /// Whether the vCPUs run.
    pub(super) async fn runs(&self, deadline: Instant) -> PortResult<bool> {
        let status = self.execute(Command::new("query-status", Value::Null), deadline).await?;
        Ok(status["running"] == true)
    }

    /// Whether a device of that name exists, whatever was asked of it.
    pub(super) async fn has_device(&self, id: &str, deadline: Instant) -> PortResult<bool> {
        Ok(self.device_names(deadline).await?.iter().any(|name| name == id))
    }

    /// The names of all devices that have one.
    pub(super) async fn device_names(&self, deadline: Instant) -> PortResult<Vec<String>> {
        let command = Command::new("qom-list", json!({ "path": "/machine/peripheral" }));
        let listed = self.execute(command, deadline).await?;
        Ok(items(&listed).filter_map(|item| item["name"].as_str().map(str::to_owned)).collect())
    }

    /// Ends it: `quit`, SIGTERM, SIGKILL, each after the one before has had `term`. Reaped.
    pub(super) async fn stop(&self, term: Duration, deadline: Instant) -> PortResult<VmExit> {
        let quit_by = deadline.min(Instant::now() + term);
        // Whatever it answers: what counts is whether it ends.
        let _ = self.qmp.execute(Command::new("quit", Value::Null), "QEMU", quit_by).await;
        if timeout_at(quit_by, self.process.wait()).await.is_err() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.process.terminate(term.min(left)).await?;
        }
        Ok(self.ended().await)
    }

    /// Takes back a start that failed: nothing of it remains, or the outcome is doubtful.
    pub(super) async fn abandon(&self, mut error: PortError) -> PortError {
        error.outcome = match self.process.kill().await {
            Ok(_) => Outcome::NotDone,
            Err(_) => Outcome::Doubtful,
        };
        error
    }

    /// Waits until it has ended, whoever ended it.
    pub(super) async fn ended(&self) -> VmExit {
        let HelperExit { code, signal } = self.process.wait().await;
        self.console.complete().await;
        VmExit { code, signal, last_words: self.last_words() }
    }
}

/// The elements of a list in a reply; nothing if it is no list.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn socket_pair() -> PortResult<(UnixStream, PassedFd)> {
    let refused = |error: std::io::Error| PortError::os("socketpair", "QEMU", error);
    let (ours, theirs) = UnixStream::pair().map_err(refused)?;
    let theirs = theirs.into_std().map_err(refused)?;
    Ok((ours, PassedFd::new(OwnedFd::from(theirs))))
}
