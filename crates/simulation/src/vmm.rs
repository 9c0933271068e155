//! A simulated VM: it keeps devices, vCPUs and memory as numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use hypervisor::{
    AddedDevice, AdoptVm, AdoptedVm, BindSocket, Capabilities, FIRST_BRIDGE_SLOT, Hypervisor, KillVm, PresentDevice,
    RemoveDevice, RemoveSocket, ResizeMemory, ResizeVcpus, ResizedMemory, ResizedVcpus, SocketFile, StartVm, StartedVm,
    StopVm, VmCondition, VmExit, VmmFactory,
};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::{PciPath, PciSlot, PlacedDevice};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{DeviceId, ErrorKind, Instant, PortError, PortResult, SandboxId};
use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::World;

/// Kinds of objects in the world.
const PROCESS: &str = "process";
const DEVICE: &str = "vm-device";
const SOCKET: &str = "socket";

/// A client of one simulated VM. The VM's process and each of its devices are objects of the
/// [`World`]: the VM lives on when its client is dropped, and another client can adopt it.
#[derive(Debug)]
pub struct SimulatedVmm {
    world: Arc<World>,
    sandbox: SandboxId,
    machine: Mutex<Arc<Machine>>,
    /// Sockets that it wants in the sandbox's directory.
    sockets: Vec<PathBuf>,
}

/// One simulated VM, whoever holds a client of it.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    vm: Mutex<Vm>,
    exit: watch::Sender<Option<VmExit>>,
}

#[derive(Debug, Default)]
struct Vm {
    /// The process, while there is one, and its tag: its name in the world.
    process: Option<(ProcessIdentity, String)>,
    is_running: bool,
    devices: BTreeMap<DeviceId, PciSlot>,
    taken: BTreeSet<PciSlot>,
    vcpus: u32,
    vcpus_max: u32,
    memory_mib: u64,
    memory_max_mib: u64,
}

impl Machine {
    fn vm(&self) -> MutexGuard<'_, Vm> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_gone(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

impl Vm {
    fn started(&self) -> StartedVm {
        let threads = 1..=i32::try_from(self.vcpus).unwrap_or(i32::MAX);
        StartedVm {
            process: self.process.as_ref().map(|(process, _)| *process),
            vcpu_threads: threads.collect(),
            accelerator: "simulated".into(),
        }
    }
}

fn path_of(slot: PciSlot) -> PciPath {
    PciPath::behind_bridge(FIRST_BRIDGE_SLOT + slot.bridge, slot.slot)
}

impl SimulatedVmm {
    /// A VM that has not started.
    pub fn new(world: Arc<World>, sandbox: SandboxId) -> Self {
        Self { world, sandbox, machine: Mutex::default(), sockets: Vec::new() }
    }

    fn machine(&self) -> Arc<Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn object(&self, device: &DeviceId) -> String {
        format!("{}/{device}", self.sandbox)
    }

    fn error(&self, kind: ErrorKind, operation: &str, cause: &str) -> PortError {
        PortError::new(kind, operation, self.sandbox.as_str(), format!("simulated: {cause}"))
    }

    /// Ends the VM as a fault does, with everything that it held.
    pub fn crash(&self) {
        let exit = VmExit { code: None, signal: Some(9), last_words: "simulated crash".into() };
        self.end(&self.machine(), exit);
    }

    fn end(&self, machine: &Machine, exit: VmExit) {
        let mut vm = machine.vm();
        if let Some((_, tag)) = vm.process.take() {
            // Gone already if it was killed.
            let _ = self.world.remove("end process", PROCESS, &tag);
            self.world.forget_vm(&tag, &self.sandbox);
        }
        self.world.remove_below(DEVICE, &format!("{}/", self.sandbox));
        vm.devices.clear();
        vm.taken.clear();
        vm.is_running = false;
        drop(vm);
        machine.exit.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(exit);
            is_first
        });
    }

    /// The VM, if it has not ended.
    fn alive(&self, operation: &str) -> PortResult<Arc<Machine>> {
        let machine = self.machine();
        if machine.is_gone() {
            return Err(self.error(ErrorKind::PeerGone, operation, "the VM has ended"));
        }
        Ok(machine)
    }
}

#[async_trait]
impl Hypervisor for SimulatedVmm {
    async fn capabilities(&self, (): (), _: Instant) -> PortResult<Capabilities> {
        Ok(Capabilities {
            name: "simulated".into(),
            block_hotplug: true,
            network_hotplug: true,
            share_fs: true,
            vcpu_hotplug: true,
            memory_hotplug: true,
            sockets: self.sockets.clone(),
        })
    }

