//! A whole lifecycle on simulated ports, in virtual time.

use std::future::Future;
use std::sync::Arc;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder,
};
use resource_actors::host::PathKind;
use resource_actors::ledger::MemoryStore;
use resource_actors::system::Intercept;
use resource_actors::{ResourceSystem, SandboxError, SandboxHandle, SandboxSpec};
use sandbox_model::config::SandboxConfig;
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::{
    DevicesRequest, ResourceConfig, ResourceUpdate, RootfsRequest, RootfsSource, ShareFsRequest, VolumesRequest,
    VsockRequest,
};
use sandbox_model::trace::TraceSink;
use sandbox_model::{ContainerId, SandboxId};
use simulation::{SimulatedFacts, World, simulated_ports};
use tokio::task::LocalSet;

/// A path that is a block device.
pub const DISK: &str = "/dev/simulated";

/// A configuration that the simulated VMM accepts.
pub fn config() -> SandboxConfig {
    let mut config = SandboxConfig::default();
    config.hypervisor.kernel = "/simulated/kernel".into();
    config.hypervisor.initrd = Some("/simulated/initrd".into());
    // A group of one function and one of two; the host has more, which no guest may have.
    config.hypervisor.vfio_devices = ["0000:20:00.0", "0000:80:00.0", "0000:80:00.1"].map(str::to_owned).to_vec();
    config
}

/// A system on this thread whose world is `world`.
pub fn system(world: &Arc<World>, sink: Option<Arc<dyn TraceSink>>, intercept: Option<Intercept>) -> ResourceSystem {
    system_on(world, &MemoryStore::new("/run/simulated"), sink, intercept)
}

/// A system on this thread that finds in `store` what another one on it has left.
pub fn system_on(
    world: &Arc<World>,
    store: &MemoryStore,
    sink: Option<Arc<dyn TraceSink>>,
    intercept: Option<Intercept>,
) -> ResourceSystem {
    let kinds = [(DISK.into(), Some(PathKind::BlockDevice))].into();
    let mut builder = ResourceSystem::builder(simulated_ports(world))
        .store(Arc::new(store.clone()))
        .facts(Arc::new(SimulatedFacts { kinds }));
    if let Some(sink) = sink {
        builder = builder.trace(sink);
    }
    if let Some(intercept) = intercept {
        builder = builder.intercept(intercept);
    }
    builder.here()
}

/// Runs `body` on one thread whose clock jumps to the next timer when all is quiet.
///
/// # Panics
/// When the runtime cannot be made.
pub fn in_virtual_time<F: Future>(body: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a current-thread runtime needs only memory");
    LocalSet::new().block_on(&runtime, async { body().await })
}

/// What a sandbox of the tests starts with: a vsock, a network of its own, a share.
pub fn resources() -> Vec<ResourceConfig> {
    let addresses = vec!["10.7.0.2/24".parse().expect("a literal address")];
    vec![
        ResourceConfig::Vsock(VsockRequest { cid: None, backend: None }),
        ResourceConfig::Network(NetworkRequest {
            source: NetworkSource::Own { addresses },
            model: InterworkingModel::TcFilter,
            queue_pairs: 1,
        }),
        ResourceConfig::ShareFs(ShareFsRequest { sandbox_bind_mounts: Vec::new() }),
    ]
}

/// A container's limits.
pub fn limits(quota_us: i64, memory_bytes: i64) -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().quota(quota_us).period(100_000u64).build().expect("all fields are set");
    let memory = LinuxMemoryBuilder::default().limit(memory_bytes).build().expect("all fields are set");
    LinuxResourcesBuilder::default().cpu(cpu).memory(memory).build().expect("all fields are set")
}

/// A bind mount.
pub fn bind(source: &str, destination: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
    let mount = MountBuilder::default().source(source).destination(destination).typ("bind").options(options);
    mount.build().expect("all fields are set")
}

/// An id.
pub fn container(name: &str) -> ContainerId {
    ContainerId::new(name).expect("a literal id")
}

/// A new sandbox.
///
/// # Errors
/// As the library.
pub async fn create(system: &ResourceSystem, name: &str) -> Result<SandboxHandle, SandboxError> {
    let id = SandboxId::new(name).expect("a literal id");
    system.create_sandbox(SandboxSpec { id, config: config().into(), cgroups_path: None }).await
}

/// From `Created` to `Running`.
///
/// # Errors
/// As the library.
pub async fn boot(sandbox: &SandboxHandle) -> Result<(), SandboxError> {
    sandbox.prepare_before_start_vm(resources()).await?;
    sandbox.start_vm().await?;
    sandbox.setup_after_start_vm().await
}

/// Gives a container all that it needs: a shared root, a shared volume, a read-only one, limits.
///
/// # Errors
/// As the library.
pub async fn add_container(sandbox: &SandboxHandle, name: &str) -> Result<(), SandboxError> {
    let id = container(name);
    let source = RootfsSource::Directory { path: format!("/images/{name}").into() };
    sandbox.set_up_rootfs(RootfsRequest { container: id.clone(), source, read_only: false }).await?;
    let mounts = vec![
        bind("/srv/common", "/common", &["rbind", "rw"]),
        bind("/srv/config", "/etc/config", &["rbind", "ro"]),
        bind("shm", "/dev/shm", &[]),
    ];
    sandbox.set_up_volumes(VolumesRequest { container: id.clone(), mounts }).await?;
    let devices = DevicesRequest { container: id.clone(), devices: Vec::new(), resources: None };
    sandbox.set_up_devices(devices).await?;
    let limits = limits(150_000, 300 << 20);
    sandbox.update_linux_resources(id, Some(limits), ResourceUpdate::Add).await.map(|_| ())
}

/// A lifecycle with two containers, one of which leaves again.
///
/// # Errors
/// As the library.
pub async fn lifecycle(sandbox: &SandboxHandle) -> Result<(), SandboxError> {
    boot(sandbox).await?;
    add_container(sandbox, "one").await?;
    add_container(sandbox, "two").await?;
    let limits = limits(250_000, 400 << 20);
    sandbox.update_linux_resources(container("two"), Some(limits), ResourceUpdate::Update).await?;
    sandbox.release_container(container("one")).await?;
    sandbox.save().await?;
    sandbox.stop().await
}
