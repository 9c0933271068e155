//! `AttachDevice`, and plugging as all messages do it.

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::device::{BlockDevice, DeviceConfig, DeviceRole, PciPath, PlacedDevice};
use sandbox_model::ledger::{HostObject, Identity, Scope};
use sandbox_model::{DeviceId, ErrorKind, Outcome, PassedFd, PortError, PortResult};

use super::{Bench, DeviceActor, SharedDraft, attached};
use crate::host::InspectDisk;
use crate::messages::{AttachDevice, AttachedDevice, DeviceError};
use crate::table::{Change, Device, DeviceKey, DiskUse, Phase};

/// Bytes of a serial number (virtio-blk `VIRTIO_BLK_ID_BYTES`).
const SERIAL_BYTES_MAX: usize = 20;

/// What `AttachDevice` keeps between its parts.
#[derive(Debug)]
pub struct AttachTicket {
    request: AttachDevice,
    draft: SharedDraft,
}

impl Serve<AttachDevice> for DeviceActor {
    type Ticket = AttachTicket;
    type Outcome = Result<AttachedDevice, DeviceError>;

    fn plan(&mut self, request: AttachDevice, _: &Call) -> Plan<AttachTicket, Self::Outcome> {
        match check(&request.config) {
            Ok(()) => Plan::Perform(AttachTicket { request, draft: self.draft() }),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, ticket: &mut AttachTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (bench, request) = (self.bench(&ticket.draft, call), ticket.request.clone());
        Box::pin(async move { bench.attach(request.config, &request.holder).await })
    }

    fn settle(&mut self, ticket: AttachTicket, done: Completion<Self::Outcome>) -> Self::Outcome {
        self.take_over(&ticket.draft);
        attached(done)
    }
}

/// What can be said of a wish without looking at the host.
fn check(config: &DeviceConfig) -> Result<(), DeviceError> {
    let invalid = |what: String| Err(DeviceError::Invalid { what });
    match config {
        DeviceConfig::Block(block) if !block.path.is_absolute() => {
            invalid(format!("the disk's path {} is not absolute", block.path.display()))
        }
        DeviceConfig::Block(BlockDevice { serial: Some(serial), .. })
            if serial.len() > SERIAL_BYTES_MAX || !serial.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            invalid(format!("the serial {serial:?} is not 1 to {SERIAL_BYTES_MAX} printable characters"))
        }
        DeviceConfig::Network(nic) if nic.queue_pairs == 0 => invalid(format!("{} has no queue pair", nic.tap)),
        DeviceConfig::ShareFs(share) if !share.queue_size.is_power_of_two() => {
            invalid(format!("the queue size {} of {} is not a power of two", share.queue_size, share.tag))
        }
        DeviceConfig::Vsock(vsock) if vsock.cid < super::vsock::CID_MIN => {
            invalid(format!("the context id {} is reserved: guests start at 3", vsock.cid))
        }
        _ => Ok(()),
    }
}

impl Bench {
    /// Plugs a device for `scope`, or lets `scope` share the one that is plugged.
    pub(super) async fn attach(&self, config: DeviceConfig, scope: &Scope) -> Result<AttachedDevice, DeviceError> {
        let (key, disk) = self.key(&config).await?;
        let present = key.as_ref().and_then(|key| self.draft.borrow().find(key));
        let attached = match present {
            Some(device) => shared(&config, device)?,
            None => self.plug(config, key, disk).await?,
        };
        self.hold(&attached.device, scope)?;
        Ok(attached)
    }

    /// What makes the device one of a kind. A disk is opened for it.
    async fn key(&self, config: &DeviceConfig) -> Result<(Option<DeviceKey>, PassedFd), DeviceError> {
        let key = match config {
            DeviceConfig::Block(block) => {
                let wish = InspectDisk { path: block.path.clone(), access: block.access };
                let facts = self.clients.host.inspect_disk(wish, self.deadline).await;
                let facts = facts.map_err(|error| bad_source(block, error))?;
                return Ok((Some(DeviceKey::Disk(facts.identity)), facts.file));
            }
            DeviceConfig::Vfio(function) => Some(DeviceKey::Function(function.bdf.clone())),
            DeviceConfig::Vsock(_) => Some(DeviceKey::Vsock),
            DeviceConfig::Network(_) | DeviceConfig::ShareFs(_) => None,
        };
        Ok((key, PassedFd::absent()))
    }

