//! What the guest's agent is asked to mount.

use serde::{Deserialize, Serialize};

/// A mount that the agent makes before it starts a container or sandbox (behaviour A12).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// `virtio-fs`, `blk`, `ephemeral`, `local`, `overlayfs`, `bind`.
    pub driver: String,
    /// Options of the driver.
    pub driver_options: Vec<String>,
    /// Device address or tag.
    pub source: String,
    /// File system type.
    pub fstype: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Absolute path in the guest.
    pub mount_point: String,
    /// Group that owns the mount, if any.
    pub fs_group: Option<u32>,
    /// Whether several containers use it.
    pub shared: bool,
}

/// An OCI mount after we have planned it: what the container's spec shall say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Path in the container.
    pub destination: String,
    /// `bind`, or as the spec said.
    pub kind: String,
    /// Path in the guest.
    pub source: String,
    /// Mount options.
    pub options: Vec<String>,
}
