//! The host as Linux shows it.

mod disk;
mod sysfs;
mod vfio;
mod vsock;

use std::path::PathBuf;

use actor_shell::blocking;
use async_trait::async_trait;
use sandbox_model::{Instant, PortError, PortResult};
use tokio::time::timeout_at;

use crate::host::{
    AdoptDaemon, AwaitVsockDaemon, BindVfio, BlockNode, DeviceHost, DiskFacts, EndDaemon, FindBlockNode, GiveBackVfio,
    InspectDisk, ReadyDaemon, RemoveSocket, StartVsockDaemon, StartedDaemon, VfioGroup, VfioName, VsockSupport,
};

/// This host. It keeps nothing but where sysfs and the device nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxDeviceHost {
    sysfs: PathBuf,
    dev: PathBuf,
}

impl Default for LinuxDeviceHost {
    fn default() -> Self {
        Self { sysfs: "/sys".into(), dev: "/dev".into() }
    }
}

impl LinuxDeviceHost {
    /// The host with `/sys` and `/dev`.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Runs a system call beside the arbiter, no longer than until `deadline`. The call itself goes on
/// to its end, so what it does is doubtful then.
async fn within<T: Send + 'static>(
    operation: &'static str,
    object: String,
    deadline: Instant,
    call: impl FnOnce() -> PortResult<T> + Send + 'static,
) -> PortResult<T> {
    let answer = timeout_at(deadline, blocking(call)).await;
    answer.unwrap_or_else(|_| Err(PortError::timed_out(operation, object, "the kernel did not answer in time")))
}

#[async_trait]
impl DeviceHost for LinuxDeviceHost {
    async fn inspect_disk(&self, request: InspectDisk, deadline: Instant) -> PortResult<DiskFacts> {
        let object = request.path.display().to_string();
        within("open disk", object, deadline, move || disk::inspect(&request.path, request.access)).await
    }

    async fn find_block_node(&self, request: FindBlockNode, deadline: Instant) -> PortResult<BlockNode> {
        let object = format!("{}:{}", request.major, request.minor);
        let Self { sysfs, dev } = self.clone();
        within("find block device", object, deadline, move || disk::find_node(&sysfs, &dev, request)).await
    }

    async fn vsock_support(&self, (): (), deadline: Instant) -> PortResult<VsockSupport> {
        let device = vsock::device(&self.dev);
        let object = device.display().to_string();
        within("stat", object, deadline, move || Ok(VsockSupport { kernel: device.exists() })).await
    }

    async fn choose_cid(&self, (): (), deadline: Instant) -> PortResult<u32> {
        let device = vsock::device(&self.dev);
        let object = device.display().to_string();
        within("VHOST_VSOCK_SET_GUEST_CID", object, deadline, move || vsock::choose_cid(&device)).await
    }

    async fn start_vsock_daemon(&self, request: StartVsockDaemon, deadline: Instant) -> PortResult<StartedDaemon> {
        vsock::start(request, deadline).await
    }

    async fn await_vsock_daemon(&self, request: AwaitVsockDaemon, deadline: Instant) -> PortResult<ReadyDaemon> {
        vsock::wait(request, deadline).await
    }

    async fn adopt_daemon(&self, request: AdoptDaemon, deadline: Instant) -> PortResult<StartedDaemon> {
        vsock::adopt(request, deadline).await
    }

    async fn end_daemon(&self, request: EndDaemon, deadline: Instant) -> PortResult<()> {
        helper_process::end_process(request.process, &request.tag, vsock::TERM, deadline).await
    }

    async fn remove_socket(&self, request: RemoveSocket, deadline: Instant) -> PortResult<()> {
        let object = request.path.display().to_string();
        within("unlink", object, deadline, move || helper_process::remove_socket(&request.path, request.file)).await
    }

    async fn vfio_group(&self, request: VfioName, deadline: Instant) -> PortResult<VfioGroup> {
        let pci = vfio::Pci::new(self.sysfs.clone());
        within("read IOMMU group", format!("{request:?}"), deadline, move || pci.group(&request)).await
    }

    async fn bind_vfio(&self, request: BindVfio, deadline: Instant) -> PortResult<()> {
        let pci = vfio::Pci::new(self.sysfs.clone());
        within("bind to vfio-pci", request.bdf.clone(), deadline, move || pci.bind(&request.bdf)).await
    }

    async fn give_back_vfio(&self, request: GiveBackVfio, deadline: Instant) -> PortResult<()> {
        let pci = vfio::Pci::new(self.sysfs.clone());
        within("give back", request.bdf.clone(), deadline, move || {
            pci.give_back(&request.bdf, request.original_driver.as_deref())
        })
        .await
    }
}
