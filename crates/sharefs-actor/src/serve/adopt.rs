//! `AdoptShares`: the shared directory of a sandbox that an earlier process has left running.

use std::path::PathBuf;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::Entry;

use crate::actor::{SetUp, ShareFsActor};
use crate::hand::Hand;
use crate::host::{AdoptDaemon, Daemon, Look, VerifyDaemon};
use crate::messages::AdoptShares;
use crate::rebuild::{LeftDaemon, Rebuilt, confirm, path_of, rebuild};

/// What the ledger says, on its way to be confirmed.
#[derive(Debug)]
pub struct AdoptTicket {
    entries: Vec<Arc<Entry>>,
    rebuilt: Rebuilt,
}

impl Serve<AdoptShares> for ShareFsActor {
    type Ticket = AdoptTicket;
    type Outcome = Result<(Option<Daemon>, usize), AdoptError>;

    fn plan(&mut self, request: AdoptShares, _: &Call) -> Plan<AdoptTicket, Result<Confirmed, AdoptError>> {
        match rebuild(&self.hand.dir, &request.entries) {
            Ok(rebuilt) => Plan::Perform(AdoptTicket { entries: request.entries, rebuilt }),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, ticket: &mut AdoptTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (hand, deadline) = (self.hand.clone(), call.deadline);
        // What a release has left half done may be gone already; an undo looks.
        let is_orphan = |entry: &Entry| ticket.rebuilt.orphans.iter().any(|orphan| orphan.id == entry.id);
        let entries = ticket.entries.iter().filter(|entry| !is_orphan(entry)).cloned().collect();
        let daemon = ticket.rebuilt.daemon.clone();
        Box::pin(async move {
            let objects = look(&hand, entries, deadline).await?;
            let Some(daemon) = daemon else { return Ok((None, objects)) };
            Ok((Some(adopt(&hand, daemon, deadline).await?), objects + 1))
        })
    }

    fn settle(&mut self, ticket: AdoptTicket, done: Completion<Self::Outcome>) -> Result<Confirmed, AdoptError> {
        let (daemon, objects) = match done {
            Completion::Finished(result) => result?,
            Completion::DeadlinePassed => return Err(AdoptError::DeadlinePassed),
            Completion::Interrupted => return Err(AdoptError::Interrupted),
        };
        let Rebuilt { daemon: left, shares, rootfs, orphans } = ticket.rebuilt;
        self.set_up = left.zip(daemon).map(|(left, daemon)| SetUp { entries: left.entries, daemon });
        self.shares = shares;
        self.rootfs = rootfs;
        Ok(Confirmed { objects, orphans })
    }
}

/// One look at everything that has a path.
async fn look(hand: &Hand, entries: Vec<Arc<Entry>>, deadline: Instant) -> Result<usize, AdoptError> {
    let (entries, paths): (Vec<Arc<Entry>>, Vec<PathBuf>) =
        entries.into_iter().filter_map(|entry| Some((path_of(&entry)?.to_owned(), entry))).map(|(p, e)| (e, p)).unzip();
    let dir = hand.dir.root();
    let relative = paths.iter().map(|path| Ok(crate::host::Below::of(dir, path)?.path));
    let look = Look { dir: dir.to_owned(), paths: relative.collect::<Result<_, AdoptError>>()? };
    let seen = hand.host.look(look, deadline).await?;
    confirm(&hand.dir, &entries.into_iter().zip(seen).collect::<Vec<_>>())
}

async fn adopt(hand: &Hand, left: LeftDaemon, deadline: Instant) -> Result<Daemon, AdoptError> {
    let LeftDaemon { process, process_entry, socket, .. } = left;
    let adopt = AdoptDaemon { process, tag: hand.tag(process_entry) };
    let handle = hand.host.adopt_daemon(adopt, deadline).await?.handle;
    let verify = VerifyDaemon { process, handle: handle.clone() };
    hand.host.verify_daemon(verify, deadline).await?;
    Ok(Daemon { process, socket, handle })
}
