//! Handles that travel inside messages but never into a record.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A live kernel handle inside a message: present in this process, absent in every record of it.
///
/// Messages and port calls are recorded and replayed; a file descriptor cannot be. So it travels in
/// this wrapper, which serialises to nothing and comes back empty: a replayed message carries none,
/// and only the ports, which are replaced in a replay, ever look inside.
pub struct Live<T>(Option<Arc<T>>);

/// An open file descriptor on its way to the VMM.
pub type PassedFd = Live<OwnedFd>;

impl<T> Live<T> {
    /// Wraps a handle.
    pub fn new(handle: T) -> Self {
        Self(Some(Arc::new(handle)))
    }

    /// The wrapper of a replayed or simulated message.
    pub const fn absent() -> Self {
        Self(None)
    }

    /// The handle, if this message was not replayed.
    pub fn get(&self) -> Option<&Arc<T>> {
        self.0.as_ref()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self::absent()
    }
}

/// Two messages are the same message whatever handle they carry.
impl<T> PartialEq for Live<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "live" } else { "absent" })
    }
}

impl<T> Serialize for Live<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de, T> Deserialize<'de> for Live<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        Ok(Self::absent())
    }
}
