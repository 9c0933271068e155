//! One sandbox's life, step by step, as a runtime would drive it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder,
};
use resource_actors::{ResourceSystem, SandboxError, SandboxHandle, SandboxSpec};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::{Access, BlockDevice, DiskFormat};
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::{
    DevicesRequest, ResourceConfig, ResourceUpdate, RootfsRequest, RootfsSource, ShareFsRequest, VolumesRequest,
    VsockRequest,
};
use sandbox_model::{ContainerId, SandboxId};

use crate::Samples;

/// The steps of a life, in their order.
pub const STEPS: [&str; 10] =
    ["create", "prepare", "start", "reach agent", "rootfs", "volumes", "devices", "update", "stop", "cleanup"];

/// Steps before the sandbox is in use.
const STARTING: usize = 8;

/// How long each step took, in many lives.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// In the order of [`STEPS`].
    pub steps: [Samples; STEPS.len()],
    /// From `create` to `update`.
    pub starts: Samples,
    /// From `create` to `cleanup`.
    pub wholes: Samples,
}

impl Times {
    /// Adds those of other lives.
    pub fn extend(&mut self, other: &Self) {
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            mine.extend(theirs);
        }
        self.starts.extend(&other.starts);
        self.wholes.extend(&other.wholes);
    }

    async fn step<T, E>(&mut self, index: usize, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let done = call.await?;
        if let Some(samples) = self.steps.get_mut(index) {
            samples.add(begun.elapsed());
        }
        Ok(done)
    }
}

/// What every sandbox of a load is made of: one NIC, four devices, some volumes.
#[derive(Debug, Clone)]
pub struct Life {
    /// The sandbox's configuration.
    pub config: Arc<SandboxConfig>,
    /// Where its NIC comes from.
    pub network: NetworkSource,
    /// Root file system of its container.
    pub rootfs: PathBuf,
    /// Sources of its volumes.
    pub volumes: Vec<PathBuf>,
}

impl Life {
    /// A life on the simulated host: nothing of what it names is ever opened.
    pub fn simulated() -> Self {
        Self {
            config: config().into(),
            network: own_network(),
            rootfs: "/images/one".into(),
            volumes: vec!["/srv/data".into(), "/srv/config".into(), "/srv/secrets".into()],
        }
    }

    /// From nothing to a running container with its limits.
    ///
    /// # Errors
    /// As the library. What had been made of the sandbox is still there.
    pub async fn start(
        &self,
        system: &ResourceSystem,
        id: SandboxId,
        times: &mut Times,
    ) -> Result<SandboxHandle, SandboxError> {
        let begun = Instant::now();
        let spec = SandboxSpec { id, config: self.config.clone(), cgroups_path: None };
        let sandbox = times.step(0, system.create_sandbox(spec)).await?;
        times.step(1, sandbox.prepare_before_start_vm(self.resources())).await?;
        times.step(2, sandbox.start_vm()).await?;
        times.step(3, sandbox.setup_after_start_vm()).await?;
        let container = container();
        let source = RootfsSource::Directory { path: self.rootfs.clone() };
        let rootfs = RootfsRequest { container: container.clone(), source, read_only: false };
        times.step(4, sandbox.set_up_rootfs(rootfs)).await?;
        let volumes = VolumesRequest { container: container.clone(), mounts: self.mounts() };
        times.step(5, sandbox.set_up_volumes(volumes)).await?;
        let devices = DevicesRequest { container: container.clone(), devices: Vec::new(), resources: None };
        times.step(6, sandbox.set_up_devices(devices)).await?;
        let update = sandbox.update_linux_resources(container, Some(limits()), ResourceUpdate::Add);
        times.step(STARTING - 1, update).await?;
        times.starts.add(begun.elapsed());
        Ok(sandbox)
    }

    /// From running to gone.
    ///
    /// # Errors
    /// As the library, or what the clean-up has left, in words.
    pub async fn end(&self, sandbox: &SandboxHandle, times: &mut Times) -> Result<(), String> {
        let stopped = times.step(STARTING, sandbox.stop()).await;
        stopped.map_err(|error| error.to_string())?;
        let report = times.step(STARTING + 1, sandbox.cleanup()).await.map_err(|error| error.to_string())?;
        let left: Vec<String> = report.failed().map(|(item, error)| format!("{}: {error}", item.object)).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    fn resources(&self) -> Vec<ResourceConfig> {
        let disk = BlockDevice {
            path: "/simulated/root.img".into(),
            access: Access::ReadOnly,
            format: DiskFormat::Raw,
            direct: false,
            serial: None,
        };
        vec![
            ResourceConfig::Vsock(VsockRequest { cid: None, backend: None }),
            ResourceConfig::Network(NetworkRequest {
                source: self.network.clone(),
                model: InterworkingModel::TcFilter,
                queue_pairs: 1,
            }),
            ResourceConfig::ShareFs(ShareFsRequest { sandbox_bind_mounts: Vec::new() }),
            ResourceConfig::VmRootfs(disk),
        ]
    }

    fn mounts(&self) -> Vec<Mount> {
        let volume = |(index, source): (usize, &PathBuf)| {
            let mount = MountBuilder::default()
                .source(source)
                .destination(format!("/volumes/{index}"))
                .typ("bind")
                .options(vec!["rbind".to_owned(), "rw".to_owned()]);
            mount.build().unwrap_or_default()
        };
        self.volumes.iter().enumerate().map(volume).collect()
    }
}

/// A configuration that a simulated VMM accepts.
pub fn config() -> SandboxConfig {
    let mut config = SandboxConfig::default();
    config.hypervisor.kernel = "/simulated/vmlinux".into();
    config.hypervisor.initrd = Some("/simulated/initrd.cpio".into());
    config
}

/// A namespace of the sandbox's own.
pub fn own_network() -> NetworkSource {
    NetworkSource::Own { addresses: "10.7.0.2/24".parse().into_iter().collect() }
}

fn limits() -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().quota(150_000i64).period(100_000u64).build().ok();
    let memory = LinuxMemoryBuilder::default().limit(300i64 << 20).build().ok();
    let mut resources = LinuxResourcesBuilder::default().build().unwrap_or_default();
    resources.set_cpu(cpu).set_memory(memory);
    resources
}

fn container() -> ContainerId {
    ContainerId::new("one").expect("a literal id")
}
