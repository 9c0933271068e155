//! What the process after a crash does: takes the sandbox over, or releases what is left of it.

use resource_actors::{Recovered, ResourceSystem, SandboxError, SandboxHandle};
use simulation::fault::FaultPlan;

use super::{End, Run, TRIES, difference};
use crate::faults::picture;

/// What becomes of a sandbox whose process has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heir {
    /// It is released from its ledger.
    Releases,
    /// It is taken over, if it can be.
    TakesOver,
}

impl Heir {
    /// By the plan, so that its line says all; of two crashes at one site (`CB`, `CA`) one is recovered
    /// from in each way.
    pub(super) fn of(plan: &FaultPlan) -> Self {
        let sum: u32 = plan.to_string().bytes().map(u32::from).sum();
        if sum.is_multiple_of(2) { Self::Releases } else { Self::TakesOver }
    }
}

impl Run<'_> {
    /// The recovery of a process that knows nothing but the store.
    pub(super) async fn release_what_was_left(&mut self, system: &ResourceSystem) {
        let id = self.life.spec.id.clone();
        for _ in 0..TRIES {
            if self.host.store.kept(&id).is_none() {
                break;
            }
            match system.cleanup_sandbox(&id).await {
                Ok(report) if report.is_clean() => break,
                Ok(_) | Err(_) => {}
            }
        }
        self.nothing_left("after recovery");
        let mut again = system.cleanup_sandbox(&id).await;
        if matches!(again, Err(SandboxError::Store(_))) {
            // Refused by a fault.
            again = system.cleanup_sandbox(&id).await;
        }
        if !matches!(again, Err(SandboxError::Unknown { .. })) {
            self.watch.found("I13", format!("a second recovery answers {again:?}"));
        }
    }

    /// The recovery of a process that goes on with what it finds, if kernel and VMM confirm it: then it
    /// is as before the act in which the other died, or as after it.
    pub(super) async fn take_over_what_was_left(&mut self, system: &ResourceSystem) {
        let recovered = system.recover(&self.life.spec.id).await;
        if let Ok(Recovered::Adopted(sandbox)) = recovered {
            self.watch.adopted(sandbox.clone());
            let now = picture(&self.host.world, self.watch.baseline());
            let act = self.next.saturating_sub(1);
            let nearby = act.saturating_sub(1)..=act;
            let wanted: Vec<&Vec<String>> = self
                .reference
                .iter()
                .flat_map(|all| all.after.get(nearby.clone()))
                .flatten()
                .map(|one| &one.exists)
                .collect();
            if let Some(last) = wanted.last().filter(|_| !wanted.contains(&&now) && self.counts()) {
                self.watch.found("F3", difference("taken over", last, &now));
            }
            let _ = self.release(&sandbox, End::Anew).await;
        }
        self.release_what_was_left(system).await;
    }

    /// The sandbox that the process before has left, as it was: or nothing, because a fault struck.
    pub(super) async fn take_over(&mut self, system: &ResourceSystem) -> Option<SandboxHandle> {
        let before = picture(&self.host.world, self.watch.baseline());
        match system.recover(&self.life.spec.id).await {
            Ok(Recovered::Adopted(sandbox)) => {
                self.watch.adopted(sandbox.clone());
                let now = picture(&self.host.world, self.watch.baseline());
                if now != before && self.counts() {
                    self.watch.found("F3", difference("taken over", &before, &now));
                }
                self.put_down(true);
                return Some(sandbox);
            }
            Ok(Recovered::Released { why, .. }) if self.host.faults.struck().is_empty() => {
                self.watch.found("F3", format!("not taken over: {why}"));
            }
            Err(error) if self.host.faults.struck().is_empty() => {
                self.watch.found("F3", format!("not recovered: {error}"));
            }
            Ok(_) | Err(_) => {}
        }
        self.release_what_was_left(system).await;
        None
    }

    /// The sandbox as one that has failed.
    pub(super) async fn bring_back(&mut self, system: &ResourceSystem) -> Result<SandboxHandle, SandboxError> {
        let id = self.life.spec.id.clone();
        let restored = match self.restore(system).await {
            Err(SandboxError::Store(_)) if system.sandbox(&id).is_none() => self.restore(system).await,
            other => other,
        };
        self.watch.follow(restored.clone()?);
        restored
    }

    async fn restore(&self, system: &ResourceSystem) -> Result<SandboxHandle, SandboxError> {
        system.restore(system.saved(&self.life.spec.id)?).await
    }
}
