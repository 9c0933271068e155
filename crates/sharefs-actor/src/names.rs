//! Names in the shared directory: ours, derived, and never used twice.

use std::path::{Path, PathBuf};

use sandbox_model::ContainerId;
use sandbox_model::layout::{GUEST_SHARED_DIR, PASSTHROUGH, SANDBOX_MOUNTS};

/// The longest part of a volume's name that comes from its destination, in bytes. Names end at 255.
const BASE_LEN_MAX: usize = 64;

/// A place in the shared directory, relative to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(PathBuf);

impl Place {
    /// Everything that is passed through.
    pub(crate) fn passthrough() -> Self {
        Self(PASSTHROUGH.into())
    }

    /// The sandbox's own bind mounts.
    pub(crate) fn sandbox_mounts() -> Self {
        Self::passthrough().join(SANDBOX_MOUNTS)
    }

    /// What belongs to `container` alone.
    pub(crate) fn container(container: &ContainerId) -> Self {
        Self::passthrough().join(container.as_str())
    }

    /// The root file system of `container` (behaviour A6).
    pub(crate) fn rootfs(container: &ContainerId) -> Self {
        Self::container(container).join("rootfs")
    }

    /// A volume: `sandbox-<serial>-<last part of destination>`.
    ///
    /// The guest remembers names for a while (cache `auto`: a second), so each is new.
    pub(crate) fn volume(serial: u32, destination: &str) -> Self {
        Self::passthrough().join(&format!("sandbox-{serial:08x}-{}", base_of(destination)))
    }

    /// A place as the ledger has it.
    pub(crate) fn from_ledger(path: PathBuf) -> Self {
        Self(path)
    }

    /// Whether a path relative to the shared directory is a volume's, as [`volume`](Self::volume)
    /// makes them.
    pub(crate) fn is_volume(path: &Path) -> bool {
        let name = path.strip_prefix(PASSTHROUGH).ok().and_then(Path::to_str);
        let serial = name.and_then(|name| name.strip_prefix("sandbox-")?.split_once('-')).map(|(serial, _)| serial);
        serial.is_some_and(|serial| serial.len() == 8 && serial.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// A name below this one.
    pub(crate) fn join(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Relative to the shared directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the guest sees it.
    pub(crate) fn in_guest(&self) -> String {
        format!("{GUEST_SHARED_DIR}{}", self.0.display())
    }
}

/// The last part of `destination`, in characters that are harmless in a path, a log and a shell.
fn base_of(destination: &str) -> String {
    let last = destination.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let harmless = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }
    };
    let base: String = last.chars().map(harmless).take(BASE_LEN_MAX).collect();
    if base.is_empty() { "volume".into() } else { base }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_volume_is_named_after_its_destination() {
        for (destination, name) in [
            ("/etc/hosts", "hosts"),
            ("/data/", "data"),
            ("/", "volume"),
            ("", "volume"),
            ("/a/..", ".."),
            ("/ä b\n", "__b_"),
        ] {
            let place = Place::volume(10, destination);
            assert_eq!(place.path(), Path::new("passthrough").join(format!("sandbox-0000000a-{name}")));
        }
        assert_eq!(
            Place::rootfs(&ContainerId::new("web").unwrap()).in_guest(),
            "/run/kata-containers/shared/containers/passthrough/web/rootfs"
        );
    }

    proptest! {
        #[test]
        fn no_destination_leaves_the_directory(destination in any::<String>(), serial in any::<u32>()) {
            let place = Place::volume(serial, &destination);
            prop_assert_eq!(place.path().components().count(), 2);
            let name = place.path().file_name().unwrap();
            prop_assert!(name.len() <= 255);
            prop_assert!(name.to_str().unwrap().bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
        }
    }
}
