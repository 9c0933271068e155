//! QEMU behind the [`Hypervisor`] port.
//!
//! * [`command_line`]: what QEMU is started with, as a pure function.
//! * [`accelerator`]: whether KVM works here, found out by trying.
//! * [`vm`]: the running process with its control channel ([`qmp`]) and console.
//! * [`keeper`]: the task that owns what changes, serving one device call at a time ([`ticket`]).
//! * [`sockets`]: how it is reached; [`adoption`]: how a later process takes it over.
//! * [`devices`], [`backend`]: plugging and unplugging; [`resize`]: vCPUs and memory.
//!
//! Stopping, waiting and last words go past the keeper, so that they answer while an unplug waits
//! for its guest.
//!
//! Its host objects: the QEMU process, which carries the tag, and two sockets in the sandbox's
//! directory.

mod accelerator;
mod adoption;
mod backend;
mod command_line;
mod devices;
mod keeper;
mod qmp;
mod resize;
mod sockets;
mod ticket;
mod vm;

pub use qmp::probe;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use helper_process::{SocketFile, end_process};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::PlacedDevice;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout_at;

use self::accelerator::KvmProbe;
use self::keeper::{Keeper, KeeperHandle};
use self::qmp::Command;
use self::sockets::Paths;
use self::vm::Vm;
use crate::{
    AddedDevice, AdoptVm, AdoptedVm, BindSocket, Capabilities, Hypervisor, KillVm, PresentDevice, RemoveDevice,
    RemoveSocket, ResizeMemory, ResizeVcpus, ResizedMemory, ResizedVcpus, StartVm, StartedVm, StopVm, VmExit,
    VmmFactory,
};

/// Makes VMs of QEMU. Clones share what was found out about KVM.
#[derive(Debug, Clone, Default)]
pub struct QemuFactory {
    kvm: KvmProbe,
}

impl VmmFactory for QemuFactory {
    fn create(&self, sandbox: &SandboxId, dir: &Path, config: &SandboxConfig) -> PortResult<Arc<dyn Hypervisor>> {
        let program = &config.hypervisor.path;
        // A bare name is sought in PATH, when it is started.
        if program.components().count() > 1
            && let Err(error) = std::fs::metadata(program)
        {
            return Err(PortError::os("find", program.display().to_string(), error));
        }
        Ok(Arc::new(Qemu::new(sandbox.clone(), self.kvm.clone(), Paths::of(dir))))
    }

    fn name(&self) -> &'static str {
        "qemu"
    }
}

/// One VM of QEMU.
#[derive(Debug)]
pub struct Qemu {
    name: SandboxId,
    kvm: KvmProbe,
    paths: Paths,
    /// Starts with the first call, on the runtime of its caller.
    keeper: OnceLock<KeeperHandle>,
    vm: watch::Sender<Option<Arc<Vm>>>,
}

impl Qemu {
    fn new(name: SandboxId, kvm: KvmProbe, paths: Paths) -> Self {
        Self { name, kvm, paths, keeper: OnceLock::new(), vm: watch::Sender::new(None) }
    }

    fn keeper(&self) -> &KeeperHandle {
        let keeper = || Keeper::new(self.name.clone(), self.kvm.clone(), self.paths.clone(), self.vm.clone());
        self.keeper.get_or_init(|| keeper().spawn())
    }

    fn vm(&self, operation: &str) -> PortResult<Arc<Vm>> {
        let vm = self.vm.borrow().clone();
        vm.ok_or_else(|| PortError::new(ErrorKind::NotFound, operation, self.name.as_str(), "the VM was not started"))
    }

