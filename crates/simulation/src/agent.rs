//! A simulated guest agent: it keeps containers in memory, and each "runs" to a good end at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use guest_agent::{
    AgentAddress, AgentFactory, CopyFile, CreateContainer, CreateSandbox, ExecProcess, GuestAgent, GuestDetails,
    OnlineCpuMem, ProcessRef, ReadOutput, ResizeTerminal, SignalProcess, UpdateContainer, WriteInput,
};
use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestRoute};
use sandbox_model::{ContainerId, ErrorKind, Instant, PortError, PortResult, SandboxId};

/// The block in which a simulated guest takes memory, as x86-64 kernels do.
const MEMORY_BLOCK_BYTES: u64 = 128 << 20;

/// Makes simulated agents.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimulatedAgentFactory;

impl AgentFactory for SimulatedAgentFactory {
    fn create(&self, _: &SandboxId) -> Result<Arc<dyn GuestAgent>, PortError> {
        Ok(Arc::new(SimulatedAgent::default()))
    }
}

/// One simulated agent.
#[derive(Debug, Default)]
pub struct SimulatedAgent {
    guest: Mutex<Guest>,
}

#[derive(Debug, Default)]
struct Guest {
    is_connected: bool,
    has_sandbox: bool,
    processes: BTreeMap<(ContainerId, String), Process>,
}

#[derive(Debug)]
struct Process {
    has_started: bool,
    output: Vec<u8>,
}

impl SimulatedAgent {
    /// The guest, if somebody has connected to its agent.
    fn guest(&self, operation: &str) -> PortResult<MutexGuard<'_, Guest>> {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        if guest.is_connected || operation == "connect" {
            return Ok(guest);
        }
        Err(PortError::new(ErrorKind::PeerGone, operation, "agent", "simulated: not connected"))
    }

    fn with_process<T>(
        &self,
        operation: &str,
        process: &ProcessRef,
        act: impl FnOnce(&mut Process) -> T,
    ) -> PortResult<T> {
        let mut guest = self.guest(operation)?;
        match guest.processes.get_mut(&(process.container.clone(), process.exec.clone())) {
            Some(found) => Ok(act(found)),
            None => Err(unknown(operation, &process.container)),
        }
    }
}

fn unknown(operation: &str, container: &ContainerId) -> PortError {
    PortError::new(ErrorKind::NotFound, operation, container.as_str(), "simulated: no such container or process")
}

fn process_of(args: Option<&Vec<String>>) -> Process {
    let args = args.map(|args| args.join(" ")).unwrap_or_default();
    Process { has_started: false, output: format!("simulated: {args}\n").into_bytes() }
}

#[async_trait]
impl GuestAgent for SimulatedAgent {
    async fn connect(&self, _: AgentAddress, _: Instant) -> PortResult<()> {
        self.guest("connect")?.is_connected = true;
        Ok(())
    }

    async fn disconnect(&self, (): (), _: Instant) -> PortResult<()> {
        self.guest("connect")?.is_connected = false;
        Ok(())
    }

    async fn check(&self, (): (), _: Instant) -> PortResult<()> {
        self.guest("check").map(|_| ())
    }

    async fn guest_details(&self, (): (), _: Instant) -> PortResult<GuestDetails> {
        self.guest("guest_details")?;
        Ok(GuestDetails { memory_block_bytes: MEMORY_BLOCK_BYTES, agent_version: "simulated".to_owned() })
    }

    async fn create_sandbox(&self, request: CreateSandbox, _: Instant) -> PortResult<()> {
        let mut guest = self.guest("create_sandbox")?;
        if guest.has_sandbox {
            let cause = "simulated: one sandbox for each boot";
            return Err(PortError::new(ErrorKind::Exists, "create_sandbox", request.sandbox_id, cause));
        }
        guest.has_sandbox = true;
        Ok(())
    }

    async fn destroy_sandbox(&self, (): (), _: Instant) -> PortResult<()> {
        let mut guest = self.guest("destroy_sandbox")?;
        *guest = Guest::default();
        Ok(())
    }

    async fn update_interface(&self, _: GuestInterface, _: Instant) -> PortResult<()> {
        self.guest("update_interface").map(|_| ())
    }

