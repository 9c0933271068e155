//! Brings a hypervisor of the embedder's own: the port, implemented outside of the library.
//!
//! This one is a VM that only counts. What matters is which calls it gets, in which order.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::executor::block_on;
use hypervisor::{
    AddedDevice, AdoptVm, AdoptedVm, BindSocket, Capabilities, FIRST_BRIDGE_SLOT, Hypervisor, KillVm, PresentDevice,
    RemoveDevice, RemoveSocket, ResizeMemory, ResizeVcpus, ResizedMemory, ResizedVcpus, SocketFile, StartVm, StartedVm,
    StopVm, VmExit, VmmFactory,
};
use lifecycle_tests::simulated::{boot, config};
use resource_actors::ledger::MemoryStore;
use resource_actors::{Ports, ResourceSystem, SandboxSpec};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::{PciPath, PlacedDevice};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};
use simulation::{SimulatedFacts, World, simulated_ports};
use tokio::sync::watch;

/// A VMM that writes down what it is asked.
#[derive(Debug, Clone, Default)]
struct Counting {
    calls: Arc<watch::Sender<Vec<String>>>,
    ended: Arc<watch::Sender<bool>>,
}

impl Counting {
    fn note(&self, call: impl Into<String>) {
        self.calls.send_modify(|calls| calls.push(call.into()));
    }
}

impl VmmFactory for Counting {
    fn create(&self, _: &SandboxId, _: &Path, _: &SandboxConfig) -> Result<Arc<dyn Hypervisor>, PortError> {
        Ok(Arc::new(self.clone()))
    }

    fn name(&self) -> &'static str {
        "counting"
    }
}

#[sandbox_model::port::async_trait]
impl Hypervisor for Counting {
    async fn capabilities(&self, (): (), _: Instant) -> PortResult<Capabilities> {
        Ok(Capabilities {
            name: "counting".to_owned(),
            block_hotplug: true,
            network_hotplug: true,
            share_fs: true,
            vcpu_hotplug: false,
            memory_hotplug: false,
            sockets: Vec::new(),
        })
    }

    async fn add_device(&self, device: PlacedDevice, _: Instant) -> PortResult<AddedDevice> {
        self.note(format!("add {}", device.config.kind()));
        let path = PciPath::behind_bridge(FIRST_BRIDGE_SLOT + device.slot.bridge, device.slot.slot);
        Ok(AddedDevice { pci_path: Some(path) })
    }

    async fn remove_device(&self, request: RemoveDevice, _: Instant) -> PortResult<()> {
        self.note(format!("remove {}", request.id));
        Ok(())
    }

    async fn query_devices(&self, (): (), _: Instant) -> PortResult<Vec<PresentDevice>> {
        Ok(Vec::new())
    }

    async fn bind_socket(&self, request: BindSocket, _: Instant) -> PortResult<SocketFile> {
        Err(no_sockets(request.path))
    }

    async fn remove_socket(&self, request: RemoveSocket, _: Instant) -> PortResult<()> {
        Err(no_sockets(request.path))
    }

    async fn start_vm(&self, _: StartVm, _: Instant) -> PortResult<StartedVm> {
        self.note("start");
        Ok(StartedVm { process: None, vcpu_threads: Vec::new(), accelerator: "none".to_owned() })
    }

    async fn adopt_vm(&self, request: AdoptVm, _: Instant) -> PortResult<AdoptedVm> {
        let cause = "this VM ends with the process that started it";
        Err(PortError::new(ErrorKind::Unsupported, "adopt", request.tag, cause))
    }

    async fn resume_vm(&self, (): (), _: Instant) -> PortResult<()> {
        self.note("resume");
        Ok(())
    }

    async fn stop_vm(&self, _: StopVm, _: Instant) -> PortResult<VmExit> {
        self.note("stop");
        self.ended.send_replace(true);
        Ok(VmExit { code: Some(0), signal: None, last_words: String::new() })
    }

    async fn wait_exit(&self, (): (), _: Instant) -> PortResult<VmExit> {
        let ended = self.ended.subscribe().wait_for(|ended| *ended).await.map(|_| ());
        ended.map_err(|_| PortError::new(ErrorKind::PeerGone, "wait", "counting", "forgotten"))?;
        Ok(VmExit { code: Some(0), signal: None, last_words: String::new() })
    }

    async fn kill_vm(&self, _: KillVm, _: Instant) -> PortResult<()> {
        self.ended.send_replace(true);
        Ok(())
    }

    async fn resize_vcpus(&self, request: ResizeVcpus, _: Instant) -> PortResult<ResizedVcpus> {
        Ok(ResizedVcpus { vcpus: request.target, vcpu_threads: Vec::new() })
    }

    async fn resize_memory(&self, request: ResizeMemory, _: Instant) -> PortResult<ResizedMemory> {
        Ok(ResizedMemory { memory_mib: request.target_mib })
    }

    async fn last_words(&self, (): (), _: Instant) -> PortResult<String> {
        Ok("it counts".to_owned())
    }
}

fn no_sockets(path: PathBuf) -> PortError {
    PortError::new(ErrorKind::Unsupported, "bind", path.display().to_string(), "it named no socket")
}

/// Runs a sandbox around it and returns the calls that it got.
///
/// # Errors
/// The first that went wrong.
pub(crate) fn run() -> Result<Vec<String>, Box<dyn Error>> {
    let (world, vmm) = (Arc::new(World::new()), Counting::default());
    let ports = Ports { vmm: Arc::new(vmm.clone()), ..simulated_ports(&world) };
    let system = ResourceSystem::builder(ports)
        .store(Arc::new(MemoryStore::new("/run/embedded")))
        .facts(Arc::new(SimulatedFacts::default()))
        .start()?;
    let spec = SandboxSpec { id: SandboxId::new("own")?, config: config().into(), cgroups_path: None };
    let sandbox = block_on(system.create_sandbox(spec))?;
    block_on(boot(&sandbox))?;
    block_on(sandbox.stop())?;
    let report = block_on(sandbox.cleanup())?;
    assert!(report.is_clean(), "{report:?}");
    block_on(system.shutdown());
    let calls = vmm.calls.borrow().clone();
    Ok(calls)
}

#[cfg_attr(test, expect(dead_code, reason = "a test runs `run`"))]
fn main() -> Result<(), Box<dyn Error>> {
    println!("{}", run()?.join("\n"));
    Ok(())
}
