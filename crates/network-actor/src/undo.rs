//! Undoing ledger entries: from the entry alone, whoever made the object and however it ended.

use std::path::Path;
use std::sync::Arc;

use sandbox_model::ledger::{Entry, HostObject, Identity, Journal, UndoItem, UndoReport};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};

use crate::host::{Inode, OpenNamespace, RemoveFile, RemoveNamespace, RemoveRedirect, RemoveTap, Want};
use crate::serve::Held;
use crate::{Mark, NetworkHost};

pub(crate) struct Undoing {
    pub(crate) journal: Journal,
    pub(crate) host: Arc<dyn NetworkHost>,
    pub(crate) mark: Mark,
    pub(crate) deadline: Instant,
    /// Namespaces that need not be entered again.
    pub(crate) within_reach: Vec<Held>,
}

impl Undoing {
    /// Undoes `entries` in their order and goes on past errors.
    ///
    /// One after the other: the kernel does what takes its time, deleting a link, under one lock
    /// for the whole namespace anyway.
    pub(crate) async fn run(mut self, entries: Vec<Arc<Entry>>) -> UndoReport {
        let journal = self.journal.clone();
        let mut report = UndoReport::default();
        for entry in entries {
            let result = journal.unmake(&entry, self.remove(&entry)).await;
            report.items.push(UndoItem::of(&entry, result));
        }
        report
    }

    async fn remove(&mut self, entry: &Entry) -> PortResult<()> {
        match &entry.object {
            HostObject::IngressQdisc { namespace, link } => {
                let (index, inode) = link_identity(entry)?;
                let held = self.reach(namespace, inode).await?;
                let remove = RemoveRedirect {
                    socket: held.socket,
                    namespace_inode: held.inode,
                    link: link.clone(),
                    index,
                    mark: self.mark.clone(),
                };
                let removed = self.host.remove_redirect(remove, self.deadline).await;
                self.forget_if_busy(namespace, removed)
            }
            HostObject::Tap { namespace, name, alias } => {
                let (index, inode) = link_identity(entry)?;
                let held = self.reach(namespace, inode).await?;
                // Only of a tap that was made is it known that these are its own.
                let queues = if index.is_some() { held.queues(name) } else { Vec::new() };
                let remove = RemoveTap {
                    queues,
                    socket: held.socket,
                    namespace_inode: held.inode,
                    name: name.clone(),
                    alias: alias.clone(),
                    index,
                };
                let removed = self.host.remove_tap(remove, self.deadline).await;
                self.forget_if_busy(namespace, removed)
            }
            HostObject::NetNamespace { path } => {
                let remove = RemoveNamespace { path: path.clone(), identity: file_identity(entry)? };
                self.host.remove_namespace(remove, self.deadline).await
            }
            HostObject::File { path } => {
                let remove = RemoveFile { path: path.clone(), identity: file_identity(entry)? };
                self.host.remove_file(remove, self.deadline).await
            }
            other => Err(PortError::new(
                ErrorKind::Invalid,
                "undo",
                other.to_string(),
                "the network actor makes no such object",
            )),
        }
    }

    /// The namespace of an object. If that namespace is gone, the object is gone with it: neither a
    /// tap nor a qdisc can be reached, or do anything, without it.
    async fn reach(&mut self, path: &Path, inode: Option<u64>) -> PortResult<Held> {
        let is_it = |held: &&Held| held.path == path && inode.is_none_or(|inode| held.inode == inode);
        if let Some(held) = self.within_reach.iter().find(is_it) {
            return Ok(held.clone());
        }
        let gone =
            |cause: String| PortError::new(ErrorKind::NotFound, "open namespace", path.display().to_string(), cause);
        let open = OpenNamespace { path: path.to_owned(), want: Want::Socket };
        let opened = match self.host.open_namespace(open, self.deadline).await {
            Err(error) if error.kind == ErrorKind::Invalid => return Err(gone(error.cause)),
            other => other?,
        };
        let found = opened.identity.inode;
        if inode.is_some_and(|inode| inode != found) {
            return Err(gone(format!("another namespace is bound there now (inode {found})")));
        }
        let held =
            Held { path: path.to_owned(), inode: found, socket: opened.socket, tuns: Vec::new(), queue_pairs: 1 };
        self.within_reach.push(held.clone());
        Ok(held)
    }

    /// A call that timed out may still be using its socket, and answers would get mixed up: the
    /// next call enters again for one of its own.
    fn forget_if_busy(&mut self, path: &Path, removed: PortResult<()>) -> PortResult<()> {
        if removed.as_ref().is_err_and(|error| error.kind == ErrorKind::TimedOut) {
            self.within_reach.retain(|held| held.path != path);
        }
        removed
    }
}

fn link_identity(entry: &Entry) -> PortResult<(Option<u32>, Option<u64>)> {
    match entry.identity {
        None => Ok((None, None)),
        Some(Identity::Link { index, namespace_inode }) => Ok((Some(index), Some(namespace_inode))),
        Some(_) => Err(wrong_identity(entry)),
    }
}

fn file_identity(entry: &Entry) -> PortResult<Option<Inode>> {
    match entry.identity {
        None => Ok(None),
        Some(Identity::Inode { device, inode }) => Ok(Some(Inode { device, inode })),
        Some(_) => Err(wrong_identity(entry)),
    }
}

fn wrong_identity(entry: &Entry) -> PortError {
    let cause = format!("the ledger's identity does not fit the object: {:?}", entry.identity);
    PortError::new(ErrorKind::Invalid, "undo", entry.object.to_text(), cause)
}
