//! The shared directory and its daemon.

use std::collections::BTreeSet;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;
use sandbox_model::device::ShareFsDevice;
use sandbox_model::layout::SHARE_TAG;
use sandbox_model::ledger::{EntryId, Scope};
use sandbox_model::request::SandboxBindMount;

use crate::actor::{SetUp, ShareFsActor, bad_source, finished};
use crate::hand::{Hand, Manner};
use crate::host::{Daemon, SetId, VerifyDaemon};
use crate::messages::{SetUpShare, ShareFsError, VerifyShare};
use crate::names::Place;

/// The sandbox's own bind mounts, each with its place.
type BindMounts = Vec<(Place, SandboxBindMount)>;

impl Serve<SetUpShare> for ShareFsActor {
    type Ticket = (SetUpShare, BindMounts);
    type Outcome = Result<(Vec<EntryId>, Daemon), ShareFsError>;

    fn plan(&mut self, request: SetUpShare, _: &Call) -> Plan<Self::Ticket, Result<ShareFsDevice, ShareFsError>> {
        if self.set_up.is_some() {
            return Plan::Answer(Err(ShareFsError::AlreadySetUp));
        }
        match places(&request.bind_mounts) {
            Ok(places) => Plan::Perform((request, places)),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, ticket: &mut Self::Ticket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (hand, (request, mounts), deadline) = (self.hand.clone(), ticket.clone(), call.deadline);
        Box::pin(async move { set_up(&hand, request, mounts, deadline).await })
    }

    fn settle(
        &mut self,
        (request, _): Self::Ticket,
        done: Completion<Self::Outcome>,
    ) -> Result<ShareFsDevice, ShareFsError> {
        let (entries, daemon) = finished(done)?;
        self.set_up = Some(SetUp { entries, daemon });
        Ok(ShareFsDevice {
            socket: self.hand.dir.virtiofsd_socket(),
            tag: SHARE_TAG.into(),
            queue_size: request.queue_size,
        })
    }
}

/// Each bind mount is seen under the last part of its path, so those must differ (behaviour A4).
fn places(mounts: &[SandboxBindMount]) -> Result<BindMounts, ShareFsError> {
    let mut names = BTreeSet::new();
    let place = |mount: &SandboxBindMount| {
        let Some(name) = mount.source.file_name().and_then(|name| name.to_str()) else {
            let reason = "its last part must be a name in UTF-8: the guest sees it under that".into();
            return Err(ShareFsError::BadSource { path: mount.source.clone(), reason });
        };
        if !names.insert(name.to_owned()) {
            return Err(ShareFsError::SameName { name: name.to_owned() });
        }
        Ok((Place::sandbox_mounts().join(name), mount.clone()))
    };
    mounts.iter().map(place).collect()
}

async fn set_up(
    hand: &Hand,
    request: SetUpShare,
    mounts: BindMounts,
    deadline: Instant,
) -> Result<(Vec<EntryId>, Daemon), ShareFsError> {
    let (rw, ro) = (hand.dir.share_rw(), hand.dir.share_ro());
    let passthrough = rw.join(Place::passthrough().path());
    let sandbox_mounts = rw.join(Place::sandbox_mounts().path());
    let mut entries = Vec::new();
    for path in [rw, passthrough, sandbox_mounts, ro] {
        entries.push(hand.directory(Scope::Sandbox, &path, deadline).await?);
    }
    entries.push(hand.export(deadline).await?);
    for (place, mount) in mounts {
        let source = hand.host.open_source(mount.source.clone(), deadline).await;
        let source = source.map_err(|error| bad_source(&mount.source, error))?;
        let manner = Manner { scope: Scope::Sandbox, access: mount.access, set_id: SetId::Ignored, key: None };
        entries.extend(hand.share(&place, source, manner, deadline).await?);
    }
    // Last: what can fail for the caller's fault has not, and the daemon serves a finished tree.
    let (started, daemon) = hand.daemon(&request, deadline).await?;
    entries.extend(started);
    Ok((entries, daemon))
}

impl Serve<VerifyShare> for ShareFsActor {
    type Ticket = VerifyDaemon;
    type Outcome = Result<(), ShareFsError>;

    fn plan(&mut self, _: VerifyShare, _: &Call) -> Plan<VerifyDaemon, Result<(), ShareFsError>> {
        match &self.set_up {
            None => Plan::Answer(Err(ShareFsError::NotSetUp)),
            Some(SetUp { daemon, .. }) => {
                Plan::Perform(VerifyDaemon { process: daemon.process, handle: daemon.handle.clone() })
            }
        }
    }

    fn perform(&self, ticket: &mut VerifyDaemon, call: &Call) -> LocalFuture<Self::Outcome> {
        let (host, request, deadline) = (self.hand.host.clone(), ticket.clone(), call.deadline);
        Box::pin(async move { Ok(host.verify_daemon(request, deadline).await?) })
    }

    fn settle(&mut self, _: VerifyDaemon, done: Completion<Self::Outcome>) -> Result<(), ShareFsError> {
        finished(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_model::device::Access;

    #[test]
    fn two_bind_mounts_of_one_name_are_refused() {
        let mount = |path: &str| SandboxBindMount { source: path.into(), access: Access::ReadOnly };
        assert_eq!(places(&[mount("/a/x"), mount("/b/x")]), Err(ShareFsError::SameName { name: "x".into() }));
        assert!(matches!(places(&[mount("/")]), Err(ShareFsError::BadSource { .. })));
        let good = places(&[mount("/a/x"), mount("/b/y")]).unwrap();
        assert_eq!(good[1].0.in_guest(), "/run/kata-containers/shared/containers/passthrough/sandbox-mounts/y");
    }
}
