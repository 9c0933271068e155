//! What has been made on the host and in the VM, so that it can be unmade.
//!
//! Before an actor makes an object it appends the intent; after, what became of it. Failure of a
//! step, clean-up and recovery are one path: walk the entries backwards and ask each entry's actor
//! to undo it. Entries name objects so that undoing the wrong one is impossible: an [`Identity`] is
//! what the kernel said when the object was made, and an undo that meets another identity leaves the
//! object alone.
//!
//! The ledger lives on tmpfs: what it names dies with the kernel too, so a record is one `write(2)`
//! and no fsync.

mod undo;

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::{Access, DeviceRole, PciSlot};
use crate::lifecycle::ActorName;
use crate::{ContainerId, DeviceId, PortError};

pub use undo::{Undo, UndoItem, UndoReport, Undone, VmFate};

/// The version of the ledger's format.
pub const LEDGER_VERSION: u32 = 2;

/// Bytes that almost every object's text fits in.
const TEXT_BYTES: usize = 128;

/// Numbers the entries of one ledger, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub u64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Whose end takes the object with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Lives as long as the sandbox.
    Sandbox,
    /// Is given back when this container is released.
    Container(ContainerId),
}

/// A process that we started, beyond doubt: a pid alone may be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Process id in our pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_ticks: u64,
}

/// An object that we make, as planned: enough to look for it after a crash in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub enum HostObject {
    /// A directory below the sandbox's own directory.
    Directory {
        /// Absolute path.
        path: PathBuf,
    },
    /// A regular file, socket or mount point file below the sandbox's own directory.
    File {
        /// Absolute path.
        path: PathBuf,
    },
    /// A mount whose mount point lies below the sandbox's own directory.
    Mount {
        /// Absolute path of the mount point.
        target: PathBuf,
        /// What is mounted there, for people.
        source: String,
        /// What makes the mount one of a kind, if several containers may use it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shared: Option<SharedSource>,
    },
    /// A network namespace that we made and bound to a path.
    NetNamespace {
        /// The file that it is bound to.
        path: PathBuf,
    },
    /// A tap device in a namespace.
    Tap {
        /// The namespace's file.
        namespace: PathBuf,
        /// Interface name, at most 15 bytes.
        name: String,
        /// Our mark on it (`ip link set dev X alias`), which tells it from a stranger's.
        alias: String,
    },
    /// An ingress qdisc, and with it the filters below it, on a link in a namespace.
    IngressQdisc {
        /// The namespace's file.
        namespace: PathBuf,
        /// Interface name.
        link: String,
    },
    /// A helper process or the VMM. It carries [`ENTRY_ENV`] in its environment.
    Process {
        /// What it is (`qemu`, `virtiofsd`, `vsock`).
        program: String,
    },
    /// A cgroup directory (on v1: the same path in each listed hierarchy).
    Cgroup {
        /// Absolute paths, children after parents.
        paths: Vec<PathBuf>,
    },
    /// A device that the VMM holds. It goes with the VM.
    VmDevice {
        /// The VMM's name of it.
        device: DeviceId,
        /// Kind, for people (`block`, `network`).
        kind: String,
        /// Where it sits.
        slot: PciSlot,
        /// What it is to those who ask for it again.
        role: DeviceRole,
    },
    /// A PCI function bound to vfio-pci.
    VfioBinding {
        /// `DDDD:BB:DD.F`.
        bdf: String,
        /// The driver to give it back to, if it had one.
        original_driver: Option<String>,
    },
    /// A user of a shared object: the object goes when its last user does.
    Hold {
        /// The object's name in its actor (a device id, a share name).
        object: String,
    },
    /// A container's share in the sandbox's vCPUs, memory or cpuset.
    ResourceShare {
        /// Whose.
        container: ContainerId,
    },
}

impl HostObject {
    /// As it is shown, in one piece of memory: most names are paths, shown in parts.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(TEXT_BYTES);
        let _ = fmt::write(&mut text, format_args!("{self}"));
        text
    }
}