    /// The VM, once a start that is under way has made it or failed: its caller may have left.
    async fn settled(&self, operation: &str, deadline: Instant) -> PortResult<Arc<Vm>> {
        if self.vm.borrow().is_none() && self.keeper.get().is_some() {
            let turn = self.keeper().run(operation, self.name.as_str(), deadline, |_| Box::pin(async { Ok(()) }));
            turn.await?;
        }
        self.vm(operation)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn capabilities(&self, (): (), _: Instant) -> PortResult<Capabilities> {
        Ok(Capabilities {
            name: "qemu".into(),
            block_hotplug: true,
            network_hotplug: true,
            share_fs: true,
            vcpu_hotplug: true,
            memory_hotplug: true,
            sockets: vec![self.paths.qmp.clone(), self.paths.console.clone()],
        })
    }

    async fn add_device(&self, device: PlacedDevice, deadline: Instant) -> PortResult<AddedDevice> {
        let id = device.id.clone();
        self.keeper()
            .run("device_add", id.as_str(), deadline, move |keeper| Box::pin(keeper.add(device, deadline)))
            .await
    }

    async fn remove_device(&self, RemoveDevice { id }: RemoveDevice, deadline: Instant) -> PortResult<()> {
        let wanted = id.clone();
        self.keeper()
            .run("device_del", id.as_str(), deadline, move |keeper| Box::pin(keeper.remove(wanted, deadline)))
            .await
    }

    async fn query_devices(&self, (): (), deadline: Instant) -> PortResult<Vec<PresentDevice>> {
        self.keeper()
            .run("qom-list", self.name.as_str(), deadline, move |keeper| Box::pin(keeper.query(deadline)))
            .await
    }

    async fn bind_socket(&self, request: BindSocket, deadline: Instant) -> PortResult<SocketFile> {
        self.keeper().run("bind", self.name.as_str(), deadline, move |keeper| Box::pin(keeper.bind(request))).await
    }

    async fn remove_socket(&self, request: RemoveSocket, deadline: Instant) -> PortResult<()> {
        self.keeper().run("unlink", self.name.as_str(), deadline, move |keeper| Box::pin(keeper.unbind(request))).await
    }

    async fn start_vm(&self, request: StartVm, deadline: Instant) -> PortResult<StartedVm> {
        self.keeper()
            .run("start", self.name.as_str(), deadline, move |keeper| Box::pin(keeper.start(request, deadline)))
            .await
    }

    async fn adopt_vm(&self, request: AdoptVm, deadline: Instant) -> PortResult<AdoptedVm> {
        self.keeper()
            .run("adopt", self.name.as_str(), deadline, move |keeper| Box::pin(keeper.adopt(request, deadline)))
            .await
    }

    async fn resume_vm(&self, (): (), deadline: Instant) -> PortResult<()> {
        let command = Command::new("cont", Value::Null);
        self.vm("cont")?.execute(command, deadline).await.map(|_| ())
    }

    async fn stop_vm(&self, request: StopVm, deadline: Instant) -> PortResult<VmExit> {
        let vm = self.settled("stop", deadline).await?;
        vm.stop(Duration::from_millis(request.term_ms), deadline).await
    }

    async fn wait_exit(&self, (): (), deadline: Instant) -> PortResult<VmExit> {
        let mut started = self.vm.subscribe();
        let end = async {
            let vm = started.wait_for(Option::is_some).await.ok()?.clone()?;
            Some(vm.ended().await)
        };
        match timeout_at(deadline, end).await {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(PortError::timed_out("wait for the end of", self.name.as_str(), "it has not ended")),
        }
    }

    async fn kill_vm(&self, request: KillVm, deadline: Instant) -> PortResult<()> {
        // Not before a start of our own has shown its process.
        if let Err(error) = self.settled("kill", deadline).await
            && !error.is_absent()
        {
            return Err(error);
        }
        end_process(request.process, &request.tag, Duration::from_millis(request.term_ms), deadline).await
    }

    async fn resize_vcpus(&self, request: ResizeVcpus, deadline: Instant) -> PortResult<ResizedVcpus> {
        resize::vcpus(&*self.vm("resize vCPUs")?, &request, deadline).await
    }

    async fn resize_memory(&self, request: ResizeMemory, deadline: Instant) -> PortResult<ResizedMemory> {
        resize::memory(&*self.vm("resize memory")?, &request, deadline).await
    }

    async fn last_words(&self, (): (), _: Instant) -> PortResult<String> {
        Ok(self.vm.borrow().as_ref().map(|vm| vm.last_words()).unwrap_or_default())
    }
}
