//! Directories and files below the sandbox's directory, reached by descriptors only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fstat, makedev, mkdirat, openat,
    openat2, statx, unlinkat,
};
use rustix::io::Errno;
use sandbox_model::{ErrorKind, PortError, PortResult};

use crate::host::{Below, Inode, Remove};

/// Symlinks lead nowhere, `..` and `/` do not lead out.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `STATX_MNT_ID_UNIQUE` (Linux 6.8), which rustix does not name.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

pub(super) fn refused<'a>(operation: &'a str, at: &'a Below) -> impl Fn(Errno) -> PortError + 'a {
    move |errno| {
        let mut error = PortError::os(operation, at.absolute().display().to_string(), errno);
        if errno == Errno::XDEV {
            error.kind = ErrorKind::Busy;
            error.cause = format!("something is mounted on it or on the way to it ({errno})");
        }
        error
    }
}

/// The sandbox's directory, opened if nobody has yet.
fn base(at: &Below) -> PortResult<BorrowedFd<'_>> {
    if let Some(base) = at.base.0.get() {
        return Ok(base.as_fd());
    }
    let opened = open_base(&at.dir)?;
    Ok(at.base.0.get_or_init(|| opened).as_fd())
}

/// # Errors
/// `Invalid` unless it is ours and closed to everybody else.
fn open_base(dir: &Path) -> PortResult<OwnedFd> {
    let object = || dir.display().to_string();
    let base = openat(CWD, dir, PLACE | OFlags::DIRECTORY, Mode::empty())
        .map_err(|errno| PortError::os("open", object(), errno))?;
    let stat = fstat(&base).map_err(|errno| PortError::os("fstat", object(), errno))?;
    let owner = rustix::process::geteuid().as_raw();
    if stat.st_uid != owner || stat.st_mode & 0o077 != 0 {
        let cause = format!(
            "belongs to uid {} with mode {:o}; a sandbox's directory must belong to uid {owner} with mode 700",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
        return Err(PortError::new(ErrorKind::Invalid, "open", object(), cause));
    }
    Ok(base)
}

/// A directory or file below the sandbox's directory; if something is mounted on it, its root.
pub(super) fn open(at: &Below) -> PortResult<OwnedFd> {
    openat2(base(at)?, &at.path, PLACE, Mode::empty(), BENEATH).map_err(refused("openat2", at))
}

/// The directory that holds a name: the sandbox's own, or one below it.
enum Holder<'a> {
    Base(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Holder<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Base(base) => *base,
            Self::Opened(holder) => holder.as_fd(),
        }
    }
}

/// The directory that holds the name, and the name.
fn parent(at: &Below) -> PortResult<(Holder<'_>, &Path)> {
    let invalid = || PortError::new(ErrorKind::Invalid, "resolve", at.absolute().display().to_string(), "has no name");
    let name = Path::new(at.path.file_name().ok_or_else(invalid)?);
    let base = base(at)?;
    let holder = match at.path.parent() {
        // Nothing of ours is mounted on the way to a name that we make or remove.
        Some(holder) if !holder.as_os_str().is_empty() => {
            let flags = PLACE | OFlags::DIRECTORY;
            let opened = openat2(base, holder, flags, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV);
            Holder::Opened(opened.map_err(refused("openat2", at))?)
        }
        _ => Holder::Base(base),
    };
    Ok((holder, name))
}

/// What is known of an object, in one call.
pub(super) struct Facts {
    pub(super) inode: Inode,
    pub(super) kind: FileType,
    size: u64,
    /// The mount that it lies on.
    pub(super) mount_id: u64,
    /// Whether it is the root of that.
    pub(super) is_mount_root: bool,
}

/// Of an open one.
pub(super) fn facts(of: impl AsFd) -> rustix::io::Result<Facts> {
    look(of, Path::new(""), AtFlags::EMPTY_PATH)
}

