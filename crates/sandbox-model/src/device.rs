//! Devices of a VM, as plain data between supervisor, device actor and VMM.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::MacAddress;
use crate::{DeviceId, PassedFd};

/// A slot on a bridge of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciSlot {
    /// Number of the `pci-bridge`, from 0.
    pub bridge: u8,
    /// Slot on it, 1 to 30 (behaviour A8: slot 0 and 31 are not for hotplug).
    pub slot: u8,
}

/// A path of slots from the root bus, as the Kata agent reads it: `02/05`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PciPath(pub String);

impl PciPath {
    /// The path of a device in `slot` of a bridge that sits in `bridge_slot` of the root bus.
    pub fn behind_bridge(bridge_slot: u8, slot: u8) -> Self {
        Self(format!("{bridge_slot:02x}/{slot:02x}"))
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a guest may write to something. Enforced on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The guest cannot write.
    ReadOnly,
    /// It can.
    ReadWrite,
}

/// The format of a disk image. Never probed: a guest that writes a header must not change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Sectors, as they are.
    #[default]
    Raw,
}

/// A disk: a host block device or a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// What is opened on the host.
    pub path: PathBuf,
    /// Enforced by the VMM and the open mode.
    pub access: Access,
    /// Format of its content.
    pub format: DiskFormat,
    /// Whether the host's page cache is bypassed.
    pub direct: bool,
    /// Serial number that the guest reads, at most 20 bytes (virtio-blk `VIRTIO_BLK_ID_BYTES`).
    pub serial: Option<String>,
}

/// Which disk a path leads to, whatever the path is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub enum DiskIdentity {
    /// A regular file.
    File {
        /// `st_dev` of its file system.
        device: u64,
        /// `st_ino`.
        inode: u64,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// What a plugged device is to those who ask for it again: two wishes of one role, other than
/// [`Plain`](Self::Plain), are the same device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub enum DeviceRole {
    /// A disk, plugged in one way at a time.
    Disk {
        /// The file itself, whatever its path.
        identity: DiskIdentity,
        /// Whether the guest writes.
        access: Access,
        /// Format.
        format: DiskFormat,
        /// Whether the page cache is bypassed.
        direct: bool,
    },
    /// A PCI function of the host.
    Function {
        /// `DDDD:BB:DD.F`.
        bdf: String,
        /// Its IOMMU group.
        group: u32,
    },
    /// The guest's vsock: there is one.
    Vsock,
    /// Nobody asks for it again (a NIC, the shared directory).
    Plain,
}

/// A NIC on a tap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDevice {
    /// Name of the tap, for people and records.
    pub tap: String,
    /// The open tap, one descriptor for each queue pair.
    #[serde(skip)]
    pub queues: Vec<PassedFd>,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// The guest's MAC.
    pub mac: MacAddress,
    /// MTU in bytes, announced to the guest.
    pub mtu: u32,
}

/// A virtio-fs device whose daemon listens on a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareFsDevice {
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// Mount tag (`kataShared`).
    pub tag: String,
    /// Queue size in descriptors.
    pub queue_size: u16,
}

/// A vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockDevice {
    /// Guest context id, from 3 (vsock(7)).
    pub cid: u32,
    /// How it is served.
    pub backend: VsockBackend,
}

/// Who serves the guest's vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum VsockBackend {
    /// The kernel (`/dev/vhost-vsock`).
    Kernel,
    /// A daemon in user space that offers the hybrid protocol (`CONNECT port`) on a unix socket.
    VhostUser {
        /// Between VMM and daemon.
        socket: PathBuf,
        /// Between us and daemon.
        hybrid_socket: PathBuf,
    },
}

/// A PCI function handed to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioDevice {
    /// Host address `DDDD:BB:DD.F`.
    pub bdf: String,
    /// IOMMU group number.
    pub group: u32,
}

/// Whether a text is the address of a PCI function, `DDDD:BB:DD.F`.
pub fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    let Some((address, function)) = text.split_once('.') else {
        return false;
    };
    let parts: Vec<_> = address.split(':').collect();
    matches!(parts[..], [domain, bus, device] if hex(domain, 4) && hex(bus, 2) && hex(device, 2))
        && matches!(function.as_bytes(), [b'0'..=b'7'])
}

/// A device to be plugged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceConfig {
    /// virtio-blk.
    Block(BlockDevice),
    /// virtio-net.
    Network(NetworkDevice),
    /// virtio-fs.
    ShareFs(ShareFsDevice),
    /// vsock.
    Vsock(VsockDevice),
    /// vfio-pci.
    Vfio(VfioDevice),
}

impl DeviceConfig {
    /// The kind, in records and messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Network(_) => "network",
            Self::ShareFs(_) => "share-fs",
            Self::Vsock(_) => "vsock",
            Self::Vfio(_) => "vfio",
        }
    }
}

/// A device with the place that it shall take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedDevice {
    /// The VMM's name of it.
    pub id: DeviceId,
    /// Where.
    pub slot: PciSlot,
    /// What.
    pub config: DeviceConfig,
    /// A disk's open descriptor: what was checked is what the VMM uses, whatever takes its name.
    #[serde(skip)]
    pub disk: PassedFd,
}

/// A container's device, in the agent's words (behaviour A8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDevice {
    /// PCI path, or the VFIO group.
    pub id: String,
    /// Driver string (`blk`, `vfio-pci`, `vfio-pci-gk`).
    pub driver: String,
    /// Name in the guest, if the driver goes by name.
    pub vm_path: String,
    /// Path in the container.
    pub container_path: String,
    /// `HOST-BDF=GUEST-PATH` for VFIO.
    pub options: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::is_pci_address;

    #[test]
    fn addresses_are_whole_and_of_hex_digits() {
        assert!(is_pci_address("0000:3b:00.7"));
        for bad in ["", "3b:00.0", "0000:3b:00.8", "0000:3b:00.", "0000:3b:0g.0", "0000:3b:00.0/..", "00000:3b:00.0"] {
            assert!(!is_pci_address(bad), "{bad}");
        }
    }
}
