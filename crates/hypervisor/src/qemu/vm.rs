//! A running QEMU: its process, its control channel, its console.
//!
//! Nothing here changes after the start, so everybody may use it at once: what there is to order is
//! ordered by QMP, one command at a time.

use std::path::Path;
use std::time::Duration;

use helper_process::{HelperExit, HelperProcess, HelperSpec, LastWords};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};
use serde_json::Value;
use tokio::time::{timeout, timeout_at};

use super::adoption::PERIPHERAL;
use super::command_line::{CONSOLE_FD, Executor, QMP_FD, arguments};
use super::qmp::{Command, Qmp};
use super::sockets::Ends;
use crate::{StartVm, VmExit, VmSpec};

/// How long a QEMU that closed its control channel may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Lines of stderr, and of the console, that an error carries.
const ERROR_LINES: usize = 8;

/// One QEMU.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) process: HelperProcess,
    pub(super) qmp: Qmp,
    pub(super) console: LastWords,
    pub(super) executor: Executor,
    pub(super) limits: Limits,
}

/// What a VM can grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// PCI bridges.
    pub(super) bridges: u8,
    /// Memory after all hotplug, in MiB.
    pub(super) memory_max_mib: u64,
    /// Whether memory is shared with vhost-user daemons.
    pub(super) shared_memory: bool,
}

impl Vm {
    /// Starts the process. Its control channel is negotiated by [`greet`](Self::greet).
    pub(super) async fn spawn(
        request: StartVm,
        name: &str,
        executor: Executor,
        [qmp, console]: [Ends; 2],
    ) -> PortResult<Self> {
        let process = HelperProcess::spawn(HelperSpec {
            program: request.spec.program.clone(),
            args: arguments(&request.spec, name, executor),
            tag: request.tag,
            passed: vec![(qmp.theirs, QMP_FD), (console.theirs, CONSOLE_FD)],
        })
        .await?;
        let VmSpec { bridges, memory_max_mib, shared_memory, .. } = request.spec;
        let limits = Limits { bridges, memory_max_mib, shared_memory };
        Ok(Self { process, qmp: Qmp::new(qmp.ours), console: LastWords::of(console.ours), executor, limits })
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
        for words in [self.process.last_words(), self.console.text()] {
            let words = last_lines(&words);
            if !words.is_empty() {
                error.cause = format!("{}: {words}", error.cause);
            }
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
        let threads: Vec<i32> = vcpus.into_iter().map(|(_, thread)| thread).collect();
        // They will be moved between cgroups: a QEMU that lies must not have us move a stranger's.
        let tasks = Path::new("/proc").join(self.process.identity().pid.to_string()).join("task");
        match threads.iter().find(|thread| !tasks.join(thread.to_string()).exists()) {
            None => Ok(threads),
            Some(thread) if self.process.try_exit().is_none() => {
                let cause = format!("{thread} is no thread of QEMU");
                Err(PortError::new(ErrorKind::Protocol, "query-cpus-fast", "QEMU", cause))
            }
            Some(_) => Err(self.gone("query-cpus-fast", "QEMU").await),
        }
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
        Ok(self.parts(PERIPHERAL, deadline).await?.into_iter().map(|part| part.name).collect())
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

    /// Waits until it has ended, whoever ended it.
    pub(super) async fn ended(&self) -> VmExit {
        let HelperExit { code, signal } = self.process.wait().await;
        self.console.complete().await;
        VmExit { code, signal, last_words: self.last_words() }
    }
}

fn last_lines(words: &str) -> String {
    let lines: Vec<&str> = words.lines().collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n")
}

/// The elements of a list in a reply; nothing if it is no list.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
impl Vm {
    /// A VM whose process sleeps and whose control channel ends at a scripted peer.
    pub(super) async fn scripted() -> (Self, super::qmp::peer::Peer) {
        let (ours, mut peer) = super::qmp::peer::Peer::pair();
        peer.say(super::qmp::peer::GREETING).await;
        let spec = HelperSpec { program: "/bin/sleep".into(), args: vec!["60".into()], ..HelperSpec::default() };
        let vm = Self {
            process: HelperProcess::spawn(spec).await.unwrap(),
            qmp: Qmp::new(ours),
            console: LastWords::of(tokio::io::empty()),
            executor: Executor::Tcg,
            limits: Limits { bridges: 1, memory_max_mib: 1024, shared_memory: false },
        };
        (vm, peer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_stranger_s_thread_is_no_vcpu() {
        let (vm, mut peer) = Vm::scripted().await;
        let own = vm.process.identity().pid;
        for (thread, wanted) in [(own, Ok(vec![own])), (1, Err(ErrorKind::Protocol))] {
            let reply = json!({ "return": [{ "cpu-index": 0, "thread-id": thread }] });
            let deadline = Instant::now() + Duration::from_secs(20);
            let (got, _) = tokio::join!(vm.vcpu_threads(deadline), peer.answer(reply));
            assert_eq!(got.map_err(|error| error.kind), wanted);
        }
        vm.process.kill().await.unwrap();
    }
}
