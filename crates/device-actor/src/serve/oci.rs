//! `AttachOciDevices`: the devices of a container's spec.

use std::path::Path;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::config::VfioMode;
use sandbox_model::device::{Access, AgentDevice, BlockDevice, DeviceConfig, DiskFormat, VfioDevice};
use sandbox_model::ledger::Scope;
use sandbox_model::{ErrorKind, PortError};

use super::{Bench, DeviceActor, SharedDraft, attached};
use crate::host::{FindBlockNode, VfioName};
use crate::messages::{AttachOciDevices, AttachedDevice, DeviceError};
use crate::oci::{OciDevice, wanted};
use crate::vfio::members;

/// The agent's driver for a disk on PCI (behaviour A8).
const BLOCK_DRIVER: &str = "blk";

/// What `AttachOciDevices` keeps between its parts.
#[derive(Debug)]
pub struct OciTicket {
    devices: Vec<OciDevice>,
    scope: Scope,
    vfio_mode: VfioMode,
    direct: bool,
    draft: SharedDraft,
}

impl Serve<AttachOciDevices> for DeviceActor {
    type Ticket = OciTicket;
    type Outcome = Result<Vec<AgentDevice>, DeviceError>;

    fn plan(&mut self, request: AttachOciDevices, _: &Call) -> Plan<OciTicket, Self::Outcome> {
        match wanted(&request.devices, request.resources.as_ref()) {
            Err(what) => Plan::Answer(Err(DeviceError::Invalid { what })),
            Ok(devices) if devices.is_empty() => Plan::Answer(Ok(Vec::new())),
            Ok(devices) => Plan::Perform(OciTicket {
                devices,
                scope: Scope::Container(request.container),
                vfio_mode: request.vfio_mode,
                direct: request.direct,
                draft: self.draft(),
            }),
        }
    }

    fn perform(&self, ticket: &mut OciTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let bench = self.bench(&ticket.draft, call);
        let (devices, scope) = (ticket.devices.clone(), ticket.scope.clone());
        let (vfio_mode, direct) = (ticket.vfio_mode, ticket.direct);
        Box::pin(async move {
            let mut told = Vec::with_capacity(devices.len());
            for device in devices {
                told.push(match device {
                    OciDevice::Block { path, major, minor, access } => {
                        let node = FindBlockNode { major, minor };
                        bench.attach_block_node(&path, node, access, direct, &scope).await?
                    }
                    OciDevice::Vfio { path, name } => bench.attach_group(&path, name, vfio_mode, &scope).await?,
                });
            }
            Ok(told)
        })
    }

    fn settle(&mut self, ticket: OciTicket, done: Completion<Self::Outcome>) -> Self::Outcome {
        self.take_over(&ticket.draft);
        attached(done)
    }
}

impl Bench {
    async fn attach_block_node(
        &self,
        container_path: &Path,
        node: FindBlockNode,
        access: Access,
        direct: bool,
        scope: &Scope,
    ) -> Result<AgentDevice, DeviceError> {
        let node = self.clients.host.find_block_node(node, self.deadline).await?;
        let access = if node.read_only { Access::ReadOnly } else { access };
        let block = BlockDevice { path: node.path, access, format: DiskFormat::Raw, direct, serial: None };
        let attached = self.attach(DeviceConfig::Block(block), scope).await?;
        Ok(AgentDevice {
            id: place(&attached)?,
            driver: BLOCK_DRIVER.into(),
            vm_path: String::new(),
            container_path: container_path.display().to_string(),
            options: Vec::new(),
        })
    }

    async fn attach_group(
        &self,
        container_path: &Path,
        name: VfioName,
        mode: VfioMode,
        scope: &Scope,
    ) -> Result<AgentDevice, DeviceError> {
        let group = self.bind_group(name, scope).await?;
        let mut options = Vec::new();
        for function in members(&group) {
            let vfio = VfioDevice { bdf: function.bdf.clone(), group: group.group };
            let attached = self.attach(DeviceConfig::Vfio(vfio), scope).await?;
            options.push(format!("{}={}", function.bdf, place(&attached)?));
        }
        let driver = match mode {
            VfioMode::GuestKernel => "vfio-pci-gk",
            VfioMode::Vfio => "vfio-pci",
        };
        Ok(AgentDevice {
            id: container_path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            driver: driver.into(),
            vm_path: String::new(),
            container_path: container_path.display().to_string(),
            options,
        })
    }
}

/// The place that the agent is told; a device without one cannot be found in the guest.
fn place(attached: &AttachedDevice) -> Result<String, DeviceError> {
    attached.pci_path.as_ref().map(ToString::to_string).ok_or_else(|| {
        let cause = "the VMM did not say where the guest finds it";
        PortError::new(ErrorKind::Protocol, "add device", attached.device.as_str(), cause).into()
    })
}
