//! A sandbox's ledger beside what the kernel shows, without touching anything.
//!
//! The rules of identity are those of the undo: what is there under another identity is not ours.
//!
//! * [`sight`]: whether the object of one entry is there.
//! * [`strangers`]: what carries our marks and is in no entry.

mod sight;
mod strangers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use network_actor::host::{OpenNamespace, Want};
use network_actor::view::NamespaceView;
use network_actor::{LinuxNetworkHost, NetworkHost};
use resource_actors::ledger::LedgerTable;
use sandbox_model::ledger::{Entry, HostObject, Identity};
use sandbox_model::{ErrorKind, Instant, PortError, SandboxId};

pub(crate) use strangers::Stranger;

/// A namespace is entered within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel shows of an entry's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It is there; something worth knowing of it.
    There(String),
    /// It is not there, or something else is in its place; which.
    Vanished(String),
    /// The kernel cannot show it: it is inside of the VM, or only in an actor's table.
    Inside,
    /// We may not, or cannot, look; why.
    Unclear(String),
}

impl Sight {
    /// `✓` in both, `!` only in the ledger, `·` not for the kernel to say, `~` not to be seen by us.
    pub(crate) fn mark(&self) -> &'static str {
        match self {
            Self::There(_) => "✓",
            Self::Vanished(_) => "!",
            Self::Inside => "·",
            Self::Unclear(_) => "~",
        }
    }

    /// The same in a word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::There(_) => "there",
            Self::Vanished(_) => "vanished",
            Self::Inside => "inside",
            Self::Unclear(_) => "unclear",
        }
    }

    /// What there is to say of it.
    pub(crate) fn note(&self) -> &str {
        match self {
            Self::There(note) | Self::Vanished(note) | Self::Unclear(note) => note,
            Self::Inside => "",
        }
    }
}

/// Everything that was seen of a sandbox.
#[derive(Debug)]
pub(crate) struct Look {
    /// The ledger's entries, oldest first.
    pub(crate) entries: Vec<(Entry, Sight)>,
    /// What only the kernel knows.
    pub(crate) strangers: Vec<Stranger>,
}

impl Look {
    /// Looks at all objects of a sandbox that lives in `dir`.
    pub(crate) async fn at(sandbox: &SandboxId, dir: &Path, ledger: &LedgerTable) -> Self {
        let scene = Scene::new(sandbox, dir, ledger).await;
        let entries = ledger.entries().map(|entry| (entry.clone(), scene.sight(entry))).collect();
        let strangers = scene.strangers();
        Self { entries, strangers }
    }
}

/// A namespace that was looked into.
type Seen = Result<(u64, NamespaceView), PortError>;

/// What entries are compared with; each namespace and each process is looked at once.
struct Scene<'a> {
    sandbox: &'a SandboxId,
    dir: &'a Path,
    ledger: &'a LedgerTable,
    namespaces: BTreeMap<PathBuf, Seen>,
    /// Processes that carry a tag of this sandbox: pid and number of the entry.
    tagged: Vec<(i32, u64)>,
}

impl<'a> Scene<'a> {
    async fn new(sandbox: &'a SandboxId, dir: &'a Path, ledger: &'a LedgerTable) -> Self {
        let mut namespaces = BTreeMap::new();
        for entry in ledger.entries() {
            let path = match &entry.object {
                HostObject::NetNamespace { path } => path,
                HostObject::Tap { namespace, .. } | HostObject::IngressQdisc { namespace, .. } => namespace,
                _ => continue,
            };
            if !namespaces.contains_key(path) {
                namespaces.insert(path.clone(), enter(path).await);
            }
        }
        Self { sandbox, dir, ledger, namespaces, tagged: strangers::tagged(sandbox) }
    }

    /// A namespace, if it is the one of that inode.
    fn namespace(&self, path: &Path, inode: Option<u64>) -> Result<&NamespaceView, Sight> {
        match self.namespaces.get(path) {
            Some(Ok((found, _))) if inode.is_some_and(|inode| inode != *found) => {
                Err(Sight::Vanished("another namespace is bound there".to_owned()))
            }
            Some(Ok((_, view))) => Ok(view),
            Some(Err(error)) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid) => {
                Err(Sight::Vanished("its namespace is gone".to_owned()))
            }
            Some(Err(error)) => Err(Sight::Unclear(error.to_string())),
            None => Err(Sight::Unclear("its namespace was not looked into".to_owned())),
        }
    }

    /// Whether the VM whose devices an entry names has a process, and that has gone.
    fn vm_is_gone(&self) -> bool {
        let is_vm = |entry: &&Entry| entry.actor == sandbox_model::lifecycle::ActorName::Supervisor;
        let processes = self.ledger.entries().filter(is_vm);
        let gone = processes.filter(|entry| matches!(entry.identity, Some(Identity::Process(_))));
        gone.map(|entry| self.sight(entry)).any(|sight| matches!(sight, Sight::Vanished(_)))
    }
}

/// Through the port, as the undo does; with no tap asked for it only looks.
async fn enter(path: &Path) -> Seen {
    let open = OpenNamespace { path: path.to_owned(), want: Want::Endpoints { queue_pairs: 0 } };
    let opened = LinuxNetworkHost::new().open_namespace(open, Instant::now() + PATIENCE).await?;
    Ok((opened.identity.inode, opened.view))
}
