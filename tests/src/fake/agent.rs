//! A Kata agent that says yes, and whose processes do nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_protocol::Empty;
use agent_protocol::agent::*;
use agent_protocol::agent_ttrpc::AgentService;
use agent_protocol::health::health_check_response::ServingStatus;
use agent_protocol::health::{CheckRequest, HealthCheckResponse};
use agent_protocol::health_ttrpc::Health;
use agent_protocol::types::Interface;
use async_trait::async_trait;
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, Error, Result, get_status};

/// Bytes of a memory block.
const BLOCK: u64 = 128 << 20;

/// Exit code of each process, by container and exec, once it has ended.
type Processes = BTreeMap<(String, String), watch::Sender<Option<i32>>>;

/// The agent of one guest.
#[derive(Debug, Default)]
pub(super) struct Agent {
    processes: Mutex<Processes>,
}

fn refuse<T>(code: Code, text: &str) -> Result<T> {
    Err(Error::RpcStatus(get_status(code, text)))
}

/// A process whose arguments name `sleep` waits for a signal; any other has ended at once.
fn first_state(arguments: &[String]) -> Option<i32> {
    let waits = arguments.iter().any(|argument| argument.contains("sleep"));
    (!waits).then_some(0)
}

impl Agent {
    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, container: &str, exec: &str, arguments: &[String]) {
        let name = (container.to_owned(), exec.to_owned());
        self.processes().insert(name, watch::Sender::new(first_state(arguments)));
    }

    fn process(&self, container: &str, exec: &str) -> Result<watch::Sender<Option<i32>>> {
        // A container's first process goes by either name.
        let exec = if exec.is_empty() { container } else { exec };
        let found = self.processes().get(&(container.to_owned(), exec.to_owned())).cloned();
        found.map_or_else(|| refuse(Code::NOT_FOUND, &format!("no process {exec} in {container}")), Ok)
    }

    async fn end(&self, container: &str, exec: &str) -> Result<i32> {
        let mut state = self.process(container, exec)?.subscribe();
        let ended = state.wait_for(Option::is_some).await.map(|code| *code);
        Ok(ended.ok().flatten().unwrap_or(0))
    }

    async fn read(&self, asked: ReadStreamRequest) -> Result<ReadStreamResponse> {
        self.end(&asked.container_id, &asked.exec_id).await?;
        refuse(Code::INVALID_ARGUMENT, "read meet eof")
    }
}

#[async_trait]
impl Health for Agent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(&self, _: &TtrpcContext, _: CreateSandboxRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn get_guest_details(&self, _: &TtrpcContext, _: GuestDetailsRequest) -> Result<GuestDetailsResponse> {
        Ok(GuestDetailsResponse { mem_block_size_bytes: BLOCK, ..Default::default() })
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, _: OnlineCPUMemRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn update_interface(&self, _: &TtrpcContext, asked: UpdateInterfaceRequest) -> Result<Interface> {
        Ok(asked.interface.unwrap_or_default())
    }

    async fn update_routes(&self, _: &TtrpcContext, asked: UpdateRoutesRequest) -> Result<Routes> {
        Ok(asked.routes.unwrap_or_default())
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, _: AddARPNeighborsRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, asked: CreateContainerRequest) -> Result<Empty> {
        let arguments = asked.OCI.Process.Args.clone();
        self.add(&asked.container_id, &asked.exec_id, &arguments);
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, _: StartContainerRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, asked: RemoveContainerRequest) -> Result<Empty> {
        self.processes().retain(|(container, _), _| *container != asked.container_id);
        Ok(Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, _: UpdateContainerRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, asked: ExecProcessRequest) -> Result<Empty> {
        let arguments = asked.process.Args.clone();
        self.add(&asked.container_id, &asked.exec_id, &arguments);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, asked: SignalProcessRequest) -> Result<Empty> {
        let code = 128 + i32::try_from(asked.signal).unwrap_or_default();
        self.process(&asked.container_id, &asked.exec_id)?.send_replace(Some(code));
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, asked: WaitProcessRequest) -> Result<WaitProcessResponse> {
        let status = self.end(&asked.container_id, &asked.exec_id).await?;
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, asked: ReadStreamRequest) -> Result<ReadStreamResponse> {
        self.read(asked).await
    }

    async fn read_stderr(&self, _: &TtrpcContext, asked: ReadStreamRequest) -> Result<ReadStreamResponse> {
        self.read(asked).await
    }

    async fn write_stdin(&self, _: &TtrpcContext, asked: WriteStreamRequest) -> Result<WriteStreamResponse> {
        let len = u32::try_from(asked.data.len()).unwrap_or(u32::MAX);
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, _: CloseStdinRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, _: TtyWinResizeRequest) -> Result<Empty> {
        Ok(Empty::new())
    }
}
