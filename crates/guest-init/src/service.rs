//! The calls of the protocol, each handed to the room that serves it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent::{self as message};
use agent_protocol::csi::VolumeStatsResponse;
use agent_protocol::health::health_check_response::ServingStatus;
use agent_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use agent_protocol::types::Interface;
use agent_protocol::{Empty, agent_ttrpc, health_ttrpc};
use anyhow::Context;
use async_trait::async_trait;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, Error, Result, get_status};

use crate::console::say;
use crate::container::{Container, FIRST};
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::{copy_file, cpu_memory, guest_stats, network};

/// Calls of the protocol that this guest does not serve.
pub(crate) const NOT_SERVED: [&str; 12] = [
    "RemoveStaleVirtiofsShareMounts",
    "GetDiagnosticData",
    "GetIPTables",
    "SetIPTables",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "MemHotplugByProbe",
    "AddSwap",
    "AddSwapPath",
    "ResizeVolume",
    "SetPolicy",
    "ReseedRandomDev",
];

/// A read answers at most this much, however much is asked for.
const READ_LIMIT: usize = 1 << 20;

/// Time for the answer of `DestroySandbox` to leave before the power goes.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Serves both services of the protocol.
pub(crate) struct Service {
    sandbox: Arc<Sandbox>,
}

impl Service {
    /// Serves a sandbox.
    pub(crate) fn new(sandbox: Sandbox) -> Self {
        Self { sandbox: Arc::new(sandbox) }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.sandbox.container(id).ok_or_else(|| invalid(format!("invalid container id `{id}`")))
    }

    fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>> {
        let found = self.container(container)?.process(exec);
        found.ok_or_else(|| invalid(format!("no process `{exec}` in container `{container}`")))
    }

    async fn read(&self, request: message::ReadStreamRequest, error: bool) -> Result<message::ReadStreamResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let stream = process.output(error).ok_or_else(end_of_stream)?;
        let limit = (request.len as usize).min(READ_LIMIT);
        let data = stream.read(limit).await.map_err(failed)?;
        if data.is_empty() && limit > 0 {
            return Err(end_of_stream());
        }
        Ok(message::ReadStreamResponse { data, ..Default::default() })
    }
}

#[async_trait]
impl health_ttrpc::Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Result<HealthCheckResponse> {
        let status = ServingStatus::SERVING.into();
        Ok(HealthCheckResponse { status, ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: "0.0.1".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, request: message::CreateSandboxRequest) -> Result<Empty> {
        say(format_args!("create sandbox {}", request.sandbox_id));
        answer(self.sandbox.create(request).await)
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: message::DestroySandboxRequest) -> Result<Empty> {
        say(format_args!("destroy sandbox"));
        tokio::spawn(async {
            tokio::time::sleep(LAST_WORDS).await;
            nix::unistd::sync();
            let Err(error) = reboot(RebootMode::RB_POWER_OFF);
            say(format_args!("power off: {error}"));
        });
        Ok(Empty::new())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: message::GuestDetailsRequest,
    ) -> Result<message::GuestDetailsResponse> {
        Ok(guest_stats::details(request.mem_block_size))
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: message::OnlineCPUMemRequest) -> Result<Empty> {
        let hotplug = &self.sandbox.hotplug;
        cpu_memory::online_cpus(request.nb_cpus, hotplug).await.map_err(failed)?;
        if request.cpu_only {
            return Ok(Empty::new());
        }
        answer(cpu_memory::online_memory())
    }

    async fn create_container(&self, _: &TtrpcContext, request: message::CreateContainerRequest) -> Result<Empty> {
        say(format_args!("create container {}", request.container_id));
        let sandbox = self.sandbox.clone();
        // A task of its own: a client that hangs up must not leave half a container behind.
        let task = tokio::spawn(async move { sandbox.create_container(request).await });
        answer(task.await.context("create container").and_then(|created| created))
    }

    async fn start_container(&self, _: &TtrpcContext, request: message::StartContainerRequest) -> Result<Empty> {
        say(format_args!("start container {}", request.container_id));
        answer(self.process(&request.container_id, FIRST)?.start().await)
    }

    async fn remove_container(&self, _: &TtrpcContext, request: message::RemoveContainerRequest) -> Result<Empty> {
        let container = self.container(&request.container_id)?;
        let (sandbox, id) = (self.sandbox.clone(), request.container_id);
        say(format_args!("remove container {id}"));
        let task = tokio::spawn(async move { sandbox.remove_container(&id, &container).await });
        answer(task.await.context("remove container"))
    }

    async fn exec_process(&self, _: &TtrpcContext, request: message::ExecProcessRequest) -> Result<Empty> {
        let container = self.container(&request.container_id)?;
        say(format_args!("exec {} in {}", request.exec_id, request.container_id));
        let sandbox = self.sandbox.clone();
        let task = tokio::spawn(async move {
            let process = request.process.into_option().context("no process is given")?;
            sandbox.exec(&container, &request.exec_id, process).await
        });
        answer(task.await.context("exec").and_then(|executed| executed))
    }

    async fn signal_process(&self, _: &TtrpcContext, request: message::SignalProcessRequest) -> Result<Empty> {
        let container = self.container(&request.container_id)?;
        let process = self.process(&request.container_id, &request.exec_id)?;
        answer(container.signal(&request.exec_id, &process, request.signal))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: message::WaitProcessRequest,
    ) -> Result<message::WaitProcessResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let status = process.wait().await.map_err(failed)?;
        Ok(message::WaitProcessResponse { status, ..Default::default() })
    }