    async fn add_device(&self, request: PlacedDevice, _: Instant) -> PortResult<AddedDevice> {
        let machine = self.alive("add device")?;
        let mut vm = machine.vm();
        if vm.devices.contains_key(&request.id) {
            return Err(self.error(ErrorKind::Exists, "add device", &format!("duplicate id {}", request.id)));
        }
        if vm.taken.contains(&request.slot) {
            return Err(self.error(ErrorKind::Busy, "add device", &format!("{:?} is taken", request.slot)));
        }
        if vm.process.is_some() {
            self.world.make("add device", DEVICE, self.object(&request.id))?;
        }
        vm.taken.insert(request.slot);
        vm.devices.insert(request.id, request.slot);
        Ok(AddedDevice { pci_path: Some(path_of(request.slot)) })
    }

    async fn remove_device(&self, request: RemoveDevice, _: Instant) -> PortResult<()> {
        let machine = self.alive("remove device")?;
        let mut vm = machine.vm();
        let removed = vm.devices.remove(&request.id);
        if let Some(slot) = &removed {
            vm.taken.remove(slot);
        }
        match (removed, &vm.process) {
            // It only waited for the start.
            (Some(_), None) => Ok(()),
            _ => self.world.remove("remove device", DEVICE, &self.object(&request.id)),
        }
    }

    async fn query_devices(&self, (): (), _: Instant) -> PortResult<Vec<PresentDevice>> {
        let machine = self.alive("query devices")?;
        let present =
            |(id, slot): (&DeviceId, &PciSlot)| PresentDevice { id: id.clone(), pci_path: Some(path_of(*slot)) };
        Ok(machine.vm().devices.iter().map(present).collect())
    }

    async fn bind_socket(&self, request: BindSocket, _: Instant) -> PortResult<SocketFile> {
        let inode = self.world.make("bind", SOCKET, request.path.to_string_lossy().into_owned())?;
        Ok(SocketFile { device: 1, inode })
    }

    async fn remove_socket(&self, request: RemoveSocket, _: Instant) -> PortResult<()> {
        let name = request.path.to_string_lossy().into_owned();
        if request.file.is_some_and(|file| self.world.identity(SOCKET, &name) != Some(file.inode)) {
            return Err(self.error(ErrorKind::NotFound, "unlink", "not there"));
        }
        self.world.remove("unlink", SOCKET, &name)
    }

    async fn start_vm(&self, request: StartVm, _: Instant) -> PortResult<StartedVm> {
        let machine = self.alive("start VM")?;
        let mut vm = machine.vm();
        if vm.process.is_some() {
            return Err(self.error(ErrorKind::Exists, "start VM", "it has started already"));
        }
        let start_ticks = self.world.make("start VM", PROCESS, request.tag.as_str())?;
        for device in vm.devices.keys() {
            self.world.make("start VM", DEVICE, self.object(device))?;
        }
        let pid = i32::try_from(start_ticks).unwrap_or(i32::MAX);
        self.world.keep_machine(&request.tag, machine.clone());
        vm.process = Some((ProcessIdentity { pid, start_ticks }, request.tag));
        (vm.vcpus, vm.vcpus_max) = (request.spec.vcpus, request.spec.vcpus_max);
        (vm.memory_mib, vm.memory_max_mib) = (request.spec.memory_mib, request.spec.memory_max_mib);
        Ok(vm.started())
    }

    async fn adopt_vm(&self, request: AdoptVm, _: Instant) -> PortResult<AdoptedVm> {
        if self.machine().vm().process.is_some() {
            return Err(self.error(ErrorKind::Exists, "adopt VM", "this client has a VM already"));
        }
        let machine = self.world.machine(&request.tag);
        let machine = machine.ok_or_else(|| self.error(ErrorKind::NotFound, "adopt VM", "no such process"))?;
        let vm = machine.vm();
        let started = vm.started();
        if request.process.is_some() && request.process != started.process {
            return Err(self.error(ErrorKind::NotFound, "adopt VM", "no such process"));
        }
        let condition = if vm.is_running { VmCondition::Running } else { VmCondition::NotYetRun };
        let adopted = AdoptedVm { vm: started, condition, vcpus: vm.vcpus, memory_mib: vm.memory_mib };
        drop(vm);
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = machine;
        Ok(adopted)
    }

    async fn resume_vm(&self, (): (), _: Instant) -> PortResult<()> {
        let machine = self.alive("resume VM")?;
        let mut vm = machine.vm();
        if vm.process.is_none() {
            return Err(self.error(ErrorKind::Refused, "resume VM", "it has not started"));
        }
        vm.is_running = true;
        Ok(())
    }

    async fn stop_vm(&self, _: StopVm, _: Instant) -> PortResult<VmExit> {
        let machine = self.machine();
        self.end(&machine, VmExit { code: Some(0), signal: None, last_words: String::new() });
        machine.exit.borrow().clone().ok_or_else(|| self.error(ErrorKind::PeerGone, "stop VM", "no exit"))
    }

