//! A ledger in memory and an actor on it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Address, Ask, CurrentCause, Identity as Who, NoTrace, Request, Serve, spawn};
use sandbox_model::config::VirtioFsCache;
use sandbox_model::device::Access;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Journal, Ledger, Record, Scope, Undo, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::request::SandboxBindMount;
use sandbox_model::{ContainerId, Instant, PortError, SandboxId};
use sharefs_actor::{SetUpShare, ShareFsActor, ShareFsHost, ShareRootfs, ShareVolume, UndoShares};

/// Keeps live entries, as a ledger file read back would.
#[derive(Debug, Default)]
pub(crate) struct MemoryLedger(RefCell<(u64, Vec<Arc<Entry>>)>);

impl Ledger for MemoryLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> Result<EntryId, PortError> {
        let (last, live) = &mut *self.0.borrow_mut();
        *last += 1;
        live.push(Arc::new(Entry { id: EntryId(*last), actor, scope, object, identity: None }));
        Ok(EntryId(*last))
    }

    fn append(&self, record: Record) -> Result<(), PortError> {
        let (_, live) = &mut *self.0.borrow_mut();
        match record {
            Record::Done { entry, identity } => {
                let done = live.iter_mut().find(|e| e.id == entry);
                Arc::make_mut(done.unwrap()).identity = Some(identity);
            }
            Record::Refused { entry } | Record::Undone { entry } => live.retain(|e| e.id != entry),
            _ => {}
        }
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.0.borrow().1.clone()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.live().into_iter().find(|entry| entry.id == id)
    }
}

/// One sandbox's actor, its ledger and its directory.
pub(crate) struct Sandbox {
    pub(crate) actor: Address<ShareFsActor>,
    pub(crate) ledger: Rc<MemoryLedger>,
    pub(crate) dir: SandboxDir,
    host: Arc<dyn ShareFsHost>,
    id: SandboxId,
}

pub(crate) fn container(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

impl Sandbox {
    pub(crate) fn new(host: Arc<dyn ShareFsHost>, state_dir: &std::path::Path, id: &str) -> Self {
        let id = SandboxId::new(id).unwrap();
        let dir = SandboxDir::new(state_dir, &id);
        let ledger = Rc::new(MemoryLedger::default());
        let actor = Self::start(&ledger, &host, &dir, &id);
        Self { actor, ledger, dir, host, id }
    }

    fn start(
        ledger: &Rc<MemoryLedger>,
        host: &Arc<dyn ShareFsHost>,
        dir: &SandboxDir,
        id: &SandboxId,
    ) -> Address<ShareFsActor> {
        let journal = Journal::new(ledger.clone(), ActorName::ShareFs);
        let who = Who {
            actor: ActorName::ShareFs,
            sandbox: id.clone(),
            bound: 8,
            sink: Arc::new(NoTrace),
            cause: CurrentCause::default(),
        };
        spawn(ShareFsActor::new(journal, host.clone(), dir.clone(), id.clone()), who)
    }

    /// As after a crash: the ledger is all that is left. `forget` loses identities as well.
    pub(crate) fn restart(&mut self, forget: bool) {
        if forget {
            self.ledger.0.borrow_mut().1.iter_mut().for_each(|entry| Arc::make_mut(entry).identity = None);
        }
        self.actor = Self::start(&self.ledger, &self.host, &self.dir, &self.id);
    }

    pub(crate) async fn ask<R: Request>(&self, request: R) -> R::Reply
    where
        ShareFsActor: Serve<R>,
    {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.actor.ask(request, Ask { deadline, cause: None }).await.unwrap()
    }

    pub(crate) fn wish(daemon: &str, bind_mounts: Vec<SandboxBindMount>) -> SetUpShare {
        SetUpShare { daemon: daemon.into(), cache: VirtioFsCache::Auto, queue_size: 1024, bind_mounts }
    }

    pub(crate) fn rootfs(who: &str, source: impl Into<PathBuf>, access: Access) -> ShareRootfs {
        ShareRootfs { container: container(who), source: source.into(), access }
    }

    pub(crate) fn volume(who: &str, source: impl Into<PathBuf>, destination: &str, access: Access) -> ShareVolume {
        ShareVolume { container: container(who), source: source.into(), destination: destination.into(), access }
    }

    pub(crate) async fn undo(&self, mut entries: Vec<Arc<Entry>>) -> UndoReport {
        entries.reverse();
        self.ask(UndoShares(Undo { entries, vm: VmFate::Gone })).await
    }

    /// Undoes everything, twice.
    pub(crate) async fn release(&self) {
        let all = self.ledger.live();
        let report = self.undo(all.clone()).await;
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!(self.ledger.live(), []);
        assert!(self.undo(all).await.is_clean(), "a second undo finds nothing to do");
    }

    pub(crate) fn of_container(&self, who: &str) -> Vec<Arc<Entry>> {
        let scope = Scope::Container(container(who));
        self.ledger.live().into_iter().filter(|entry| entry.scope == scope).collect()
    }

    /// Entries newer than `since` others.
    pub(crate) fn newer_than(&self, since: EntryId) -> Vec<Arc<Entry>> {
        self.ledger.live().into_iter().filter(|entry| entry.id > since).collect()
    }
}
