//! Root file systems and volumes.

use std::collections::BTreeMap;
use std::rc::Rc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Scope};

use crate::actor::{ShareFsActor, bad_source, finished, is_doubtful};
use crate::hand::{Hand, Manner};
use crate::host::SetId;
use crate::messages::{ShareFsError, ShareRootfs, ShareVolume, SharedPath};
use crate::names::Place;
use crate::shares::ShareKey;

impl Serve<ShareRootfs> for ShareFsActor {
    type Ticket = ShareRootfs;
    type Outcome = Result<(), ShareFsError>;

    fn plan(&mut self, request: ShareRootfs, _: &Call) -> Plan<ShareRootfs, Result<SharedPath, ShareFsError>> {
        if self.set_up.is_none() {
            return Plan::Answer(Err(ShareFsError::NotSetUp));
        }
        if !self.rootfs.insert(request.container.clone()) {
            return Plan::Answer(Err(ShareFsError::RootfsExists { container: request.container }));
        }
        Plan::Perform(request)
    }

    fn perform(&self, ticket: &mut ShareRootfs, call: &Call) -> LocalFuture<Self::Outcome> {
        let (hand, request, deadline) = (self.hand.clone(), ticket.clone(), call.deadline);
        Box::pin(async move { share_rootfs(&hand, request, deadline).await })
    }

    fn settle(&mut self, ticket: ShareRootfs, done: Completion<Self::Outcome>) -> Result<SharedPath, ShareFsError> {
        let result = finished(done);
        // Without an entry there is nothing that an undo could settle: no doubt is left.
        let holder = self.hand.dir.share_rw().join(Place::container(&ticket.container).path());
        let is_holder = |entry: &Entry| matches!(&entry.object, HostObject::Directory { path } if *path == holder);
        let may_be_there = self.hand.journal.ledger().any(&is_holder);
        if result.as_ref().is_err_and(|error| !is_doubtful(error) || !may_be_there) {
            self.rootfs.remove(&ticket.container);
        }
        result.map(|()| SharedPath { guest_path: Place::rootfs(&ticket.container).in_guest() })
    }
}

async fn share_rootfs(hand: &Hand, request: ShareRootfs, deadline: Instant) -> Result<(), ShareFsError> {
    let source = hand.host.open_source(request.source.clone(), deadline).await;
    let source = source.map_err(|error| bad_source(&request.source, error))?;
    if source.kind != crate::host::SourceKind::Directory {
        let reason = "a root file system is a directory".into();
        return Err(ShareFsError::BadSource { path: request.source, reason });
    }
    let scope = Scope::Container(request.container.clone());
    let holder = hand.dir.share_rw().join(Place::container(&request.container).path());
    hand.directory(scope.clone(), &holder, deadline).await?;
    let manner = Manner { scope, access: request.access, set_id: SetId::Honoured, key: None };
    hand.share(&Place::rootfs(&request.container), source, manner, deadline).await?;
    Ok(())
}

/// A volume to share, under a name of its own should it need one.
#[derive(Debug, Clone)]
pub struct VolumeTicket {
    request: ShareVolume,
    fresh: Place,
    known: Rc<BTreeMap<ShareKey, Place>>,
}

/// A volume that the container holds now.
#[derive(Debug)]
pub struct Held {
    place: Place,
    key: ShareKey,
    /// Those of a new share; empty if it was there already.
    entries: Vec<EntryId>,
    hold: EntryId,
}

impl Serve<ShareVolume> for ShareFsActor {
    type Ticket = VolumeTicket;
    type Outcome = Result<Held, ShareFsError>;

    fn plan(&mut self, request: ShareVolume, _: &Call) -> Plan<VolumeTicket, Result<SharedPath, ShareFsError>> {
        if self.set_up.is_none() {
            return Plan::Answer(Err(ShareFsError::NotSetUp));
        }
        self.serial = self.serial.saturating_add(1);
        let fresh = Place::volume(self.serial, &request.destination);
        Plan::Perform(VolumeTicket { request, fresh, known: self.shares.index() })
    }

    fn perform(&self, ticket: &mut VolumeTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (hand, ticket, deadline) = (self.hand.clone(), ticket.clone(), call.deadline);
        Box::pin(async move { share_volume(&hand, ticket, deadline).await })
    }

    fn settle(&mut self, ticket: VolumeTicket, done: Completion<Self::Outcome>) -> Result<SharedPath, ShareFsError> {
        let Held { place, key, entries, hold } = finished(done)?;
        let guest_path = place.in_guest();
        let hold = (hold, ticket.request.container);
        if entries.is_empty() {
            self.shares.hold(&place, hold);
        } else {
            self.shares.add(place, key, entries, hold);
        }
        Ok(SharedPath { guest_path })
    }
}

async fn share_volume(hand: &Hand, ticket: VolumeTicket, deadline: Instant) -> Result<Held, ShareFsError> {
    let VolumeTicket { request, fresh, known } = ticket;
    let source = hand.host.open_source(request.source.clone(), deadline).await;
    let source = source.map_err(|error| bad_source(&request.source, error))?;
    let key = ShareKey { source: source.inode, mount_id: source.mount_id, access: request.access };
    let (place, entries) = match known.get(&key) {
        Some(place) => (place.clone(), Vec::new()),
        None => {
            let manner =
                Manner { scope: Scope::Sandbox, access: request.access, set_id: SetId::Ignored, key: Some(key) };
            let entries = hand.share(&fresh, source, manner, deadline).await?;
            (fresh, entries)
        }
    };
    let object = HostObject::Hold { object: place.path().display().to_string() };
    let hold = hand.journal.note(Scope::Container(request.container), object)?;
    Ok(Held { place, key, entries, hold })
}
