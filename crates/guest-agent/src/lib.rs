//! The port to the agent inside the guest, and the Kata agent's protocol behind it.
//!
//! The guest is not trusted: every reply is bounded and validated before a caller sees it.
#![forbid(unsafe_code)]

mod kata;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Process, Spec};
use sandbox_model::device::AgentDevice;
use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestRoute};
use sandbox_model::storage::Storage;
use sandbox_model::{ContainerId, PortError, SandboxId, Secret, port};
use serde::{Deserialize, Serialize};

pub use kata::{FRAME_LEN_MAX, KataAgent, KataAgentFactory, READ_LEN_MAX};

/// Where the agent listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub enum AgentAddress {
    /// A kernel vsock.
    Vsock {
        /// Guest context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A unix socket that speaks the hybrid protocol: `CONNECT PORT\n`, answered by `OK …\n`.
    Hybrid {
        /// The socket.
        socket: PathBuf,
        /// Port in the guest.
        port: u32,
    },
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hybrid { socket, port } => write!(f, "hvsock://{}:{port}", socket.display()),
        }
    }
}

/// What a sandbox is created with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CreateSandbox {
    /// Host name of the guest.
    pub hostname: String,
    /// Lines of `resolv.conf`.
    pub dns: Secret<Vec<String>>,
    /// To be mounted first.
    pub storages: Vec<Storage>,
    /// The sandbox's id.
    pub sandbox_id: String,
    /// Modules to load, each `NAME PARAMETERS`.
    pub kernel_modules: Vec<String>,
}

/// What a container is created with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CreateContainer {
    /// Its id.
    pub container: ContainerId,
    /// Its devices.
    pub devices: Vec<AgentDevice>,
    /// To be mounted first, in order.
    pub storages: Vec<Storage>,
    /// Its spec, with guest paths.
    pub spec: Secret<Box<Spec>>,
    /// Whether it shares a pid namespace with the sandbox.
    pub sandbox_pidns: bool,
}

/// A process of a container: its first, or one that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The container.
    pub container: ContainerId,
    /// Empty for the container's first process.
    pub exec: String,
}

impl fmt::Display for ProcessRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.exec.is_empty() { self.container.fmt(f) } else { write!(f, "{}/{}", self.container, self.exec) }
    }
}

/// Adds a process to a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExecProcess {
    /// Its name.
    pub process: ProcessRef,
    /// What to run.
    pub spec: Secret<Box<Process>>,
}

/// Sends a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalProcess {
    /// To whom.
    pub process: ProcessRef,
    /// Number, as on Linux x86-64.
    pub signal: u32,
}

/// Reads output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOutput {
    /// Whose.
    pub process: ProcessRef,
    /// At most so many bytes.
    pub len: u32,
}

/// Writes input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WriteInput {
    /// Whose.
    pub process: ProcessRef,
    /// The bytes.
    pub data: Secret<Vec<u8>>,
}

/// Sets a terminal's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeTerminal {
    /// Whose.
    pub process: ProcessRef,
    /// Rows of characters.
    pub rows: u32,
    /// Columns of characters.
    pub columns: u32,
}

/// Changes a container's limits in the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateContainer {
    /// Whose.
    pub container: ContainerId,
    /// The limits.
    pub resources: LinuxResources,
}

/// Tells the guest to use what was hotplugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlineCpuMem {
    /// Whether the answer waits until all are online.
    pub wait: bool,
    /// vCPUs in total that shall be online; 0 leaves them alone.
    pub vcpus: u32,
    /// Whether memory is left alone.
    pub cpu_only: bool,
}

/// What the guest says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDetails {
    /// Size of a memory block in bytes; 0 if the guest cannot hotplug memory.
    pub memory_block_bytes: u64,
    /// Version of the agent.
    pub agent_version: String,
}

/// A file to be written below `/run` in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Mode of the file, with its type bits.
    pub file_mode: u32,
    /// Mode of directories that are made for it.
    pub dir_mode: u32,
    /// Owner.
    pub uid: i32,
    /// Group.
    pub gid: i32,
    /// Size of the whole file, in bytes.
    pub size: i64,
    /// Where `data` belongs, in bytes.
    pub offset: i64,
    /// The bytes, or the target of a symbolic link.
    pub data: Secret<Vec<u8>>,
}

port! {
    /// The agent of one guest.
    ///
    /// Every call ends by its deadline; only `wait_process`, `read_stdout`, `read_stderr` and
    /// `oom_event` wait for something that may never come, and are given deadlines to match.
    pub trait GuestAgent as "guest-agent", proxy GuestAgentProxy {
        /// Connects and returns when the agent has answered a health check.
        fn connect(AgentAddress) -> ();
        /// Closes the connection; calls in flight fail with `PeerGone`.
        fn disconnect(()) -> ();
        /// Asks whether it is well.
        fn check(()) -> ();
        /// Asks for the size of a memory block and more.
        fn guest_details(()) -> GuestDetails;
        /// Makes the sandbox. Once for each boot.
        fn create_sandbox(CreateSandbox) -> ();
        /// Ends the sandbox. The guest may power off before it answers.
        fn destroy_sandbox(()) -> ();
        /// Names and configures an interface, found by its MAC.
        fn update_interface(GuestInterface) -> ();
        /// Adds permanent neighbours.
        fn add_neighbors(Vec<GuestNeighbor>) -> ();
        /// Sets the routes.
        fn update_routes(Vec<GuestRoute>) -> ();
        /// Brings hotplugged vCPUs and memory into use.
        fn online_cpu_mem(OnlineCpuMem) -> ();
        /// Makes a container.
        fn create_container(CreateContainer) -> ();
        /// Starts its first process.
        fn start_container(ContainerId) -> ();
        /// Ends and forgets it.
        fn remove_container(ContainerId) -> ();
        /// Changes its limits.
        fn update_container(UpdateContainer) -> ();
        /// Adds a process.
        fn exec_process(ExecProcess) -> ();
        /// Sends a signal.
        fn signal_process(SignalProcess) -> ();
        /// Waits for the end of a process: its exit code, or 128 + signal.
        fn wait_process(ProcessRef) -> i32;
        /// Reads standard output; empty at its end.
        fn read_stdout(ReadOutput) -> Vec<u8>;
        /// Reads standard error; empty at its end.
        fn read_stderr(ReadOutput) -> Vec<u8>;
        /// Writes standard input; the number of bytes taken.
        fn write_stdin(WriteInput) -> u32;
        /// Closes standard input.
        fn close_stdin(ProcessRef) -> ();
        /// Sets the size of its terminal.
        fn resize_terminal(ResizeTerminal) -> ();
        /// Writes a piece of a file.
        fn copy_file(CopyFile) -> ();
        /// Waits for a container to run out of memory.
        fn oom_event(()) -> ContainerId;
    }
}

/// Makes an agent client for each sandbox.
pub trait AgentFactory: std::fmt::Debug + Send + Sync {
    /// A client that has not connected.
    ///
    /// # Errors
    /// The client cannot be made on this host.
    fn create(&self, sandbox: &SandboxId) -> Result<Arc<dyn GuestAgent>, PortError>;
}