    async fn add_neighbors(&self, _: Vec<GuestNeighbor>, _: Instant) -> PortResult<()> {
        self.guest("add_neighbors").map(|_| ())
    }

    async fn update_routes(&self, _: Vec<GuestRoute>, _: Instant) -> PortResult<()> {
        self.guest("update_routes").map(|_| ())
    }

    async fn online_cpu_mem(&self, _: OnlineCpuMem, _: Instant) -> PortResult<()> {
        self.guest("online_cpu_mem").map(|_| ())
    }

    async fn create_container(&self, request: CreateContainer, _: Instant) -> PortResult<()> {
        let args = request.spec.process().as_ref().and_then(|process| process.args().as_ref());
        let process = process_of(args);
        let mut guest = self.guest("create_container")?;
        let key = (request.container.clone(), String::new());
        if guest.processes.contains_key(&key) {
            let cause = "simulated: the container exists";
            return Err(PortError::new(ErrorKind::Exists, "create_container", request.container.as_str(), cause));
        }
        guest.processes.insert(key, process);
        Ok(())
    }

    async fn start_container(&self, container: ContainerId, _: Instant) -> PortResult<()> {
        let process = ProcessRef { container, exec: String::new() };
        self.with_process("start_container", &process, |process| process.has_started = true)
    }

    async fn remove_container(&self, container: ContainerId, _: Instant) -> PortResult<()> {
        let mut guest = self.guest("remove_container")?;
        let before = guest.processes.len();
        guest.processes.retain(|(of, _), _| *of != container);
        if guest.processes.len() == before { Err(unknown("remove_container", &container)) } else { Ok(()) }
    }

    async fn update_container(&self, request: UpdateContainer, _: Instant) -> PortResult<()> {
        let process = ProcessRef { container: request.container, exec: String::new() };
        self.with_process("update_container", &process, |_| ())
    }

    async fn exec_process(&self, request: ExecProcess, _: Instant) -> PortResult<()> {
        let mut process = process_of(request.spec.args().as_ref());
        process.has_started = true;
        let ProcessRef { container, exec } = request.process;
        let mut guest = self.guest("exec_process")?;
        if !guest.processes.contains_key(&(container.clone(), String::new())) {
            return Err(unknown("exec_process", &container));
        }
        guest.processes.insert((container, exec), process);
        Ok(())
    }

    async fn signal_process(&self, request: SignalProcess, _: Instant) -> PortResult<()> {
        self.with_process("signal_process", &request.process, |_| ())
    }

    async fn wait_process(&self, process: ProcessRef, _: Instant) -> PortResult<i32> {
        let has_started = self.with_process("wait_process", &process, |process| process.has_started)?;
        if has_started {
            return Ok(0);
        }
        let (object, cause) = (process.container.as_str(), "simulated: it has not started");
        Err(PortError::new(ErrorKind::Invalid, "wait_process", object, cause))
    }

    async fn read_stdout(&self, request: ReadOutput, _: Instant) -> PortResult<Vec<u8>> {
        self.with_process("read_stdout", &request.process, |process| {
            let len = process.output.len().min(usize::try_from(request.len).unwrap_or(usize::MAX));
            process.output.drain(..len).collect()
        })
    }

    async fn read_stderr(&self, request: ReadOutput, _: Instant) -> PortResult<Vec<u8>> {
        self.with_process("read_stderr", &request.process, |_| Vec::new())
    }

    async fn write_stdin(&self, request: WriteInput, _: Instant) -> PortResult<u32> {
        let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        self.with_process("write_stdin", &request.process, |_| len)
    }

    async fn close_stdin(&self, process: ProcessRef, _: Instant) -> PortResult<()> {
        self.with_process("close_stdin", &process, |_| ())
    }

    async fn resize_terminal(&self, request: ResizeTerminal, _: Instant) -> PortResult<()> {
        self.with_process("resize_terminal", &request.process, |_| ())
    }

    async fn copy_file(&self, _: CopyFile, _: Instant) -> PortResult<()> {
        self.guest("copy_file").map(|_| ())
    }

    async fn oom_event(&self, (): (), deadline: Instant) -> PortResult<ContainerId> {
        self.guest("oom_event")?;
        tokio::time::sleep_until(deadline).await;
        Err(PortError::timed_out("oom_event", "agent", "simulated: no container ran out of memory"))
    }
}
