//! The calls of the port, one by one: ask in the agent's words, look at the answer.

use std::future::Future;
use std::sync::Arc;

use agent_protocol::agent as wire;
use agent_protocol::agent_ttrpc::AgentServiceClient;
use protobuf::MessageField;
use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestRoute};
use sandbox_model::{ContainerId, ErrorKind, Instant, PortResult};
use ttrpc::context::Context;

use super::failure::{Subject, is_end_of_stream};
use super::{KataAgent, READ_LEN_MAX, convert, dial, oci, oci_linux, reply};
use crate::{
    AgentAddress, CopyFile, CreateContainer, CreateSandbox, ExecProcess, GuestAgent, GuestDetails, OnlineCpuMem,
    ProcessRef, ReadOutput, ResizeTerminal, SignalProcess, UpdateContainer, WriteInput,
};

/// Makes one call of the agent's service, by its name there.
macro_rules! call {
    ($agent:ident.$how:ident, $method:ident($asked:ident), $subject:expr, $deadline:expr) => {
        $agent.$how($subject, $deadline, |agent, context| async move { agent.$method(context, &$asked).await }).await
    };
}

#[sandbox_model::port::async_trait]
impl GuestAgent for KataAgent {
    async fn connect(&self, address: AgentAddress, deadline: Instant) -> PortResult<()> {
        let connection = dial::connect(&address, deadline).await?;
        self.replace(Some(Arc::new(connection)), "another connection took its place");
        Ok(())
    }

    async fn disconnect(&self, (): (), _: Instant) -> PortResult<()> {
        self.replace(None, "we disconnected from the agent");
        Ok(())
    }

    async fn check(&self, (): (), deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("Check", &self.sandbox);
        self.connection(&subject)?.check(&subject, deadline).await
    }

    async fn guest_details(&self, (): (), deadline: Instant) -> PortResult<GuestDetails> {
        let subject = Subject::new("GetGuestDetails", &self.sandbox);
        let asked = wire::GuestDetailsRequest { mem_block_size: true, ..Default::default() };
        let reply = call!(self.ask, get_guest_details(asked), &subject, deadline)?;
        reply::details(&subject, reply)
    }

    async fn create_sandbox(&self, request: CreateSandbox, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("CreateSandbox", &request.sandbox_id);
        let asked = wire::CreateSandboxRequest {
            hostname: request.hostname,
            dns: request.dns.into_exposed(),
            storages: request.storages.into_iter().map(convert::storage).collect(),
            sandbox_id: request.sandbox_id,
            kernel_modules: request.kernel_modules.iter().map(|line| convert::module(line)).collect(),
            ..Default::default()
        };
        call!(self.ask, create_sandbox(asked), &subject, deadline)?;
        Ok(())
    }

    async fn destroy_sandbox(&self, (): (), deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("DestroySandbox", &self.sandbox);
        let asked = wire::DestroySandboxRequest::new();
        call!(self.ask, destroy_sandbox(asked), &subject, deadline)?;
        Ok(())
    }

    async fn update_interface(&self, request: GuestInterface, deadline: Instant) -> PortResult<()> {
        let mac = request.mac;
        let subject = Subject::new("UpdateInterface", format!("{} ({mac})", request.name));
        let interface = MessageField::some(convert::interface(request));
        let asked = wire::UpdateInterfaceRequest { interface, ..Default::default() };
        let reply = call!(self.ask, update_interface(asked), &subject, deadline)?;
        reply::interface(&subject, &reply, mac)
    }

    async fn add_neighbors(&self, request: Vec<GuestNeighbor>, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("AddARPNeighbors", &self.sandbox);
        let neighbors = request.into_iter().map(convert::neighbor).collect();
        let neighbors = MessageField::some(wire::ARPNeighbors { ARPNeighbors: neighbors, ..Default::default() });
        let asked = wire::AddARPNeighborsRequest { neighbors, ..Default::default() };
        call!(self.ask, add_arp_neighbors(asked), &subject, deadline)?;
        Ok(())
    }

