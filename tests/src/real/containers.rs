//! Containers of a real sandbox, and what runs in them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_agent::{CreateContainer, CreateSandbox, ExecProcess, GuestAgent, ProcessRef, ReadOutput};
use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use resource_actors::SandboxHandle;
use sandbox_model::layout::DEFAULT_SHM_BYTES;
use sandbox_model::request::{
    DevicesRequest, ResourceConfig, RootfsRequest, RootfsSource, ShareFsRequest, VolumesRequest, VsockRequest,
};
use sandbox_model::{ContainerId, Instant, Secret};
use serde_json::{Value, json};

use super::text;
use crate::simulated::bind;

/// What a container of the tests may do: `ping` needs a raw socket.
const CAPABILITIES: [&str; 4] = ["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_CHROOT"];
/// Output of a test's process is read in pieces of so many bytes.
const CHUNK_BYTES: u32 = 64 * 1024;

/// What every real sandbox needs: a way to its agent and a shared directory.
pub fn essentials() -> Vec<ResourceConfig> {
    vec![
        ResourceConfig::Vsock(VsockRequest { cid: None, backend: None }),
        ResourceConfig::ShareFs(ShareFsRequest { sandbox_bind_mounts: Vec::new() }),
    ]
}

/// A volume of each kind: directories shared writable and read-only, memory, a disk.
pub fn volumes(shared: &Path, fixed: &Path, disk: &Path) -> Vec<Mount> {
    vec![
        bind(&text(shared), "/shared", &["rbind", "rw"]),
        bind(&text(fixed), "/fixed", &["rbind", "ro"]),
        bind("shm", "/dev/shm", &[]),
        bind(&text(disk), "/disk", &["rbind", "rw"]),
    ]
}

/// From `Created` to a guest that has been told of its sandbox.
///
/// # Panics
/// When a step fails.
pub async fn boot(sandbox: &SandboxHandle, resources: Vec<ResourceConfig>) {
    sandbox.prepare_before_start_vm(resources).await.expect("prepared");
    sandbox.start_vm().await.expect("the VM starts");
    sandbox.setup_after_start_vm().await.expect("the VM starts");
    let request = CreateSandbox {
        hostname: sandbox.id().to_string(),
        storages: sandbox.storages_for_sandbox(DEFAULT_SHM_BYTES).await.expect("storages"),
        sandbox_id: sandbox.id().to_string(),
        ..CreateSandbox::default()
    };
    sandbox.agent().create_sandbox(request, deadline()).await.expect("the guest takes the sandbox");
}

/// A deadline for one call to the agent.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A container to be run.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its sandbox.
    pub sandbox: &'a SandboxHandle,
    /// Its name.
    pub id: ContainerId,
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Container<'_> {
    /// Makes it and starts `script` in it.
    ///
    /// # Panics
    /// When a step fails.
    pub async fn start(&self, rootfs: PathBuf, mounts: Vec<Mount>, limits: Option<LinuxResources>, script: &str) {
        let (sandbox, agent, container) = (self.sandbox, self.sandbox.agent(), self.id.clone());
        let source = RootfsSource::Directory { path: rootfs };
        let request = RootfsRequest { container: container.clone(), source, read_only: false };
        let rootfs = sandbox.set_up_rootfs(request).await.expect("a root");
        let mut all: Vec<Mount> =
            serde_json::from_value(json!([{"destination": "/proc", "type": "proc", "source": "proc"}]))
                .expect("mounts");
        all.extend(mounts);
        let volumes = VolumesRequest { container: container.clone(), mounts: all };
        let volumes = sandbox.set_up_volumes(volumes).await.expect("volumes");
        let devices = DevicesRequest { container: container.clone(), devices: Vec::new(), resources: None };
        let devices = sandbox.set_up_devices(devices).await.expect("devices");
        let mounts = volumes.mounts.iter().map(|mount| {
            json!({
                "destination": mount.destination, "type": mount.kind,
                "source": mount.source, "options": mount.options,
            })
        });
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "root": {"path": rootfs.path},
            "process": process(script),
            "mounts": mounts.collect::<Vec<_>>(),
            "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}], "resources": limits},
            "annotations": {"io.katacontainers.pkg.oci.container_type": "single_container"},
        }))
        .expect("a spec");
        let request = CreateContainer {
            container: container.clone(),
            devices: devices.devices,
            storages: rootfs.storages.into_iter().chain(volumes.storages).collect(),
            spec: Secret::new(Box::new(spec)),
            sandbox_pidns: false,
        };
        agent.create_container(request, deadline()).await.expect("a container");
        agent.start_container(container, deadline()).await.expect("a first process");
    }

    /// Its first process.
    pub fn first(&self) -> ProcessRef {
        ProcessRef { container: self.id.clone(), exec: String::new() }
    }

    /// Runs `script` beside the first process, as a process of the name `exec`.
    ///
    /// # Panics
    /// When the agent refuses.
    pub async fn exec(&self, exec: &str, script: &str) -> Ran {
        let name = ProcessRef { container: self.id.clone(), exec: exec.to_owned() };
        let spec: Process = serde_json::from_value(process(script)).expect("a process");
        let request = ExecProcess { process: name.clone(), spec: Secret::new(Box::new(spec)) };
        self.sandbox.agent().exec_process(request, deadline()).await.expect("one more process");
        self.finish(name).await
    }

    /// Waits for the end of a process.
    ///
    /// # Panics
    /// When the agent does not answer.
    pub async fn finish(&self, process: ProcessRef) -> Ran {
        let agent = self.sandbox.agent();
        let (out, err) = tokio::join!(read(&*agent, &process, false), read(&*agent, &process, true));
        let code = agent.wait_process(process, deadline()).await.expect("an exit code");
        Ran { code, out, err }
    }
}

async fn read(agent: &dyn GuestAgent, process: &ProcessRef, errors: bool) -> String {
    let mut text = Vec::new();
    loop {
        let request = ReadOutput { process: process.clone(), len: CHUNK_BYTES };
        let read = if errors { agent.read_stderr(request, deadline()) } else { agent.read_stdout(request, deadline()) };
        match read.await {
            Ok(bytes) if !bytes.is_empty() => text.extend(bytes),
            // The end of a process ends its output too.
            _ => return String::from_utf8_lossy(&text).into_owned(),
        }
    }
}

fn process(script: &str) -> Value {
    json!({
        "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
    })
}
