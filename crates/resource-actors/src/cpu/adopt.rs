//! `AdoptCpu`: the size of a VM that an earlier process has left running.

use std::collections::BTreeSet;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::ContainerId;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, HostObject};

use super::{AdoptCpu, CpuActor, Shares};

/// The shares that were kept and that the ledger has, too, and how many. One of the ledger alone
/// belongs to a step that was cut off.
///
/// # Errors
/// [`AdoptError::Contradiction`].
fn rebuild(entries: &[Arc<Entry>], kept: &Shares) -> Result<(Shares, usize), AdoptError> {
    let mut noted: BTreeSet<&ContainerId> = BTreeSet::new();
    for entry in entries {
        match &entry.object {
            HostObject::ResourceShare { container } => noted.insert(container),
            _ => return Err(AdoptError::strange(entry)),
        };
    }
    let objects = noted.iter().filter(|container| kept.contains(container)).count();
    Ok((kept.only(|container| noted.contains(container)), objects))
}

impl Serve<AdoptCpu> for CpuActor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, request: AdoptCpu, _: &Call) -> Plan<(), Result<Confirmed, AdoptError>> {
        let AdoptCpu { entries, base, shares, now } = request;
        Plan::Answer(rebuild(&entries, &shares).map(|(shares, objects)| {
            self.take_over(base, shares, now);
            Confirmed { objects, orphans: Vec::new() }
        }))
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) -> Result<Confirmed, AdoptError> {
        unreachable!("the plan answers at once")
    }
}

#[cfg(test)]
mod tests {
    use sandbox_model::ledger::{EntryId, Identity, Scope};
    use sandbox_model::lifecycle::ActorName;

    use super::*;
    use crate::cpu::Share;

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    fn entry(object: HostObject) -> Arc<Entry> {
        let (scope, identity) = (Scope::Sandbox, Some(Identity::Named));
        Arc::new(Entry { id: EntryId(1), actor: ActorName::Cpu, scope, object, identity })
    }

    #[test]
    fn a_share_counts_if_it_was_kept_and_is_in_the_ledger() {
        let share = |name: &str| entry(HostObject::ResourceShare { container: id(name) });
        let kept = Shares::default().with(&id("a"), Share::default()).with(&id("released"), Share::default());
        let (shares, objects) = rebuild(&[share("a"), share("new")], &kept).unwrap();
        assert_eq!((shares, objects), (Shares::default().with(&id("a"), Share::default()), 1));
        assert!(rebuild(&[entry(HostObject::Hold { object: "x".into() })], &kept).is_err());
    }
}
