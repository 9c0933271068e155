//! Whether a directory or file is ours alone.
//!
//! What another user could have prepared, or could change under our hands, is refused before
//! anything in it is believed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use sandbox_model::{ErrorKind, PortError, PortResult};

/// Refuses a directory that is not ours, or that others may enter.
pub(super) fn directory(path: &Path) -> PortResult<()> {
    let found = fs::symlink_metadata(path).map_err(|error| failed("stat", path, error))?;
    let wrong = if found.is_dir() { stranger(&found, "0700") } else { Some("it is not a directory".to_owned()) };
    wrong.map_or(Ok(()), |wrong| Err(denied("use directory", path, wrong)))
}

/// Opens a file of ours, for reading and, if it `grows`, for appending; one that is not there is made.
///
/// # Errors
/// `Denied`: others could have written it, or could still.
pub(super) fn open(path: &Path, grows: bool) -> PortResult<File> {
    // A FIFO in the file's place does not hold us up.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).append(grows).create(grows).mode(0o600).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|error| failed("open", path, error))?;
    let found = file.metadata().map_err(|error| failed("fstat", path, error))?;
    let wrong = if !found.is_file() {
        Some("it is not a regular file".to_owned())
    } else if found.nlink() != 1 {
        Some(format!("it has {} names", found.nlink()))
    } else {
        stranger(&found, "0600")
    };
    match wrong {
        None => Ok(file),
        Some(wrong) => Err(denied("open", path, wrong)),
    }
}

/// Reads a whole file of at most `bytes_max` bytes.
///
/// # Errors
/// `Invalid`: it is larger, or no UTF-8.
pub(super) fn text(file: &mut File, path: &Path, bytes_max: u64) -> PortResult<String> {
    let mut text = String::new();
    let length = file.take(bytes_max.saturating_add(1)).read_to_string(&mut text);
    let length = length.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => invalid(path, "it is no UTF-8".to_owned()),
        _ => failed("read", path, error),
    })?;
    if length as u64 > bytes_max {
        return Err(invalid(path, format!("it is larger than {bytes_max} bytes")));
    }
    Ok(text)
}

/// What makes it somebody else's, or open to somebody else.
fn stranger(found: &Metadata, wanted: &str) -> Option<String> {
    if found.uid() != geteuid().as_raw() {
        Some(format!("it belongs to uid {}", found.uid()))
    } else if found.mode() & 0o077 != 0 {
        Some(format!("it has mode {:04o}; it must be closed to others, mode {wanted}", found.mode() & 0o7777))
    } else {
        None
    }
}

fn failed(operation: &str, path: &Path, error: io::Error) -> PortError {
    PortError::os(operation, path.display().to_string(), error)
}

fn denied(operation: &str, path: &Path, wrong: String) -> PortError {
    PortError::new(ErrorKind::Denied, operation, path.display().to_string(), wrong)
}

fn invalid(path: &Path, wrong: String) -> PortError {
    PortError::new(ErrorKind::Invalid, "read", path.display().to_string(), wrong)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_others_could_have_made_is_not_opened() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::write(at("good"), "x").unwrap();
        fs::set_permissions(at("good"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(text(&mut open(&at("good"), false).unwrap(), &at("good"), 1).unwrap(), "x");
        assert_eq!(text(&mut open(&at("good"), false).unwrap(), &at("good"), 0).unwrap_err().kind, ErrorKind::Invalid);
        symlink(at("good"), at("link")).unwrap();
        assert!(open(&at("link"), false).is_err(), "a symbolic link");
        fs::hard_link(at("good"), at("twin")).unwrap();
        assert_eq!(open(&at("good"), false).unwrap_err().kind, ErrorKind::Denied, "a hard link");
        fs::remove_file(at("twin")).unwrap();
        fs::set_permissions(at("good"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(open(&at("good"), false).unwrap_err().cause.contains("0640"));
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&at("fifo"), false).is_err(), "a FIFO, and no wait for its writer");
        assert!(open(temporary.path(), false).is_err(), "a directory");
    }

    #[test]
    fn a_directory_is_closed_to_others() {
        let temporary = tempfile::tempdir().unwrap();
        for (mode, is_ours) in [(0o700, true), (0o711, false), (0o755, false), (0o770, false), (0o1777, false)] {
            fs::set_permissions(temporary.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(directory(temporary.path()).is_ok(), is_ours, "{mode:o}");
        }
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o700)).unwrap();
        symlink(temporary.path(), temporary.path().join("link")).unwrap();
        assert!(directory(&temporary.path().join("link")).unwrap_err().cause.contains("not a directory"));
    }
}
