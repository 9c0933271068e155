//! The container in its sandbox (behaviour A2).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use guest_agent::{CreateContainer, GuestAgent, ProcessRef, ResizeTerminal, SignalProcess};
use resource_actors::SandboxHandle;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::{DevicesRequest, ResourceUpdate, RootfsRequest, RootfsSource, VolumesRequest};
use sandbox_model::{ContainerId, Instant, PortError, Secret};

use super::failures::{from_agent, from_library, from_sandbox};
use super::signals::{Forward, Forwarded};
use super::stdio::{Stream, feed, forever, pump};
use super::{Job, plan};
use crate::amend::{Prepared, amend};
use crate::output::{Code, Failure};

/// Output that is still under way when its process has ended gets so long.
const DRAIN: Duration = Duration::from_secs(2);
/// What goes on in a sandbox that has failed gets so long to say why.
const LAST_WORD: Duration = Duration::from_secs(2);
const SIGKILL: u32 = 9;

/// Whether there is a process in the guest that a signal could reach.
#[derive(Debug, Default)]
pub(super) struct Life(OnceLock<GuestProcess>);

impl Life {
    /// The process, once it runs.
    pub(super) fn process(&self) -> Option<&GuestProcess> {
        self.0.get()
    }
}

/// The container's first process.
#[derive(Debug)]
pub(super) struct GuestProcess {
    agent: Arc<dyn GuestAgent>,
    process: ProcessRef,
}

impl GuestProcess {
    async fn signal(&self, signal: u32, deadline: Instant) -> Result<(), PortError> {
        let request = SignalProcess { process: self.process.clone(), signal };
        self.agent.signal_process(request, deadline).await
    }

    /// Asks the process to end, and if it does not within `grace`, ends it. Whether that works does
    /// not matter much: the VM ends next.
    pub(super) async fn end(&self, signal: u8, grace: Duration) {
        let deadline = Instant::now() + grace;
        let asked = self.signal(u32::from(signal), deadline).await;
        let gone = match asked {
            Ok(()) => self.agent.wait_process(self.process.clone(), deadline).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            tracing::debug!("the container does not end by signal {signal}: {error}");
            drop(self.signal(SIGKILL, Instant::now() + grace).await);
        }
    }
}

/// A container to be run.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) sandbox: &'a SandboxHandle,
    pub(super) job: &'a Job,
    pub(super) variables: &'a [String],
}