impl fmt::Display for HostObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
            Self::Mount { target, source, .. } => write!(f, "mount {source} on {}", target.display()),
            Self::NetNamespace { path } => write!(f, "network namespace {}", path.display()),
            Self::Tap { namespace, name, .. } => write!(f, "tap {name} in {}", namespace.display()),
            Self::IngressQdisc { namespace, link } => {
                write!(f, "ingress qdisc of {link} in {}", namespace.display())
            }
            Self::Process { program } => write!(f, "process {program}"),
            Self::Cgroup { paths } => match paths.first() {
                Some(path) => write!(f, "cgroup {}", path.display()),
                None => f.write_str("cgroup"),
            },
            Self::VmDevice { device, kind, .. } => write!(f, "{kind} device {device}"),
            Self::VfioBinding { bdf, .. } => write!(f, "vfio binding of {bdf}"),
            Self::Hold { object } => write!(f, "hold on {object}"),
            Self::ResourceShare { container } => write!(f, "resource share of {container}"),
        }
    }
}

/// What a shared volume shows: two wishes that agree in it use one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedSource {
    /// `st_dev` of the source.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// The mount through which it was reached.
    pub mount_id: u64,
    /// Whether the guest may write.
    pub access: Access,
}

/// What the kernel said of the object when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub enum Identity {
    /// The object has no identity of its own beyond its name below our directory.
    Named,
    /// A file or directory: device and inode.
    Inode {
        /// `st_dev`.
        device: u64,
        /// `st_ino`.
        inode: u64,
    },
    /// Cgroup directories, in the order of their paths: inodes.
    Inodes {
        /// `st_ino` of each path.
        inodes: Vec<u64>,
    },
    /// A mount: `STATX_MNT_ID_UNIQUE`, or `STATX_MNT_ID` on kernels before 6.8.
    Mount {
        /// The mount's id.
        mount_id: u64,
    },
    /// A link: its index in its namespace, and the namespace's inode.
    Link {
        /// `ifindex`.
        index: u32,
        /// Inode of the namespace file.
        namespace_inode: u64,
    },
    /// A process.
    Process(ProcessIdentity),
}

/// The environment variable by which a process is found when a crash fell between its start and
/// its record: `SANDBOX/ENTRY`.
pub const ENTRY_ENV: &str = "RESOURCE_ACTORS_ENTRY";

/// One thing that exists, or may exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// Who makes and undoes it.
    pub actor: ActorName,
    /// Whose end takes it along.
    pub scope: Scope,
    /// What it is.
    pub object: HostObject,
    /// What the kernel said; `None` while only the intent is known.
    pub identity: Option<Identity>,
}

/// One line of the ledger file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// First line.
    Header {
        /// [`LEDGER_VERSION`].
        version: u32,
        /// The sandbox.
        sandbox: crate::SandboxId,
        /// `/proc/sys/kernel/random/boot_id`: what an older boot made is gone.
        boot: String,
        /// The highest number that an entry had when the file was begun.
        last: EntryId,
    },
    /// The object is about to be made.
    Intent {
        /// Its number.
        entry: EntryId,
        /// Who makes it.
        actor: ActorName,
        /// Whose end takes it along.
        scope: Scope,
        /// What.
        object: HostObject,
    },
    /// It has been made.
    Done {
        /// Its number.
        entry: EntryId,
        /// What the kernel said.
        identity: Identity,
    },
    /// It was refused and nothing has changed.
    Refused {
        /// Its number.
        entry: EntryId,
    },
    /// It is about to be undone.
    UndoIntent {
        /// Its number.
        entry: EntryId,
    },
    /// It is gone.
    Undone {
        /// Its number.
        entry: EntryId,
    },
    /// It could not be undone; the next clean-up tries again.
    UndoFailed {
        /// Its number.
        entry: EntryId,
        /// Why.
        cause: String,
    },
}

/// The ledger of one sandbox, as its actors see it.
///
/// All actors of a sandbox live on one thread, so this is shared by `Rc` and needs no lock.
pub trait Ledger: fmt::Debug {
    /// Appends an intent. The effect may start when this has returned.
    ///
    /// # Errors
    /// The record could not be written; the effect must not start.
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> Result<EntryId, PortError>;

    /// Appends an outcome.
    ///
    /// # Errors
    /// The record could not be written; the entry stays an intent, which recovery will probe.
    fn append(&self, record: Record) -> Result<(), PortError>;

