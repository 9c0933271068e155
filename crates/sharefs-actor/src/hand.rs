//! Making and unmaking single objects: host port and ledger in one hand.

use std::path::Path;
use std::sync::Arc;

use sandbox_model::device::Access;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Identity, Journal, Scope, SharedSource, Undone};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};

use crate::host::{
    Attach, Base, Below, Daemon, Detach, EndDaemon, Export, Inode, Remove, SetId, ShareFsHost, Source, SourceKind,
    StartDaemon,
};
use crate::messages::SetUpShare;
use crate::names::Place;
use crate::shares::ShareKey;

/// What a future of this actor owns.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub(crate) journal: Journal,
    pub(crate) host: Arc<dyn ShareFsHost>,
    pub(crate) dir: SandboxDir,
    pub(crate) base: Base,
    pub(crate) sandbox: SandboxId,
}

/// How something shall be shared.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    pub(crate) scope: Scope,
    pub(crate) access: Access,
    pub(crate) set_id: SetId,
    /// Of a volume, which several containers may use.
    pub(crate) key: Option<ShareKey>,
}

impl Hand {
    fn below(&self, path: &Path) -> PortResult<Below> {
        Ok(Below { base: self.base.clone(), ..Below::of(self.dir.root(), path)? })
    }

    pub(crate) async fn directory(&self, scope: Scope, path: &Path, deadline: Instant) -> PortResult<EntryId> {
        let at = self.below(path)?;
        let object = HostObject::Directory { path: path.to_owned() };
        let make = |_| async move { Ok(((), self.host.make_directory(at, deadline).await?.into())) };
        Ok(self.journal.make(scope, object, make).await?.0)
    }

    async fn file(&self, scope: Scope, path: &Path, deadline: Instant) -> PortResult<EntryId> {
        let at = self.below(path)?;
        let object = HostObject::File { path: path.to_owned() };
        let make = |_| async move { Ok(((), self.host.make_file(at, deadline).await?.into())) };
        Ok(self.journal.make(scope, object, make).await?.0)
    }

    /// Makes the exported directory a mount of its own.
    pub(crate) async fn export(&self, deadline: Instant) -> PortResult<EntryId> {
        let (from, to) = (self.dir.share_rw(), self.dir.share_ro());
        let request = Export { from: self.below(&from)?, to: self.below(&to)? };
        let object = HostObject::Mount { target: to, source: from.display().to_string(), shared: None };
        let make = |_| async move {
            let mounted = self.host.export(request, deadline).await?;
            Ok(((), Identity::Mount { mount_id: mounted.mount_id }))
        };
        Ok(self.journal.make(Scope::Sandbox, object, make).await?.0)
    }

    /// Makes a placeholder on the host's side and mounts `source` on it on the exported side.
    ///
    /// The host's side never carries a mount, so what is removed there is only ever a placeholder.
    pub(crate) async fn share(
        &self,
        place: &Place,
        source: Source,
        manner: Manner,
        deadline: Instant,
    ) -> PortResult<Vec<EntryId>> {
        let Manner { scope, access, set_id, key } = manner;
        let shared = key.map(SharedSource::from);
        let placeholder = self.dir.share_rw().join(place.path());
        let first = match source.kind {
            SourceKind::Directory => self.directory(scope.clone(), &placeholder, deadline).await?,
            SourceKind::File => self.file(scope.clone(), &placeholder, deadline).await?,
        };
        let target = self.dir.share_ro().join(place.path());
        let at = self.below(&target)?;
        let object = HostObject::Mount { target, source: source.path.display().to_string(), shared };
        let make = |_| async move {
            let mounted = self.host.attach(Attach { at, source, access, set_id }, deadline).await?;
            Ok(((), Identity::Mount { mount_id: mounted.mount_id }))
        };
        let (second, ()) = self.journal.make(scope, object, make).await?;
        Ok(vec![first, second])
    }

    /// Starts the daemon. Its socket is the older entry, so that it is undone after the daemon.
    pub(crate) async fn daemon(&self, wish: &SetUpShare, deadline: Instant) -> PortResult<(Vec<EntryId>, Daemon)> {
        let path = self.dir.virtiofsd_socket();
        let request = StartDaemon {
            program: wish.daemon.clone(),
            socket: self.below(&path)?,
            shared_dir: self.below(&self.dir.share_ro())?,
            cache: wish.cache,
            tag: String::new(),
        };
        let process = HostObject::Process { program: "virtiofsd".into() };
        let start = |entry| async move {
            let request = StartDaemon { tag: self.tag(entry), ..request };
            let daemon = self.host.start_daemon(request, deadline).await?;
            let identity = Identity::Process(daemon.process);
            Ok((daemon, identity))
        };
        let both = |_| async move {
            let (entry, daemon) = self.journal.make(Scope::Sandbox, process, start).await?;
            let socket = daemon.socket.into();
            Ok(((entry, daemon), socket))
        };
        let (socket, (entry, daemon)) = self.journal.make(Scope::Sandbox, HostObject::File { path }, both).await?;
        Ok((vec![socket, entry], daemon))
    }

    pub(crate) fn tag(&self, entry: EntryId) -> String {
        format!("{}/{}", self.sandbox, entry.0)
    }

    /// Undoes one entry, from what it says alone.
    pub(crate) async fn unmake(&self, entry: &Entry, deadline: Instant) -> PortResult<Undone> {
        self.journal.unmake(entry, self.undo(entry, deadline)).await
    }

    async fn undo(&self, entry: &Entry, deadline: Instant) -> PortResult<()> {
        match &entry.object {
            HostObject::Directory { path } => {
                self.host.remove_directory(Remove { at: self.below(path)?, made: inode(entry) }, deadline).await
            }
            HostObject::File { path } => {
                self.host.remove_file(Remove { at: self.below(path)?, made: inode(entry) }, deadline).await
            }
            HostObject::Mount { target, source, .. } => {
                let mount_id = match entry.identity {
                    Some(Identity::Mount { mount_id }) => Some(mount_id),
                    _ => None,
                };
                let request = Detach { at: self.below(target)?, mount_id, source: source.into() };
                self.host.detach(request, deadline).await
            }
            HostObject::Process { .. } => {
                let process = match entry.identity {
                    Some(Identity::Process(process)) => Some(process),
                    _ => None,
                };
                let request = EndDaemon { process, tag: self.tag(entry.id), socket: self.dir.virtiofsd_socket() };
                self.host.end_daemon(request, deadline).await
            }
            // Exists in the table alone.
            HostObject::Hold { .. } => Ok(()),
            other => Err(PortError::new(
                ErrorKind::Foreign,
                "undo",
                other.to_string(),
                "the share-fs actor makes no such objects",
            )),
        }
    }
}

fn inode(entry: &Entry) -> Option<Inode> {
    match entry.identity {
        Some(Identity::Inode { device, inode }) => Some(Inode { device, inode }),
        _ => None,
    }
}
