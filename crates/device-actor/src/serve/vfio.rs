//! `AttachVfio`, and handing over IOMMU groups.

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::device::{DeviceConfig, VfioDevice, is_pci_address};
use sandbox_model::ledger::{HostObject, Identity, Scope};
use sandbox_model::{ErrorKind, PortError};

use super::{Bench, DeviceActor, SharedDraft, attached};
use crate::host::{BindVfio, VfioGroup, VfioName};
use crate::messages::{AttachVfio, AttachedDevice, DeviceError};
use crate::vfio::{VFIO_DRIVER, members};

/// What `AttachVfio` keeps between its parts.
#[derive(Debug)]
pub struct VfioTicket {
    bdf: String,
    draft: SharedDraft,
}

impl Serve<AttachVfio> for DeviceActor {
    type Ticket = VfioTicket;
    type Outcome = Result<AttachedDevice, DeviceError>;

    fn plan(&mut self, request: AttachVfio, _: &Call) -> Plan<VfioTicket, Self::Outcome> {
        if !is_pci_address(&request.bdf) {
            let what = format!("{:?} is no PCI address; one is written DDDD:BB:DD.F", request.bdf);
            return Plan::Answer(Err(DeviceError::Invalid { what }));
        }
        Plan::Perform(VfioTicket { bdf: request.bdf.to_ascii_lowercase(), draft: self.draft() })
    }

    fn perform(&self, ticket: &mut VfioTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (bench, bdf) = (self.bench(&ticket.draft, call), ticket.bdf.clone());
        Box::pin(async move {
            let group = bench.bind_group(VfioName::Function(bdf.clone()), &Scope::Sandbox).await?;
            if !members(&group).any(|function| function.bdf == bdf) {
                return Err(DeviceError::Invalid { what: format!("{bdf} is a bridge or audio function") });
            }
            let function = VfioDevice { bdf, group: group.group };
            bench.attach(DeviceConfig::Vfio(function), &Scope::Sandbox).await
        })
    }

    fn settle(&mut self, ticket: VfioTicket, done: Completion<Self::Outcome>) -> Self::Outcome {
        self.take_over(&ticket.draft);
        attached(done)
    }
}

impl Bench {
    /// Gives a whole group to vfio-pci, for `scope`: the kernel lets a VM use a group only when no
    /// function in it is left with a driver of the host.
    ///
    /// Each function that changes hands is an entry of the sandbox with the driver that it goes back
    /// to; `scope` holds it by its address.
    pub(super) async fn bind_group(&self, name: VfioName, scope: &Scope) -> Result<VfioGroup, DeviceError> {
        let clients = &self.clients;
        let group = clients.host.vfio_group(name.clone(), self.deadline).await?;
        self.all_allowed(&group)?;
        if members(&group).next().is_none() {
            let cause = "no function in it can be handed over";
            return Err(PortError::new(ErrorKind::Invalid, "bind group", group.group.to_string(), cause).into());
        }
        let live = clients.journal.ledger().live();
        for function in members(&group) {
            let bdf = function.bdf.clone();
            let is_bound = function.driver.as_deref() == Some(VFIO_DRIVER);
            let is_ours = live.iter().any(|entry| entry.object.binds(&bdf));
            if is_bound && !is_ours {
                // The administrator has set it aside for guests: it stays that way.
                continue;
            }
            let bind = || {
                let bdf = bdf.clone();
                clients.host.bind_vfio(BindVfio { bdf }, self.deadline)
            };
            if !is_ours {
                let original_driver = function.driver.clone();
                let object = HostObject::VfioBinding { bdf: bdf.clone(), original_driver };
                let bound = clients
                    .journal
                    .make(Scope::Sandbox, object, |_| async { bind().await.map(|()| ((), Identity::Named)) });
                bound.await?;
            } else if !is_bound {
                // An attempt before was cut off: its entry still knows the driver it goes back to.
                bind().await?;
            }
            let is_held = live.iter().any(|entry| entry.scope == *scope && entry.object.is_hold_on(&bdf));
            if !is_held {
                clients.journal.note(scope.clone(), HostObject::Hold { object: bdf })?;
            }
        }
        // Asked again: what counts is who has it now, and whether the group is still the same.
        let now = clients.host.vfio_group(name, self.deadline).await?;
        self.all_allowed(&now)?;
        if let Some(left) = members(&now).find(|function| function.driver.as_deref() != Some(VFIO_DRIVER)) {
            let with = left.driver.as_deref().unwrap_or("no driver");
            let cause = format!("{} of IOMMU group {} is with {with}", left.bdf, now.group);
            return Err(PortError::new(ErrorKind::Busy, "bind group", left.bdf.as_str(), cause).into());
        }
        Ok(now)
    }

    /// A function brings its whole IOMMU group along, so the administrator must have allowed all of
    /// it, whoever asks.
    fn all_allowed(&self, group: &VfioGroup) -> Result<(), DeviceError> {
        let allowed = &self.clients.vfio_devices;
        match members(group).find(|function| !allowed.contains(&function.bdf.to_ascii_lowercase())) {
            None => Ok(()),
            Some(function) => {
                let cause = format!(
                    "{} of IOMMU group {} is not in vfio_devices of [hypervisor.qemu]; add it there if guests may have it",
                    function.bdf, group.group
                );
                Err(PortError::new(ErrorKind::Denied, "bind group", function.bdf.as_str(), cause).into())
            }
        }
    }
}

/// Questions to a ledger's objects.
pub(super) trait Names {
    /// Whether it is the binding of a function.
    fn binds(&self, function: &str) -> bool;
    /// Whether it is a hold on an object.
    fn is_hold_on(&self, name: &str) -> bool;
}

impl Names for HostObject {
    fn binds(&self, function: &str) -> bool {
        matches!(self, Self::VfioBinding { bdf, .. } if bdf == function)
    }

    fn is_hold_on(&self, name: &str) -> bool {
        matches!(self, Self::Hold { object } if object == name)
    }
}
