//! A simulated guest agent: it keeps sandbox, containers and interfaces in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use guest_agent::{
    AgentAddress, AgentFactory, CopyFile, CreateContainer, CreateSandbox, ExecProcess, GuestAgent, GuestDetails,
    OnlineCpuMem, ProcessRef, ReadOutput, ResizeTerminal, SignalProcess, UpdateContainer, WriteInput,
};
use oci_spec::runtime::Process;
use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestRoute};
use sandbox_model::{ContainerId, ErrorKind, Instant, PortError, PortResult, SandboxId};

use crate::World;

/// Size of a memory block, as Linux has it on x86-64.
const MEMORY_BLOCK_BYTES: u64 = 128 << 20;

/// A connection to the agent of one guest. A process that is started has ended at once, with 0, and
/// has written one line: `simulated: ARGUMENTS`.
///
/// The guest lives in the [`World`] until its VM ends: another client that connects finds it as the
/// first left it.
#[derive(Debug)]
pub struct SimulatedAgent {
    guest: Arc<Mutex<Guest>>,
    is_connected: AtomicBool,
}

/// What the guest has been told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    sandbox: Option<CreateSandbox>,
    containers: BTreeMap<ContainerId, Container>,
    interfaces: BTreeMap<String, GuestInterface>,
    routes: Vec<GuestRoute>,
    neighbors: Vec<GuestNeighbor>,
}

#[derive(Debug, Clone, Default)]
struct Container {
    /// By the name of the exec; the first process has none.
    processes: BTreeMap<String, SimulatedProcess>,
}

#[derive(Debug, Clone, Default)]
struct SimulatedProcess {
    args: String,
    has_started: bool,
    output: VecDeque<u8>,
}

impl SimulatedProcess {
    fn new(process: Option<&Process>) -> Self {
        let args = process.and_then(|process| process.args().as_ref()).map(|args| args.join(" "));
        Self { args: args.unwrap_or_default(), has_started: false, output: VecDeque::new() }
    }

    fn start(&mut self) {
        self.has_started = true;
        self.output.extend(format!("simulated: {}\n", self.args).bytes());
    }
}

fn error(kind: ErrorKind, operation: &str, object: impl Into<String>, cause: &str) -> PortError {
    PortError::new(kind, operation, object, format!("simulated: {cause}"))
}

impl Guest {
    /// The guest, if it has a sandbox.
    fn with_sandbox(&mut self, operation: &str) -> PortResult<&mut Self> {
        if self.sandbox.is_some() {
            return Ok(self);
        }
        Err(error(ErrorKind::NotFound, operation, "sandbox", "there is no sandbox"))
    }

    fn container(&mut self, operation: &str, id: &ContainerId) -> PortResult<&mut Container> {
        let container = self.with_sandbox(operation)?.containers.get_mut(id);
        container.ok_or_else(|| error(ErrorKind::NotFound, operation, id.as_str(), "no such container"))
    }

    fn process(&mut self, operation: &str, process: &ProcessRef) -> PortResult<&mut SimulatedProcess> {
        let found = self.container(operation, &process.container)?.processes.get_mut(&process.exec);
        let object = format!("{}/{}", process.container, process.exec);
        found.ok_or_else(|| error(ErrorKind::NotFound, operation, object, "no such process"))
    }
}

impl SimulatedAgent {
    /// A client of the guest that `sandbox` has in `world`, not connected yet.
    pub fn new(world: &World, sandbox: &SandboxId) -> Self {
        Self { guest: world.guest(sandbox), is_connected: AtomicBool::new(false) }
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest, if this client is connected to it.
    fn reached(&self, operation: &str) -> PortResult<MutexGuard<'_, Guest>> {
        if self.is_connected.load(Ordering::Relaxed) {
            return Ok(self.guest());
        }
        Err(error(ErrorKind::PeerGone, operation, "agent", "not connected"))
    }

    /// Containers that the guest has.
    pub fn containers(&self) -> Vec<ContainerId> {
        self.guest().containers.keys().cloned().collect()
    }

    /// Interfaces that the guest was told of, by name.
    pub fn interfaces(&self) -> Vec<String> {
        self.guest().interfaces.keys().cloned().collect()
    }
}

