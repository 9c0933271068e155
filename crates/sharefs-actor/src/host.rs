//! What the share-fs actor asks of its host.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use helper_process::HelperProcess;
use sandbox_model::config::VirtioFsCache;
use sandbox_model::device::Access;
use sandbox_model::ledger::{Identity, ProcessIdentity};
use sandbox_model::{ErrorKind, Live, PortError, PortResult, port};
use serde::{Deserialize, Serialize};

/// A name below a sandbox's own directory.
///
/// Real hosts resolve `path` from a descriptor of `dir` (openat2, `RESOLVE_BENEATH`, no symlinks):
/// what a guest plants there leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// The sandbox's directory, absolute.
    pub dir: PathBuf,
    /// Relative to it, without `..`.
    pub path: PathBuf,
    /// The place for its descriptor.
    #[serde(skip)]
    pub base: Base,
}

/// Where a real host keeps the descriptor of a sandbox's directory that it has opened and checked:
/// whoever names many things below one directory gives them one place. No record of a call has it.
#[derive(Clone, Default)]
pub struct Base(pub(crate) Arc<OnceLock<OwnedFd>>);

/// Two names are the same name whether or not somebody has looked already.
impl PartialEq for Base {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Base {}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "open" } else { "not open" })
    }
}

impl Below {
    /// `path`, which must lie below `dir`.
    ///
    /// # Errors
    /// `Foreign`: it does not, so it is none of ours.
    pub fn of(dir: &Path, path: &Path) -> PortResult<Self> {
        match path.strip_prefix(dir) {
            Ok(relative) if !relative.as_os_str().is_empty() => {
                Ok(Self { dir: dir.to_owned(), path: relative.to_owned(), base: Base::default() })
            }
            _ => Err(PortError::new(
                ErrorKind::Foreign,
                "resolve",
                path.display().to_string(),
                format!("not below {}", dir.display()),
            )),
        }
    }

    /// The whole path.
    pub fn absolute(&self) -> PathBuf {
        self.dir.join(&self.path)
    }
}

/// A file or directory, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Inode {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl From<Inode> for Identity {
    fn from(made: Inode) -> Self {
        Self::Inode { device: made.device, inode: made.inode }
    }
}

/// What a source is: decides what its mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// Something of the host's that shall be shared, opened once and used through its descriptor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// As it was given, for people and for a probe after a crash.
    pub path: PathBuf,
    /// Which object it was when it was opened.
    pub inode: Inode,
    /// The mount through which it was reached: its flags and what is mounted below are part of what
    /// is shared.
    pub mount_id: u64,
    /// Directory or file.
    pub kind: SourceKind,
    /// The descriptor (`O_PATH`).
    pub handle: Live<OwnedFd>,
}

/// What may be taken away at a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    /// Where.
    pub at: Below,
    /// What was made there; `None` if only the intent is known.
    pub made: Option<Inode>,
}

/// Lets the guest see a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// The mount point, which exists.
    pub at: Below,
    /// What.
    pub source: Source,
    /// Whether the guest may write. It holds from the first instant at which the mount is visible.
    pub access: Access,
    /// Whether set-user-id programs keep their effect: in a root file system, not in a volume.
    pub set_id: SetId,
}

/// Whether set-user-id bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetId {
    /// They do.
    Honoured,
    /// `nosuid`.
    Ignored,
}

/// Mounts `from` read-only on `to`, so that later mounts below `to` reach the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The directory that only the host writes to.
    pub from: Below,
    /// What the daemon exports.
    pub to: Below,
}

/// A mount that has been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// `STATX_MNT_ID_UNIQUE`, or `STATX_MNT_ID` on kernels before 6.8.
    pub mount_id: u64,
}

/// Takes a mount away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// The mount point.
    pub at: Below,
    /// Which mount; `None` if only the intent is known.
    pub mount_id: Option<u64>,
    /// What was to be mounted: without a `mount_id`, only a mount of this very object is ours.
    pub source: PathBuf,
}

/// Asks what is at some names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The sandbox's directory, absolute.
    pub dir: PathBuf,
    /// Relative to it, without `..`.
    pub paths: Vec<PathBuf>,
}

/// What is at a name; if something is mounted on it, its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Which file or directory.
    pub inode: Inode,
    /// The mount that it lies on.
    pub mount_id: u64,
}

/// Starts the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartDaemon {
    /// Its program.
    pub program: PathBuf,
    /// Where it shall listen.
    pub socket: Below,
    /// What it exports.
    pub shared_dir: Below,
    /// What the guest may cache.
    pub cache: VirtioFsCache,
    /// Marks its environment.
    pub tag: String,
}

/// A daemon that listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    /// The process that we started. It may have children of the same tag.
    pub process: ProcessIdentity,
    /// Its socket.
    pub socket: Inode,
    /// Live, for whoever waits for its end.
    pub handle: Live<HelperProcess>,
}

/// Takes hold of a daemon that an earlier process of ours started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptDaemon {
    /// Which.
    pub process: ProcessIdentity,
    /// The mark of its environment.
    pub tag: String,
}

/// A daemon that was taken over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptedDaemon {
    /// Live, for whoever waits for its end.
    pub handle: Live<HelperProcess>,
}

/// Asks whether a daemon is shut in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyDaemon {
    /// Which.
    pub process: ProcessIdentity,
    /// Its last words, should it be gone.
    pub handle: Live<HelperProcess>,
}

/// Ends a daemon with all its children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndDaemon {
    /// Which; `None` if only the intent is known.
    pub process: Option<ProcessIdentity>,
    /// The mark of its environment.
    pub tag: String,
    /// Its socket: QEMU's daemon derives the name of a lock file from it.
    pub socket: PathBuf,
}

port! {
    /// Directories, mounts and the daemon of shared file systems.
    pub trait ShareFsHost as "share-fs-host", proxy ShareFsHostProxy {
        /// Makes a directory, mode 0750 (0700 directly below the sandbox's own).
        fn make_directory(Below) -> Inode;
        /// Makes an empty file, mode 0600, to mount a file on.
        fn make_file(Below) -> Inode;
        /// Removes an empty directory, never more. `Foreign` if it is not the one made.
        fn remove_directory(Remove) -> ();
        /// Removes an empty file or a socket. `Foreign` if it is not the one made.
        fn remove_file(Remove) -> ();
        /// Makes the directory that the daemon exports.
        fn export(Export) -> Mounted;
        /// Opens what shall be shared. `Invalid` if it is neither directory nor regular file.
        fn open_source(PathBuf) -> Source;
        /// Mounts a source.
        fn attach(Attach) -> Mounted;
        /// Takes a mount away, and with it what is mounted inside; no file is touched.
        fn detach(Detach) -> ();
        /// What is at each of some names; none where there is nothing.
        fn look(Look) -> Vec<Option<Seen>>;
        /// Starts the daemon and waits until it listens.
        fn start_daemon(StartDaemon) -> Daemon;
        /// Takes hold of the daemon after a crash of ours. Ended already, or its pid somebody
        /// else's, is `NotFound`; without our tag it is `Foreign`.
        fn adopt_daemon(AdoptDaemon) -> AdoptedDaemon;
        /// Checks that the daemon is in a mount namespace of its own and under seccomp.
        fn verify_daemon(VerifyDaemon) -> ();
        /// Ends the daemon.
        fn end_daemon(EndDaemon) -> ();
    }
}
