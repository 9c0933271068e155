//! What the guest's agent is asked to mount.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::secret;

/// A mount that the agent makes before it starts a container or sandbox (behaviour A12).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// `virtio-fs`, `blk`, `ephemeral`, `local`, `overlayfs`, `bind`.
    pub driver: String,
    /// Options of the driver.
    #[serde(serialize_with = "secret::options")]
    pub driver_options: Vec<String>,
    /// Device address or tag.
    pub source: String,
    /// File system type.
    pub fstype: String,
    /// Mount options.
    #[serde(serialize_with = "secret::options")]
    pub options: Vec<String>,
    /// Absolute path in the guest.
    pub mount_point: String,
    /// Group that owns the mount, if any.
    pub fs_group: Option<u32>,
    /// Whether several containers use it.
    pub shared: bool,
}

/// An OCI mount after we have planned it: what the container's spec shall say.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Path in the container.
    pub destination: String,
    /// `bind`, or as the spec said.
    pub kind: String,
    /// Path in the guest.
    pub source: String,
    /// Mount options.
    #[serde(serialize_with = "secret::options")]
    pub options: Vec<String>,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

impl fmt::Debug for GuestMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}