#[async_trait]
impl GuestAgent for SimulatedAgent {
    async fn connect(&self, _: AgentAddress, _: Instant) -> PortResult<()> {
        self.is_connected.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn disconnect(&self, (): (), _: Instant) -> PortResult<()> {
        self.is_connected.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn check(&self, (): (), _: Instant) -> PortResult<()> {
        self.reached("check").map(|_| ())
    }

    async fn guest_details(&self, (): (), _: Instant) -> PortResult<GuestDetails> {
        let details = GuestDetails { memory_block_bytes: MEMORY_BLOCK_BYTES, agent_version: "simulated".into() };
        self.reached("guest details").map(|_| details)
    }

    async fn create_sandbox(&self, request: CreateSandbox, _: Instant) -> PortResult<()> {
        let mut guest = self.reached("create sandbox")?;
        if guest.sandbox.is_some() {
            return Err(error(ErrorKind::Exists, "create sandbox", request.sandbox_id, "once for each boot"));
        }
        guest.sandbox = Some(request);
        Ok(())
    }

    async fn destroy_sandbox(&self, (): (), _: Instant) -> PortResult<()> {
        let mut guest = self.reached("destroy sandbox")?;
        let guest = guest.with_sandbox("destroy sandbox")?;
        *guest = Guest::default();
        Ok(())
    }

    async fn update_interface(&self, request: GuestInterface, _: Instant) -> PortResult<()> {
        self.reached("update interface")?.interfaces.insert(request.name.clone(), request);
        Ok(())
    }

    async fn add_neighbors(&self, request: Vec<GuestNeighbor>, _: Instant) -> PortResult<()> {
        self.reached("add neighbors")?.neighbors.extend(request);
        Ok(())
    }

    async fn update_routes(&self, request: Vec<GuestRoute>, _: Instant) -> PortResult<()> {
        self.reached("update routes")?.routes = request;
        Ok(())
    }

    async fn online_cpu_mem(&self, _: OnlineCpuMem, _: Instant) -> PortResult<()> {
        self.reached("online CPUs and memory").map(|_| ())
    }

    async fn create_container(&self, request: CreateContainer, _: Instant) -> PortResult<()> {
        let mut guest = self.reached("create container")?;
        let guest = guest.with_sandbox("create container")?;
        if guest.containers.contains_key(&request.container) {
            return Err(error(ErrorKind::Exists, "create container", request.container.as_str(), "it exists"));
        }
        let first = SimulatedProcess::new(request.spec.expose().process().as_ref());
        let processes = BTreeMap::from([(String::new(), first)]);
        guest.containers.insert(request.container, Container { processes });
        Ok(())
    }

    async fn start_container(&self, request: ContainerId, _: Instant) -> PortResult<()> {
        let mut guest = self.guest();
        let process = ProcessRef { container: request, exec: String::new() };
        let first = guest.process("start container", &process)?;
        if first.has_started {
            return Err(error(ErrorKind::Refused, "start container", process.container.as_str(), "it has started"));
        }
        first.start();
        Ok(())
    }

    async fn remove_container(&self, request: ContainerId, _: Instant) -> PortResult<()> {
        let mut guest = self.reached("remove container")?;
        guest.container("remove container", &request)?;
        guest.containers.remove(&request);
        Ok(())
    }

    async fn update_container(&self, request: UpdateContainer, _: Instant) -> PortResult<()> {
        self.reached("update container")?.container("update container", &request.container).map(|_| ())
    }

    async fn exec_process(&self, request: ExecProcess, _: Instant) -> PortResult<()> {
        let mut guest = self.reached("exec")?;
        let container = guest.container("exec", &request.process.container)?;
        if container.processes.contains_key(&request.process.exec) {
            return Err(error(ErrorKind::Exists, "exec", request.process.exec, "it exists"));
        }
        let mut process = SimulatedProcess::new(Some(request.spec.expose()));
        process.start();
        container.processes.insert(request.process.exec, process);
        Ok(())
    }

    async fn signal_process(&self, request: SignalProcess, _: Instant) -> PortResult<()> {
        self.reached("signal")?.process("signal", &request.process).map(|_| ())
    }

    async fn wait_process(&self, request: ProcessRef, deadline: Instant) -> PortResult<i32> {
        let has_started = self.reached("wait")?.process("wait", &request)?.has_started;
        if !has_started {
            tokio::time::sleep_until(deadline).await;
            return Err(PortError::timed_out("wait", request.container.as_str(), "it has not started"));
        }
        Ok(0)
    }

    async fn read_stdout(&self, request: ReadOutput, _: Instant) -> PortResult<Vec<u8>> {
        let mut guest = self.guest();
        let output = &mut guest.process("read stdout", &request.process)?.output;
        let count = output.len().min(request.len as usize);
        Ok(output.drain(..count).collect())
    }

    async fn read_stderr(&self, request: ReadOutput, _: Instant) -> PortResult<Vec<u8>> {
        self.reached("read stderr")?.process("read stderr", &request.process).map(|_| Vec::new())
    }

    async fn write_stdin(&self, request: WriteInput, _: Instant) -> PortResult<u32> {
        self.reached("write stdin")?.process("write stdin", &request.process)?;
        Ok(u32::try_from(request.data.expose().len()).unwrap_or(u32::MAX))
    }

    async fn close_stdin(&self, request: ProcessRef, _: Instant) -> PortResult<()> {
        self.reached("close stdin")?.process("close stdin", &request).map(|_| ())
    }

    async fn resize_terminal(&self, request: ResizeTerminal, _: Instant) -> PortResult<()> {
        self.reached("resize terminal")?.process("resize terminal", &request.process).map(|_| ())
    }

    async fn copy_file(&self, _: CopyFile, _: Instant) -> PortResult<()> {
        self.reached("copy file").map(|_| ())
    }

    async fn oom_event(&self, (): (), deadline: Instant) -> PortResult<ContainerId> {
        tokio::time::sleep_until(deadline).await;
        Err(PortError::timed_out("wait for OOM", "agent", "simulated: memory never runs out"))
    }
}

/// Makes simulated agents.
#[derive(Debug, Clone)]
pub struct SimulatedAgentFactory {
    world: Arc<World>,
}

impl SimulatedAgentFactory {
    /// For the guests of `world`.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }
}

impl AgentFactory for SimulatedAgentFactory {
    fn create(&self, sandbox: &SandboxId) -> PortResult<Arc<dyn GuestAgent>> {
        Ok(Arc::new(SimulatedAgent::new(&self.world, sandbox)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use oci_spec::runtime::{ProcessBuilder, SpecBuilder};
    use sandbox_model::Secret;

    use super::*;

    #[tokio::test]
    async fn a_container_runs_and_unknown_ones_are_not_found() {
        let (world, sandbox) = (World::new(), SandboxId::new("pod").unwrap());
        let (agent, soon) = (SimulatedAgent::new(&world, &sandbox), Instant::now() + Duration::from_secs(1));
        assert_eq!(agent.check((), soon).await.unwrap_err().kind, ErrorKind::PeerGone);
        agent.connect(AgentAddress::Vsock { cid: 3, port: 1024 }, soon).await.unwrap();
        agent.create_sandbox(CreateSandbox::default(), soon).await.unwrap();
        let again = agent.create_sandbox(CreateSandbox::default(), soon).await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::Exists);

        let container = ContainerId::new("web").unwrap();
        let missing = agent.start_container(container.clone(), soon).await.unwrap_err();
        assert_eq!(missing.kind, ErrorKind::NotFound);
        let args = vec!["echo".to_owned(), "hello".to_owned()];
        let process = ProcessBuilder::default().args(args).build().unwrap();
        let spec = Box::new(SpecBuilder::default().process(process).build().unwrap());
        let create = CreateContainer {
            container: container.clone(),
            devices: Vec::new(),
            storages: Vec::new(),
            spec: Secret::new(spec),
            sandbox_pidns: false,
        };
        agent.create_container(create, soon).await.unwrap();
        agent.start_container(container.clone(), soon).await.unwrap();
        let process = ProcessRef { container: container.clone(), exec: String::new() };
        assert_eq!(agent.wait_process(process.clone(), soon).await.unwrap(), 0);
        let mut said = Vec::new();
        loop {
            let read = ReadOutput { process: process.clone(), len: 8 };
            let part = agent.read_stdout(read, soon).await.unwrap();
            if part.is_empty() {
                break;
            }
            said.extend(part);
        }
        assert_eq!(String::from_utf8(said).unwrap(), "simulated: echo hello\n");
        // A client that comes later finds the guest as it is.
        drop(agent);
        let agent = SimulatedAgent::new(&world, &sandbox);
        assert_eq!(agent.check((), soon).await.unwrap_err().kind, ErrorKind::PeerGone);
        agent.connect(AgentAddress::Vsock { cid: 3, port: 1024 }, soon).await.unwrap();
        assert_eq!(agent.containers(), std::slice::from_ref(&container));
        agent.remove_container(container, soon).await.unwrap();
        assert!(agent.containers().is_empty());
    }
}