    async fn update_routes(&self, request: Vec<GuestRoute>, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("UpdateRoutes", &self.sandbox);
        let routes = request.into_iter().map(convert::route).collect();
        let routes = MessageField::some(wire::Routes { Routes: routes, ..Default::default() });
        let asked = wire::UpdateRoutesRequest { routes, ..Default::default() };
        call!(self.ask, update_routes(asked), &subject, deadline)?;
        Ok(())
    }

    async fn online_cpu_mem(&self, request: OnlineCpuMem, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("OnlineCPUMem", &self.sandbox);
        let OnlineCpuMem { wait, vcpus: nb_cpus, cpu_only } = request;
        let asked = wire::OnlineCPUMemRequest { wait, nb_cpus, cpu_only, ..Default::default() };
        call!(self.ask, online_cpu_mem(asked), &subject, deadline)?;
        Ok(())
    }

    async fn create_container(&self, request: CreateContainer, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("CreateContainer", &request.container);
        let container_id = String::from(request.container);
        let asked = wire::CreateContainerRequest {
            // The first process goes by the container's name.
            exec_id: container_id.clone(),
            container_id,
            devices: request.devices.into_iter().map(convert::device).collect(),
            storages: request.storages.into_iter().map(convert::storage).collect(),
            OCI: sendable(&subject, oci::spec(request.spec.expose()))?,
            sandbox_pidns: request.sandbox_pidns,
            ..Default::default()
        };
        call!(self.ask, create_container(asked), &subject, deadline)?;
        Ok(())
    }

    async fn start_container(&self, container: ContainerId, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("StartContainer", &container);
        let asked = wire::StartContainerRequest { container_id: container.into(), ..Default::default() };
        call!(self.ask, start_container(asked), &subject, deadline)?;
        Ok(())
    }

    async fn remove_container(&self, container: ContainerId, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("RemoveContainer", &container);
        let asked = wire::RemoveContainerRequest { container_id: container.into(), ..Default::default() };
        call!(self.ask, remove_container(asked), &subject, deadline)?;
        Ok(())
    }

    async fn update_container(&self, request: UpdateContainer, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("UpdateContainer", &request.container);
        let resources = sendable(&subject, oci_linux::resources(&request.resources))?;
        let container_id = request.container.into();
        let asked = wire::UpdateContainerRequest { container_id, resources, ..Default::default() };
        call!(self.ask, update_container(asked), &subject, deadline)?;
        Ok(())
    }

    async fn exec_process(&self, request: ExecProcess, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("ExecProcess", &request.process);
        let process = sendable(&subject, oci::process(request.spec.expose()))?;
        let (container_id, exec_id) = names(request.process);
        let asked = wire::ExecProcessRequest { container_id, exec_id, process, ..Default::default() };
        call!(self.ask, exec_process(asked), &subject, deadline)?;
        Ok(())
    }

    async fn signal_process(&self, request: SignalProcess, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("SignalProcess", &request.process);
        let (container_id, exec_id) = names(request.process);
        let asked = wire::SignalProcessRequest { container_id, exec_id, signal: request.signal, ..Default::default() };
        call!(self.ask, signal_process(asked), &subject, deadline)?;
        Ok(())
    }

    async fn wait_process(&self, process: ProcessRef, deadline: Instant) -> PortResult<i32> {
        let subject = Subject::new("WaitProcess", &process);
        let (container_id, exec_id) = names(process);
        let asked = wire::WaitProcessRequest { container_id, exec_id, ..Default::default() };
        let reply = call!(self.wait, wait_process(asked), &subject, deadline)?;
        reply::status(&subject, &reply)
    }

    async fn read_stdout(&self, request: ReadOutput, deadline: Instant) -> PortResult<Vec<u8>> {
        let call = |agent: AgentServiceClient, ctx, asked| async move { agent.read_stdout(ctx, &asked).await };
        self.read("ReadStdout", request, deadline, call).await
    }

