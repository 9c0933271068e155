//! Disks: what a path leads to, found out by opening it.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, makedev, minor, open, stat};
use rustix::io::Errno;
use sandbox_model::device::Access;
use sandbox_model::{ErrorKind, PassedFd, PortError, PortResult};

use crate::host::{BlockNode, DiskFacts, DiskIdentity, FindBlockNode};

/// Checks that `path` is a file or block device that a guest may be given.
pub(super) fn inspect(path: &Path, access: Access) -> PortResult<DiskFacts> {
    let name = || path.display().to_string();
    // First only named, not opened: opening a FIFO or a tape has effects.
    let named = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| PortError::os("open disk", name(), error))?;
    let facts = fstat(&named).map_err(|error| PortError::os("fstat", name(), error))?;
    let identity = match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => DiskIdentity::File { device: facts.st_dev, inode: facts.st_ino },
        FileType::BlockDevice => DiskIdentity::Block { major: major(facts.st_rdev), minor: minor(facts.st_rdev) },
        other => {
            let cause = format!("it is neither a regular file nor a block device but {other:?}");
            return Err(PortError::new(ErrorKind::Invalid, "open disk", name(), cause));
        }
    };
    let is_device = matches!(identity, DiskIdentity::Block { .. });
    let exclusive = if is_device && access == Access::ReadWrite { OFlags::EXCL } else { OFlags::empty() };
    let refused = |error| refused(name(), error, is_device);
    let claimed = reopen(&named, access, exclusive).map_err(refused)?;
    // The claim is a question, not for keeps: another container of the VM may ask for the same disk.
    let mut file = File::from(reopen(&named, access, OFlags::empty()).map_err(refused)?);
    drop(claimed);
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| PortError::os("seek", name(), error))?;
    if bytes == 0 {
        return Err(PortError::new(ErrorKind::Invalid, "open disk", name(), "it is empty"));
    }
    Ok(DiskFacts { identity, bytes, file: PassedFd::new(file.into()) })
}

/// Opens what was looked at, and nothing that has taken its name meanwhile, as the guest will use it.
///
/// The kernel grants `O_EXCL` on a block device only while nothing on the host (a mount, device
/// mapper, md, swap, a mounted partition of it) claims it.
fn reopen(named: &OwnedFd, access: Access, exclusive: OFlags) -> Result<OwnedFd, Errno> {
    let mode = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let flags = mode | exclusive | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    open(format!("/proc/self/fd/{}", named.as_raw_fd()), flags, Mode::empty())
}

fn refused(name: String, error: Errno, is_device: bool) -> PortError {
    let mut refused = PortError::os("open disk", name, error);
    if error == Errno::BUSY && is_device {
        refused.cause = "the host uses it (mounted, swap, or below another device); a guest may only read it".into();
    }
    refused
}

/// The node of a block device by the name that the kernel gives it, else by its number.
pub(super) fn find_node(sysfs: &Path, dev: &Path, wanted: FindBlockNode) -> PortResult<BlockNode> {
    let number = format!("{}:{}", wanted.major, wanted.minor);
    let entry = sysfs.join("dev/block").join(&number);
    let uevent = std::fs::read_to_string(entry.join("uevent"))
        .map_err(|error| PortError::os("find block device", number.clone(), error))?;
    let read_only = std::fs::read_to_string(entry.join("ro")).is_ok_and(|text| text.trim() == "1");
    let called = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| dev.join(name));
    let candidates = called.into_iter().chain([dev.join("block").join(&number)]);
    let is_it = |path: &PathBuf| stat(path).is_ok_and(|facts| is_device(&facts, wanted));
    match candidates.into_iter().find(is_it) {
        Some(path) => Ok(BlockNode { path, read_only }),
        None => {
            let cause = format!("no node with this number below {}", dev.display());
            Err(PortError::new(ErrorKind::NotFound, "find block device", number, cause))
        }
    }
}

fn is_device(facts: &Stat, wanted: FindBlockNode) -> bool {
    FileType::from_raw_mode(facts.st_mode) == FileType::BlockDevice
        && facts.st_rdev == makedev(wanted.major, wanted.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_inode_and_must_not_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, link, empty) = (dir.path().join("disk"), dir.path().join("link"), dir.path().join("empty"));
        std::fs::write(&disk, [0; 512]).unwrap();
        std::fs::hard_link(&disk, &link).unwrap();
        std::fs::write(&empty, []).unwrap();
        let facts = inspect(&disk, Access::ReadWrite).unwrap();
        assert_eq!(facts.bytes, 512);
        assert_eq!(inspect(&link, Access::ReadOnly).unwrap().identity, facts.identity);
        assert_eq!(inspect(&empty, Access::ReadOnly).unwrap_err().cause, "it is empty");
    }

    #[test]
    fn what_is_no_disk_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opening it for reading would hang.
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_eq!(inspect(path, Access::ReadOnly).unwrap_err().kind, ErrorKind::Invalid, "{}", path.display());
        }
        assert_eq!(inspect(&dir.path().join("none"), Access::ReadOnly).unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn a_number_without_a_device_has_no_node() {
        let error = find_node(Path::new("/sys"), Path::new("/dev"), FindBlockNode { major: 4095, minor: 9 });
        assert_eq!(error.unwrap_err().kind, ErrorKind::NotFound);
    }
}