    async fn wait_exit(&self, (): (), deadline: Instant) -> PortResult<VmExit> {
        let mut exit = self.machine().exit.subscribe();
        let ended = timeout_at(deadline, exit.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(exit)) => exit.clone().ok_or_else(|| self.error(ErrorKind::PeerGone, "wait", "no exit")),
            Ok(Err(_)) => Err(self.error(ErrorKind::PeerGone, "wait for exit", "the VM is forgotten")),
            Err(_) => Err(PortError::timed_out("wait for exit", self.sandbox.as_str(), "it runs")),
        }
    }

    async fn kill_vm(&self, request: KillVm, _: Instant) -> PortResult<()> {
        let found = self.world.identity(PROCESS, &request.tag);
        if request.process.is_some_and(|process| found != Some(process.start_ticks)) {
            return Err(self.error(ErrorKind::NotFound, "end process", "no such process"));
        }
        let machine = self.world.machine(&request.tag).unwrap_or_else(|| self.machine());
        self.world.remove("end process", PROCESS, &request.tag)?;
        self.end(&machine, VmExit { code: None, signal: Some(9), last_words: String::new() });
        Ok(())
    }

    async fn resize_vcpus(&self, request: ResizeVcpus, _: Instant) -> PortResult<ResizedVcpus> {
        let machine = self.alive("resize vCPUs")?;
        let mut vm = machine.vm();
        if request.target > vm.vcpus_max {
            let cause = format!("{} vCPUs are more than the {} it can have", request.target, vm.vcpus_max);
            return Err(self.error(ErrorKind::Invalid, "resize vCPUs", &cause));
        }
        // As QEMU: what was added is not taken away.
        vm.vcpus = vm.vcpus.max(request.target);
        Ok(ResizedVcpus { vcpus: vm.vcpus, vcpu_threads: vm.started().vcpu_threads })
    }

    async fn resize_memory(&self, request: ResizeMemory, _: Instant) -> PortResult<ResizedMemory> {
        let machine = self.alive("resize memory")?;
        let mut vm = machine.vm();
        let more = request.target_mib.saturating_sub(vm.memory_mib);
        let memory_mib = vm.memory_mib + more.next_multiple_of(request.block_mib.max(1));
        if memory_mib > vm.memory_max_mib {
            let cause = format!("{memory_mib} MiB are more than the {} it can have", vm.memory_max_mib);
            return Err(self.error(ErrorKind::Invalid, "resize memory", &cause));
        }
        vm.memory_mib = memory_mib;
        Ok(ResizedMemory { memory_mib })
    }

    async fn last_words(&self, (): (), _: Instant) -> PortResult<String> {
        Ok(self.machine().exit.borrow().as_ref().map(|exit| exit.last_words.clone()).unwrap_or_default())
    }
}

/// Makes simulated VMs in one world.
#[derive(Debug, Clone)]
pub struct SimulatedVmmFactory {
    world: Arc<World>,
    made: Arc<Mutex<BTreeMap<SandboxId, Weak<SimulatedVmm>>>>,
    has_socket: Arc<AtomicBool>,
}

impl SimulatedVmmFactory {
    /// For `world`.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, made: Arc::default(), has_socket: Arc::default() }
    }

    /// Lets every VM that is made from now on want a control socket, as QEMU does.
    pub fn give_a_socket(&self) {
        self.has_socket.store(true, Ordering::Relaxed);
    }

    /// Ends the VMs of `sandbox` as a fault does, whoever holds a client of them.
    pub fn crash(&self, sandbox: &SandboxId) {
        let exit = VmExit { code: None, signal: Some(9), last_words: "simulated crash".into() };
        let undertaker = SimulatedVmm::new(self.world.clone(), sandbox.clone());
        for machine in self.world.machines_of(sandbox) {
            undertaker.end(&machine, exit.clone());
        }
    }

    /// The VM that was last made for `sandbox`, to let it crash.
    pub fn vm(&self, sandbox: &SandboxId) -> Option<Arc<SimulatedVmm>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).get(sandbox)?.upgrade()
    }
}

impl VmmFactory for SimulatedVmmFactory {
    fn create(&self, sandbox: &SandboxId, dir: &Path, _: &SandboxConfig) -> PortResult<Arc<dyn Hypervisor>> {
        let mut vmm = SimulatedVmm::new(self.world.clone(), sandbox.clone());
        vmm.sockets.extend(self.has_socket.load(Ordering::Relaxed).then(|| dir.join("vmm.sock")));
        let vmm = Arc::new(vmm);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(sandbox.clone(), Arc::downgrade(&vmm));
        Ok(vmm)
    }

    fn name(&self) -> &'static str {
        "simulated"
    }
}