    async fn plug(
        &self,
        config: DeviceConfig,
        key: Option<DeviceKey>,
        disk: PassedFd,
    ) -> Result<AttachedDevice, DeviceError> {
        let kind = config.kind().to_owned();
        let role = role(&config, key.as_ref());
        let reserved = self.draft.borrow_mut().reserve(&config, key);
        let Some((id, slot)) = reserved else {
            let slots = *self.draft.borrow().view().slots();
            return Err(DeviceError::NoFreeSlot { slots: slots.total(), bridges: slots.bridges() });
        };
        let object = HostObject::VmDevice { device: id.clone(), kind: kind.clone(), slot, role };
        let placed = PlacedDevice { id: id.clone(), slot, config, disk };
        // Nothing is awaited between taking the slot and the ledger's intent: cut off anywhere, a
        // doubtful device always has an entry by which an undo settles it.
        let made = self.clients.journal.make(Scope::Sandbox, object, |_| self.add(placed)).await;
        match made {
            Ok((_, pci_path)) => {
                self.draft.borrow_mut().note(Change::Plugged(id.clone(), pci_path.clone()));
                Ok(AttachedDevice { device: id, pci_path })
            }
            Err(error) => {
                let change = match error.outcome {
                    Outcome::NotDone => Change::Refused(id),
                    Outcome::Doubtful => Change::Doubted(id),
                };
                self.draft.borrow_mut().note(change);
                Err(match error.kind {
                    ErrorKind::Unsupported => DeviceError::Unsupported { kind },
                    _ => error.into(),
                })
            }
        }
    }

    async fn add(&self, placed: PlacedDevice) -> PortResult<(Option<PciPath>, Identity)> {
        let (id, slot) = (placed.id.clone(), placed.slot);
        let added = self.clients.vmm.add_device(placed, self.deadline).await?;
        let expected = PciPath::behind_bridge(self.clients.first_bridge_slot + slot.bridge, slot.slot);
        if let Some(path) = added.pci_path.as_ref().filter(|path| **path != expected) {
            // The guest would be told of a place where something else may sit.
            let cause = format!("the VMM reports it at {path}, not at {expected}");
            return Err(PortError::new(ErrorKind::Protocol, "add device", id.as_str(), cause).doubtful());
        }
        Ok((added.pci_path, Identity::Named))
    }

    /// Notes that `scope` uses a device; once is enough.
    fn hold(&self, id: &DeviceId, scope: &Scope) -> Result<(), DeviceError> {
        if self.draft.borrow().is_held(id, scope) {
            return Ok(());
        }
        self.clients.journal.note(scope.clone(), HostObject::Hold { object: id.to_string() })?;
        self.draft.borrow_mut().note(Change::Held(id.clone(), scope.clone()));
        Ok(())
    }
}

/// What the ledger keeps of a device, so that a later process knows it again.
fn role(config: &DeviceConfig, key: Option<&DeviceKey>) -> DeviceRole {
    match (config, key) {
        (DeviceConfig::Block(block), Some(DeviceKey::Disk(identity))) => {
            let BlockDevice { access, format, direct, .. } = block;
            DeviceRole::Disk { identity: *identity, access: *access, format: *format, direct: *direct }
        }
        (DeviceConfig::Vfio(function), _) => DeviceRole::Function { bdf: function.bdf.clone(), group: function.group },
        (DeviceConfig::Vsock(_), _) => DeviceRole::Vsock,
        _ => DeviceRole::Plain,
    }
}

/// A wish for a device that is in the table already.
fn shared(config: &DeviceConfig, device: Device) -> Result<AttachedDevice, DeviceError> {
    if device.phase != Phase::Present {
        let cause = "it is not settled whether the VM still has it from an attempt before";
        return Err(PortError::new(ErrorKind::Busy, "share device", device.id.as_str(), cause).into());
    }
    match (config, device.disk_use) {
        (DeviceConfig::Vsock(_), _) => Err(DeviceError::Invalid { what: "the VM has its vsock already".into() }),
        (DeviceConfig::Block(block), Some(present)) if present != DiskUse::of(block) => {
            Err(DeviceError::ConflictingAccess {
                path: block.path.clone(),
                present: present.to_string(),
                wanted: DiskUse::of(block).to_string(),
            })
        }
        _ => Ok(AttachedDevice { device: device.id, pci_path: device.pci_path }),
    }
}

/// What is wrong with a disk is the caller's to mend; a host that did not answer is not.
fn bad_source(block: &BlockDevice, error: PortError) -> DeviceError {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Busy | ErrorKind::Denied => {
            DeviceError::BadSource { path: block.path.clone(), reason: error.cause }
        }
        _ => error.into(),
    }
}
