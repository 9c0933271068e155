//! Files that a later process believes: read only if nobody but us could have written them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use sandbox_model::{ErrorKind, PortError, PortResult};

/// `O_NOFOLLOW` of Linux on x86-64 and most others (asm-generic/fcntl.h).
pub(super) const NOFOLLOW: i32 = 0o400_000;

/// Refuses what somebody else could have prepared for us: a directory that others may write to.
pub(super) fn check_directory(path: &Path) -> PortResult<()> {
    let shown = path.display().to_string();
    let found = fs::symlink_metadata(path).map_err(|error| PortError::os("stat", &shown, error))?;
    let wrong = if !found.is_dir() {
        "it is not a directory"
    } else if found.uid() != own_uid()? {
        "it belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "others may write to it; it must have mode 0700"
    } else {
        return Ok(());
    };
    Err(PortError::new(ErrorKind::Denied, "use directory", shown, wrong))
}

/// Refuses an open file that is not ours alone: another name of it could be in anybody's directory.
pub(super) fn check_file(file: &File, path: &Path) -> PortResult<()> {
    let shown = path.display().to_string();
    let found = file.metadata().map_err(|error| PortError::os("stat", &shown, error))?;
    let wrong = if !found.is_file() {
        "it is no regular file"
    } else if found.uid() != own_uid()? {
        "it belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "others may write it; it must have mode 0600"
    } else if found.nlink() != 1 {
        "it has a second name"
    } else {
        return Ok(());
    };
    Err(PortError::new(ErrorKind::Denied, "use file", shown, wrong))
}

fn own_uid() -> PortResult<u32> {
    let me = fs::metadata("/proc/self").map_err(|error| PortError::os("stat", "/proc/self", error))?;
    Ok(me.uid())
}

/// Reads at most `bytes_max` of a file that [`check_file`] accepts.
pub(super) fn read_text(file: &mut File, path: &Path, bytes_max: u64) -> PortResult<String> {
    check_file(file, path)?;
    let shown = path.display().to_string();
    let mut text = String::new();
    let length = Read::by_ref(file).take(bytes_max + 1).read_to_string(&mut text);
    let length = length.map_err(|error| PortError::os("read", &shown, error))?;
    if u64::try_from(length).unwrap_or(u64::MAX) > bytes_max {
        let cause = format!("it is longer than {bytes_max} bytes");
        return Err(PortError::new(ErrorKind::Invalid, "read", shown, cause));
    }
    Ok(text)
}

/// Opens and reads a whole file.
pub(super) fn read_whole(path: &Path, bytes_max: u64) -> PortResult<String> {
    let opened = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path);
    let mut file = opened.map_err(|error| PortError::os("open", path.display().to_string(), error))?;
    read_text(&mut file, path, bytes_max)
}

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
