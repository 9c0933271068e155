//! What the supervisor must know of the host to plan: kinds of paths, its size.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use sandbox_model::{Instant, PortError, PortResult, port};
use serde::{Deserialize, Serialize};

/// Asks what a path is. Symbolic links are followed: a volume's source may be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectPath {
    /// Absolute path.
    pub path: PathBuf,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
    /// A socket, pipe or character device.
    Other,
}

/// The host's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSize {
    /// CPUs that this process may use.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

port! {
    /// Facts of the host.
    pub trait HostFacts as "host-facts", proxy HostFactsProxy {
        /// What a path is; `NotFound` if it is not there.
        fn inspect(InspectPath) -> PathKind;
        /// How large the host is.
        fn size(()) -> HostSize;
    }
}

/// The facts of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxHostFacts;

#[port::async_trait]
impl HostFacts for LinuxHostFacts {
    async fn inspect(&self, request: InspectPath, _: Instant) -> PortResult<PathKind> {
        let kind = fs::metadata(&request.path).map(|found| found.file_type());
        let kind = kind.map_err(|error| PortError::os("stat", request.path.display().to_string(), error))?;
        Ok(if kind.is_dir() {
            PathKind::Directory
        } else if kind.is_file() {
            PathKind::File
        } else if kind.is_block_device() {
            PathKind::BlockDevice
        } else {
            PathKind::Other
        })
    }

    async fn size(&self, (): (), _: Instant) -> PortResult<HostSize> {
        let memory = nix::sys::sysinfo::sysinfo().map_err(|error| PortError::os("sysinfo", "host", error))?.ram_total();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(HostSize { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory_mib: memory >> 20 })
    }
}