    /// The entries that exist or may exist, oldest first.
    fn live(&self) -> Vec<Arc<Entry>>;

    /// One live entry.
    fn entry(&self, id: EntryId) -> Option<Arc<Entry>>;

    /// How many are live.
    fn count(&self) -> usize {
        self.live().len()
    }

    /// The newest live entry; 0 without any.
    fn newest(&self) -> EntryId {
        self.live().last().map_or(EntryId(0), |entry| entry.id)
    }

    /// Whether an entry is live.
    fn is_live(&self, id: EntryId) -> bool {
        self.entry(id).is_some()
    }

    /// The newest live entry that passes `test`.
    fn find(&self, test: &dyn Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.live().into_iter().rfind(|entry| test(entry))
    }

    /// Whether a live entry passes `test`.
    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.live().iter().any(|entry| test(entry))
    }
}

/// One actor's hand on the ledger.
#[derive(Debug, Clone)]
pub struct Journal {
    ledger: Rc<dyn Ledger>,
    actor: ActorName,
}

impl Journal {
    /// The hand of `actor`.
    pub fn new(ledger: Rc<dyn Ledger>, actor: ActorName) -> Self {
        Self { ledger, actor }
    }

    /// The ledger itself.
    pub fn ledger(&self) -> &Rc<dyn Ledger> {
        &self.ledger
    }

    /// Makes an object: intent, effect, outcome.
    ///
    /// `effect` starts after the intent is written and is given the entry's number, by which a
    /// process is tagged. When the returned future is dropped half way the entry stays an intent:
    /// its outcome is doubtful until an undo has probed it. The same holds for an effect that
    /// reports [`Outcome::Doubtful`](crate::Outcome::Doubtful).
    ///
    /// # Errors
    /// The effect's own error, or the ledger's when the intent could not be written.
    pub async fn make<T, F>(
        &self,
        scope: Scope,
        object: HostObject,
        effect: impl FnOnce(EntryId) -> F,
    ) -> Result<(EntryId, T), PortError>
    where
        F: Future<Output = Result<(T, Identity), PortError>>,
    {
        let entry = self.ledger.intend(self.actor, scope, object)?;
        match effect(entry).await {
            Ok((made, identity)) => {
                // It is there, whatever became of the record.
                self.ledger.append(Record::Done { entry, identity }).map_err(PortError::doubtful)?;
                Ok((entry, made))
            }
            Err(error) => {
                if error.outcome == crate::Outcome::NotDone {
                    // Unwritten, it costs a later process a look; the effect's error says more.
                    let _ = self.ledger.append(Record::Refused { entry });
                }
                Err(error)
            }
        }
    }

    /// Records something that exists only in an actor's own table (a hold, a share).
    ///
    /// # Errors
    /// The record could not be written.
    pub fn note(&self, scope: Scope, object: HostObject) -> Result<EntryId, PortError> {
        let entry = self.ledger.intend(self.actor, scope, object)?;
        self.ledger.append(Record::Done { entry, identity: Identity::Named })?;
        Ok(entry)
    }

    /// Undoes one entry: intent, `effect`, outcome. An object that is already gone counts as undone,
    /// and an entry that is closed already (the last hold on it took it along) is left alone.
    ///
    /// It goes on when a record cannot be written: a full disk must not keep a clean-up from ending,
    /// and a later process that misses a record only looks at an object that is gone.
    ///
    /// # Errors
    /// The effect's own error; the entry stays in the ledger for the next clean-up.
    pub async fn unmake<F>(&self, entry: &Entry, effect: F) -> Result<Undone, PortError>
    where
        F: Future<Output = Result<(), PortError>>,
    {
        if !self.ledger.is_live(entry.id) {
            return Ok(Undone::AlreadyGone);
        }
        let _ = self.ledger.append(Record::UndoIntent { entry: entry.id });
        let (undone, record) = match effect.await {
            Ok(()) => (Ok(Undone::Undone), Record::Undone { entry: entry.id }),
            Err(error) if error.is_absent() => (Ok(Undone::AlreadyGone), Record::Undone { entry: entry.id }),
            Err(error) => {
                let record = Record::UndoFailed { entry: entry.id, cause: error.to_string() };
                (Err(error), record)
            }
        };
        let _ = self.ledger.append(record);
        undone
    }
}