    async fn read_stderr(&self, request: ReadOutput, deadline: Instant) -> PortResult<Vec<u8>> {
        let call = |agent: AgentServiceClient, ctx, asked| async move { agent.read_stderr(ctx, &asked).await };
        self.read("ReadStderr", request, deadline, call).await
    }

    async fn write_stdin(&self, request: WriteInput, deadline: Instant) -> PortResult<u32> {
        let subject = Subject::new("WriteStdin", &request.process);
        let given = request.data.expose().len();
        let (container_id, exec_id) = names(request.process);
        let asked =
            wire::WriteStreamRequest { container_id, exec_id, data: request.data.into_exposed(), ..Default::default() };
        // A process that does not read is no sign of a dead agent.
        let reply = call!(self.wait, write_stdin(asked), &subject, deadline)?;
        reply::taken(&subject, &reply, given)
    }

    async fn close_stdin(&self, process: ProcessRef, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("CloseStdin", &process);
        let (container_id, exec_id) = names(process);
        let asked = wire::CloseStdinRequest { container_id, exec_id, ..Default::default() };
        call!(self.ask, close_stdin(asked), &subject, deadline)?;
        Ok(())
    }

    async fn resize_terminal(&self, request: ResizeTerminal, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("TtyWinResize", &request.process);
        let (container_id, exec_id) = names(request.process);
        let (row, column) = (request.rows, request.columns);
        let asked = wire::TtyWinResizeRequest { container_id, exec_id, row, column, ..Default::default() };
        call!(self.ask, tty_win_resize(asked), &subject, deadline)?;
        Ok(())
    }

    async fn copy_file(&self, request: CopyFile, deadline: Instant) -> PortResult<()> {
        let subject = Subject::new("CopyFile", &request.path);
        let asked = wire::CopyFileRequest {
            path: request.path,
            file_size: request.size,
            file_mode: request.file_mode,
            dir_mode: request.dir_mode,
            uid: request.uid,
            gid: request.gid,
            offset: request.offset,
            data: request.data.into_exposed(),
            ..Default::default()
        };
        call!(self.ask, copy_file(asked), &subject, deadline)?;
        Ok(())
    }

    async fn oom_event(&self, (): (), deadline: Instant) -> PortResult<ContainerId> {
        let subject = Subject::new("GetOOMEvent", &self.sandbox);
        let asked = wire::GetOOMEventRequest::new();
        let reply = call!(self.wait, get_oom_event(asked), &subject, deadline)?;
        reply::oom(&subject, &reply)
    }
}

impl KataAgent {
    async fn read<F>(
        &self,
        method: &'static str,
        request: ReadOutput,
        deadline: Instant,
        call: impl FnOnce(AgentServiceClient, Context, wire::ReadStreamRequest) -> F,
    ) -> PortResult<Vec<u8>>
    where
        F: Future<Output = ttrpc::Result<wire::ReadStreamResponse>>,
    {
        let subject = Subject::new(method, &request.process);
        let len = request.len.min(READ_LEN_MAX);
        let (container_id, exec_id) = names(request.process);
        let asked = wire::ReadStreamRequest { container_id, exec_id, len, ..Default::default() };
        match self.wait(&subject, deadline, |agent, context| call(agent, context, asked)).await {
            Ok(reply) => reply::output(&subject, reply, len),
            Err(error) if is_end_of_stream(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// A process, as requests name it.
fn names(process: ProcessRef) -> (String, String) {
    (process.container.into(), process.exec)
}

/// What cannot travel makes a request invalid.
fn sendable<T>(subject: &Subject, converted: oci::Sent<T>) -> PortResult<MessageField<T>> {
    let converted = converted.map_err(|error| subject.error(ErrorKind::Invalid, error.to_string()));
    converted.map(MessageField::some)
}
