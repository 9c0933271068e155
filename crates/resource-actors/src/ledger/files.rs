//! Files that are put in place whole.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sandbox_model::{PortError, PortResult};

use super::own::NOFOLLOW;

/// Puts a file in place whole: a crash leaves the old one or the new one.
pub(super) fn replace(path: &Path, text: &[u8]) -> PortResult<()> {
    let new = path.with_extension("json.new");
    let failed = |operation: &str, error| PortError::os(operation, path.display().to_string(), error);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(NOFOLLOW)
        .open(&new)
        .map_err(|error| failed("open", error))?;
    file.write_all(text).map_err(|error| failed("write", error))?;
    fs::rename(&new, path).map_err(|error| failed("rename", error))
}
