//! The device actor: block, network, share-fs, vsock and VFIO devices of one VM.
//!
//! It owns the [`DeviceTable`](table::DeviceTable): ids, PCI slots and who holds what. Its one
//! mailbox is what makes hotplug serial.
//!
//! * Messages: [`AttachDevice`], [`AttachVsock`], [`AttachOciDevices`], [`AttachVfio`],
//!   [`AdoptDevices`], [`UndoDevices`].
//! * Host objects: `VmDevice` (a plugged device), `VfioBinding` (a function given to vfio-pci),
//!   `Process` and two `File`s (the vsock daemon and its sockets), `Hold` (a user of a device or
//!   binding, named by device id or PCI address).
//!
//! A device or binding belongs to the sandbox and is held by scopes. Undoing the last hold undoes
//! the entry that it held too, in the same report.
#![deny(unsafe_code)]

pub mod host;
mod linux;
mod messages;
mod oci;
pub mod rebuild;
mod serve;
pub mod slots;
pub mod table;
mod vfio;

pub use linux::LinuxDeviceHost;
pub use messages::*;
pub use serve::{DeviceActor, DevicesInBrief};