impl Container<'_> {
    /// Runs it to its end, or to that of its sandbox: its exit code.
    ///
    /// In a sandbox that has failed a guest may hang on what is gone, and with it every call to it.
    pub(super) async fn run(&self, life: &Life) -> Result<i32, Failure> {
        let lived = self.live(life);
        tokio::pin!(lived);
        let why = tokio::select! {
            biased;
            done = &mut lived => return done,
            why = self.failure() => why,
        };
        // Who is at something knows more of it than the sandbox does, if it hears.
        let last = tokio::time::timeout(LAST_WORD, lived).await;
        last.unwrap_or_else(|_| Err(from_sandbox(&self.job.id, &why)))
    }

    async fn live(&self, life: &Life) -> Result<i32, Failure> {
        let agent = self.sandbox.agent();
        let id = ContainerId::new(self.job.id.as_str())
            .map_err(|error| Failure::early(Code::INVALID_ID, "cannot name the container", error, "--id NAME"))?;
        self.create_sandbox(&*agent).await?;
        let request = self.prepare(&id).await?;
        let has_terminal =
            request.spec.expose().process().as_ref().is_some_and(|process| process.terminal() == Some(true));
        let created = agent.create_container(request, self.deadline()).await;
        created.map_err(|error| self.in_guest("creating the container", &error))?;
        let started = agent.start_container(id.clone(), self.deadline()).await;
        started.map_err(|error| self.in_guest("starting the container", &error))?;
        let process = ProcessRef { container: id, exec: String::new() };
        let running = life.0.get_or_init(|| GuestProcess { agent: agent.clone(), process: process.clone() });
        self.attend(running, has_terminal).await
    }

    async fn create_sandbox(&self, agent: &dyn GuestAgent) -> Result<(), Failure> {
        let spec = &self.job.bundle.spec;
        let storages = self.sandbox.storages_for_sandbox(plan::shm_bytes(spec)).await;
        let storages = storages.map_err(|error| self.failed(&error))?;
        let request = plan::sandbox(self.job.id.as_str(), &self.job.config, spec, storages);
        let created = agent.create_sandbox(request, self.deadline()).await;
        created.map_err(|error| self.in_guest("creating the sandbox", &error))
    }

    /// Brings what the container needs into the guest. The root file system is mounted first.
    async fn prepare(&self, id: &ContainerId) -> Result<CreateContainer, Failure> {
        let (bundle, sandbox) = (&self.job.bundle, self.sandbox);
        let spec = bundle.spec.clone();
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let source = RootfsSource::Directory { path: bundle.rootfs.clone() };
        let rootfs = sandbox.set_up_rootfs(RootfsRequest { container: id.clone(), source, read_only }).await;
        let rootfs = rootfs.map_err(|error| self.failed(&error))?;
        let mounts = spec.mounts().clone().unwrap_or_default();
        let volumes = sandbox.set_up_volumes(VolumesRequest { container: id.clone(), mounts }).await;
        let volumes = volumes.map_err(|error| self.failed(&error))?;
        let linux = spec.linux().as_ref();
        let devices = linux.and_then(|linux| linux.devices().clone()).unwrap_or_default();
        let resources = linux.and_then(|linux| linux.resources().clone());
        let request = DevicesRequest { container: id.clone(), devices, resources: resources.clone() };
        let devices = sandbox.set_up_devices(request).await.map_err(|error| self.failed(&error))?;
        let applied = sandbox.update_linux_resources(id.clone(), resources, ResourceUpdate::Add).await;
        let applied = applied.map_err(|error| self.failed(&error))?;
        let prepared = Prepared {
            bundle: &bundle.dir,
            rootfs: &rootfs,
            volumes: &volumes,
            resources: &applied,
            variables: self.variables,
        };
        let amended = amend(spec, &self.job.config.runtime, &prepared);
        Ok(CreateContainer {
            container: id.clone(),
            devices: devices.devices,
            storages: rootfs.storages.into_iter().chain(volumes.storages).collect(),
            spec: Secret::new(Box::new(amended.spec)),
            sandbox_pidns: amended.sandbox_pidns,
        })
    }

    /// Copies input and output and passes signals on until the process has ended.
    async fn attend(&self, running: &GuestProcess, has_terminal: bool) -> Result<i32, Failure> {
        let GuestProcess { agent, process } = running;
        let progress = self.job.progress;
        let mut output = tokio::spawn(pump(agent.clone(), process.clone(), Stream::Out, progress));
        // A terminal has one output.
        let mut errors =
            (!has_terminal).then(|| tokio::spawn(pump(agent.clone(), process.clone(), Stream::Err, progress)));
        let input = tokio::spawn(feed(agent.clone(), process.clone()));
        let code = tokio::select! {
            biased;
            code = agent.wait_process(process.clone(), forever()) => code,
            never = forward(running, has_terminal) => match never {},
        };
        let drained = async {
            drop((&mut output).await);
            if let Some(errors) = &mut errors {
                drop(errors.await);
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some output of the container may be lost: its end did not come");
        }
        input.abort();
        code.map_err(|error| self.in_guest("waiting for the container", &error))
    }

    /// Why the sandbox has failed, once it has.
    async fn failure(&self) -> String {
        let mut status = self.sandbox.watch();
        let failed = status.wait_for(|now| now.state == LifecycleState::Failed).await;
        match failed.map(|now| now.failure.clone()) {
            Ok(why) => why.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.job.config.agent.create_container_timeout)
    }

    fn failed(&self, error: &resource_actors::SandboxError) -> Failure {
        from_library(&format!("sandbox {} failed", self.job.id), error)
    }

    fn in_guest(&self, doing: &str, error: &PortError) -> Failure {
        from_agent(&self.job.id, doing, error)
    }
}

/// Passes signals on, and the size of the terminal.
async fn forward(running: &GuestProcess, has_terminal: bool) -> std::convert::Infallible {
    let mut signals = match Forwarded::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!("signals are not passed on: {error}");
            std::future::pending().await
        }
    };
    let mut next = has_terminal.then_some(Forward::Resized);
    loop {
        let wish = match next.take() {
            Some(wish) => wish,
            None => signals.next().await,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let done = match wish {
            Forward::Signal(signal) => running.signal(signal, deadline).await,
            Forward::Resized if has_terminal => resize(running, deadline).await,
            Forward::Resized => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!("not passed on: {error}");
        }
    }
}

async fn resize(running: &GuestProcess, deadline: Instant) -> Result<(), PortError> {
    let Some((columns, rows)) = terminal_size() else { return Ok(()) };
    let request = ResizeTerminal { process: running.process.clone(), rows, columns };
    running.agent.resize_terminal(request, deadline).await
}

fn terminal_size() -> Option<(u32, u32)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some((u32::from(size.ws_col), u32::from(size.ws_row)))
}
