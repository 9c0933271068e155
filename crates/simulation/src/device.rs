//! The simulated host of the device actor: disks, vsock and PCI functions.

use std::sync::Arc;

use async_trait::async_trait;
use device_actor::host::{
    AdoptDaemon, AwaitVsockDaemon, BindVfio, BlockNode, DeviceHost, DiskFacts, DiskIdentity, EndDaemon, FindBlockNode,
    GiveBackVfio, InspectDisk, PciFunction, ReadyDaemon, RemoveSocket, SocketFile, StartVsockDaemon, StartedDaemon,
    VfioGroup, VfioName, VsockSupport,
};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};

use crate::World;

/// Kinds of objects in the world.
const PROCESS: &str = "process";
const SOCKET: &str = "socket";
const VFIO: &str = "vfio-binding";
/// `st_dev` of all that is simulated.
const DEVICE: u64 = 1;

/// Disks exist wherever they are asked for; daemons, sockets and bindings are objects of the world.
///
/// IOMMU group N holds one network function, `0000:NN:00.0` with N in hexadecimal; from group 0x80 on
/// it holds `0000:NN:00.1` too.
#[derive(Debug, Clone)]
pub struct SimulatedDeviceHost {
    world: Arc<World>,
    kernel_vsock: bool,
}

impl SimulatedDeviceHost {
    /// A host without `/dev/vhost-vsock`.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, kernel_vsock: false }
    }

    /// The same host with `/dev/vhost-vsock`.
    #[must_use]
    pub fn with_kernel_vsock(self) -> Self {
        Self { kernel_vsock: true, ..self }
    }

    fn socket(&self, path: &std::path::Path) -> PortResult<SocketFile> {
        let inode = self.world.make("bind", SOCKET, path.to_string_lossy().into_owned())?;
        Ok(SocketFile { device: DEVICE, inode })
    }
}

/// A number for a name, the same in every run (FNV-1a).
pub(crate) fn number_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The daemon's name in the world.
fn daemon(tag: &str) -> String {
    format!("vsock {tag}")
}

/// Groups from this one on hold two functions.
const FIRST_PAIR: u32 = 0x80;

fn functions_of(group: u32) -> impl Iterator<Item = String> {
    let count = if group < FIRST_PAIR { 1 } else { 2 };
    (0..count).map(move |function| format!("0000:{group:02x}:00.{function}"))
}

fn group_of(bdf: &str) -> Option<u32> {
    u32::from_str_radix(bdf.get(5..7)?, 16).ok()
}

#[async_trait]
impl DeviceHost for SimulatedDeviceHost {
    async fn inspect_disk(&self, request: InspectDisk, _: Instant) -> PortResult<DiskFacts> {
        let inode = number_of(&request.path.to_string_lossy());
        Ok(DiskFacts { identity: DiskIdentity::File { device: DEVICE, inode }, bytes: 1 << 20, file: Live::absent() })
    }

    async fn find_block_node(&self, request: FindBlockNode, _: Instant) -> PortResult<BlockNode> {
        let path = format!("/dev/block/{}:{}", request.major, request.minor).into();
        Ok(BlockNode { path, read_only: false })
    }

    async fn vsock_support(&self, (): (), _: Instant) -> PortResult<VsockSupport> {
        Ok(VsockSupport { kernel: self.kernel_vsock })
    }

    async fn choose_cid(&self, (): (), _: Instant) -> PortResult<u32> {
        Ok(1_000)
    }

    async fn start_vsock_daemon(&self, request: StartVsockDaemon, _: Instant) -> PortResult<StartedDaemon> {
        let start_ticks = self.world.make("exec", PROCESS, daemon(&request.tag))?;
        let pid = i32::try_from(start_ticks).unwrap_or(i32::MAX);
        Ok(StartedDaemon { process: ProcessIdentity { pid, start_ticks }, handle: Live::absent() })
    }

    async fn await_vsock_daemon(&self, request: AwaitVsockDaemon, _: Instant) -> PortResult<ReadyDaemon> {
        Ok(ReadyDaemon { socket: self.socket(&request.socket)?, hybrid_socket: self.socket(&request.hybrid_socket)? })
    }

    async fn adopt_daemon(&self, request: AdoptDaemon, _: Instant) -> PortResult<StartedDaemon> {
        if self.world.identity(PROCESS, &daemon(&request.tag)) == Some(request.process.start_ticks) {
            return Ok(StartedDaemon { process: request.process, handle: Live::absent() });
        }
        Err(PortError::new(ErrorKind::NotFound, "take hold of", request.tag, "simulated: no such process"))
    }

    async fn end_daemon(&self, request: EndDaemon, _: Instant) -> PortResult<()> {
        let name = daemon(&request.tag);
        let found = self.world.identity(PROCESS, &name);
        match request.process {
            Some(process) if found != Some(process.start_ticks) => {
                let cause = "simulated: no such process";
                Err(PortError::new(ErrorKind::NotFound, "end process", request.tag, cause))
            }
            _ => self.world.remove("end process", PROCESS, &name),
        }
    }

    async fn remove_socket(&self, request: RemoveSocket, _: Instant) -> PortResult<()> {
        let name = request.path.to_string_lossy().into_owned();
        let found = self.world.identity(SOCKET, &name);
        match (request.file, found) {
            (Some(file), Some(inode)) if file.inode != inode => {
                let cause = "simulated: another socket has taken its place";
                Err(PortError::new(ErrorKind::Foreign, "unlink", name, cause))
            }
            _ => self.world.remove("unlink", SOCKET, &name),
        }
    }

    async fn vfio_group(&self, request: VfioName, _: Instant) -> PortResult<VfioGroup> {
        let group = match &request {
            VfioName::Group(group) => Some(*group),
            VfioName::Function(bdf) => group_of(bdf),
            VfioName::CharacterDevice(name) => name.strip_prefix("vfio").and_then(|n| n.parse().ok()),
        };
        let Some(group) = group.filter(|group| *group <= 0xff) else {
            let cause = "simulated: no such function";
            return Err(PortError::new(ErrorKind::NotFound, "read IOMMU group", format!("{request:?}"), cause));
        };
        let function = |bdf: String| {
            let is_bound = self.world.identity(VFIO, &bdf).is_some();
            let driver = if is_bound { "vfio-pci" } else { "simulated-nic" };
            PciFunction { bdf, class: 0x0200, driver: Some(driver.into()) }
        };
        Ok(VfioGroup { group, functions: functions_of(group).map(function).collect() })
    }

    async fn bind_vfio(&self, request: BindVfio, _: Instant) -> PortResult<()> {
        self.world.make("bind to vfio-pci", VFIO, request.bdf).map(|_| ())
    }

    async fn give_back_vfio(&self, request: GiveBackVfio, _: Instant) -> PortResult<()> {
        self.world.remove("give back", VFIO, &request.bdf)
    }
}