    async fn update_container(&self, _: &TtrpcContext, request: message::UpdateContainerRequest) -> Result<Empty> {
        let container = self.container(&request.container_id)?;
        answer(container.cgroup.apply(&request.resources))
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: message::StatsContainerRequest,
    ) -> Result<message::StatsContainerResponse> {
        Ok(guest_stats::container(&self.container(&request.container_id)?.cgroup))
    }

    async fn pause_container(&self, _: &TtrpcContext, request: message::PauseContainerRequest) -> Result<Empty> {
        answer(self.container(&request.container_id)?.cgroup.freeze(true))
    }

    async fn resume_container(&self, _: &TtrpcContext, request: message::ResumeContainerRequest) -> Result<Empty> {
        answer(self.container(&request.container_id)?.cgroup.freeze(false))
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: message::WriteStreamRequest,
    ) -> Result<message::WriteStreamResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let stream = process.input().ok_or_else(|| invalid("standard input is closed"))?;
        stream.write_all(&request.data).await.map_err(failed)?;
        let len = u32::try_from(request.data.len()).map_err(failed)?;
        Ok(message::WriteStreamResponse { len, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: message::ReadStreamRequest,
    ) -> Result<message::ReadStreamResponse> {
        self.read(request, false).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: message::ReadStreamRequest,
    ) -> Result<message::ReadStreamResponse> {
        self.read(request, true).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: message::CloseStdinRequest) -> Result<Empty> {
        self.process(&request.container_id, &request.exec_id)?.close_input();
        Ok(Empty::new())
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: message::TtyWinResizeRequest) -> Result<Empty> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        answer(process.resize(request.row, request.column))
    }

    async fn update_interface(&self, _: &TtrpcContext, request: message::UpdateInterfaceRequest) -> Result<Interface> {
        let interface = request.interface.into_option().ok_or_else(|| invalid("no interface"))?;
        let updated = network::update_interface(&interface, &self.sandbox.hotplug).await;
        updated.map_err(failed)?;
        say(format_args!("interface {} is {}", interface.name, interface.hwAddr));
        Ok(interface)
    }

    async fn update_routes(&self, _: &TtrpcContext, request: message::UpdateRoutesRequest) -> Result<message::Routes> {
        network::update_routes(&request.routes.Routes).await.map_err(failed)?;
        let routes = network::routes().await.map_err(failed)?;
        Ok(message::Routes { Routes: routes, ..Default::default() })
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: message::ListInterfacesRequest,
    ) -> Result<message::Interfaces> {
        let interfaces = network::interfaces().await.map_err(failed)?;
        Ok(message::Interfaces { Interfaces: interfaces, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: message::ListRoutesRequest) -> Result<message::Routes> {
        let routes = network::routes().await.map_err(failed)?;
        Ok(message::Routes { Routes: routes, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: message::AddARPNeighborsRequest) -> Result<Empty> {
        answer(network::add_neighbours(&request.neighbors.ARPNeighbors).await)
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: message::UpdateEphemeralMountsRequest,
    ) -> Result<Empty> {
        answer(self.sandbox.update_storages(&request.storages).await)
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: message::GetMetricsRequest) -> Result<message::Metrics> {
        Ok(message::Metrics { metrics: guest_stats::metrics(), ..Default::default() })
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, request: message::SetGuestDateTimeRequest) -> Result<Empty> {
        let time = TimeSpec::new(request.Sec, request.Usec.saturating_mul(1000));
        answer(clock_settime(ClockId::CLOCK_REALTIME, time))
    }

    async fn copy_file(&self, _: &TtrpcContext, request: message::CopyFileRequest) -> Result<Empty> {
        answer(copy_file::copy(&request))
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: message::GetOOMEventRequest) -> Result<message::OOMEvent> {
        let container_id = self.sandbox.oom.next().await.map_err(failed)?;
        Ok(message::OOMEvent { container_id, ..Default::default() })
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: message::VolumeStatsRequest,
    ) -> Result<VolumeStatsResponse> {
        guest_stats::volume(&request.volume_guest_path).map_err(failed)
    }
}

fn answer<E: Display>(outcome: std::result::Result<(), E>) -> Result<Empty> {
    outcome.map(|()| Empty::new()).map_err(failed)
}

/// The operation was tried and failed.
fn failed(error: impl Display) -> Error {
    // The alternate form of an `anyhow` error is its whole chain.
    let text = format!("{error:#}");
    say(format_args!("failed: {text}"));
    Error::RpcStatus(get_status(Code::INTERNAL, text))
}

/// The request names what is not there.
fn invalid(text: impl Into<String>) -> Error {
    Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, text.into()))
}

fn end_of_stream() -> Error {
    Error::RpcStatus(get_status(Code::INTERNAL, "read meet eof"))
}
