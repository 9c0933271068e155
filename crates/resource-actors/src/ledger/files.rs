//! Files that are put in place whole.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use sandbox_model::{PortError, PortResult};

/// Where a file is written before it takes the place of `path`.
pub(super) fn new_of(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    new.into()
}

/// Puts a file in place whole, and returns it, open for appending: a crash leaves the old one or the
/// new one.
pub(super) fn replace(path: &Path, text: &[u8]) -> PortResult<File> {
    let new = new_of(path);
    let failed = |operation: &str, error| PortError::os(operation, path.display().to_string(), error);
    // Truncated: a crash amid this has left one.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_TRUNC;
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(&new);
    let mut file = file.map_err(|error| failed("open", error))?;
    file.write_all(text).map_err(|error| failed("write", error))?;
    fs::rename(&new, path).map_err(|error| failed("rename", error))?;
    Ok(file)
}