fn look(holder: impl AsFd, name: &Path, flags: AtFlags) -> rustix::io::Result<Facts> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | MNT_ID_UNIQUE;
    let seen = statx(holder, name, flags, wanted)?;
    Ok(Facts {
        inode: Inode { device: makedev(seen.stx_dev_major, seen.stx_dev_minor), inode: seen.stx_ino },
        kind: FileType::from_raw_mode(seen.stx_mode.into()),
        size: seen.stx_size,
        mount_id: seen.stx_mnt_id,
        is_mount_root: seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// Of what is at a name, and not what is mounted there or where it leads.
fn facts_at(holder: &Holder<'_>, name: &Path, at: &Below) -> PortResult<Facts> {
    let facts = look(holder, name, AtFlags::empty()).map_err(refused("statx", at))?;
    if facts.is_mount_root { Err(refused("statx", at)(Errno::XDEV)) } else { Ok(facts) }
}

pub(super) fn make_directory(at: &Below) -> PortResult<Inode> {
    let (holder, name) = parent(at)?;
    let mode = if at.path.components().count() == 1 { 0o700 } else { 0o750 };
    mkdirat(&holder, name, Mode::from_raw_mode(mode)).map_err(refused("mkdirat", at))?;
    // From here on it exists: what fails now leaves doubt.
    facts_at(&holder, name, at).map(|found| found.inode).map_err(PortError::doubtful)
}

pub(super) fn make_file(at: &Below) -> PortResult<Inode> {
    let (holder, name) = parent(at)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&holder, name, flags, Mode::from_raw_mode(0o600)).map_err(refused("openat", at))?;
    facts(&file).map(|made| made.inode).map_err(|errno| refused("statx", at)(errno).doubtful())
}

pub(super) fn remove_directory(request: &Remove) -> PortResult<()> {
    let at = &request.at;
    let (holder, name) = parent(at)?;
    let found = facts_at(&holder, name, at)?;
    ours(request, found.inode, found.kind == FileType::Directory)?;
    unlinkat(&holder, name, AtFlags::REMOVEDIR).map_err(|errno| match errno {
        Errno::NOTEMPTY => not_empty(at),
        errno => refused("rmdir", at)(errno),
    })
}

pub(super) fn remove_file(request: &Remove) -> PortResult<()> {
    let at = &request.at;
    let (holder, name) = parent(at)?;
    let found = facts_at(&holder, name, at)?;
    // What holds bytes is somebody's data.
    let harmless = found.kind == FileType::Socket || (found.kind == FileType::RegularFile && found.size == 0);
    ours(request, found.inode, harmless)?;
    unlinkat(&holder, name, AtFlags::empty()).map_err(refused("unlinkat", at))
}

/// Below our own directory (mode 0700) a name of ours with nothing in it is ours; what is known of
/// the object must fit besides.
fn ours(request: &Remove, found: Inode, harmless: bool) -> PortResult<()> {
    let cause = match request.made {
        Some(made) if made != found => format!("inode {} is there, we made inode {}", found.inode, made.inode),
        _ if !harmless => "it is of another kind than what we made, or holds data".into(),
        _ => return Ok(()),
    };
    Err(PortError::new(ErrorKind::Foreign, "remove", request.at.absolute().display().to_string(), cause))
}

/// Says who is in it.
fn not_empty(at: &Below) -> PortError {
    let names = list(at).unwrap_or_default().join(", ");
    let mut error = refused("rmdir", at)(Errno::NOTEMPTY);
    error.kind = ErrorKind::Busy;
    error.cause = format!("holds what is not ours: {names}");
    error
}

/// At most five names, for people.
fn list(at: &Below) -> Option<Vec<String>> {
    let (holder, name) = parent(at).ok()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(&holder, name, flags, Mode::empty()).ok()?;
    let names = rustix::fs::Dir::read_from(directory).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        (name != "." && name != "..").then(|| name.escape_debug().to_string())
    });
    Some(names.take(5).collect())
}
