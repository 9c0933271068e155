//! The one undo path: a failed step, a container's release, clean-up and recovery all walk the
//! ledger backwards here.

use std::sync::Arc;
use std::time::Duration;

use actor_shell::{Ask, Domain, Refused, Request, Serve};
use cgroup_actor::UndoCgroups;
use device_actor::UndoDevices;
use hypervisor::{KillVm, RemoveSocket, SocketFile};
use network_actor::UndoNetwork;
use sandbox_model::ledger::{Entry, HostObject, Identity, Undo, UndoItem, UndoReport, VmFate};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};
use sharefs_actor::UndoShares;

use super::crew::{Crew, Seat, StepError};
use super::stop::is_vmm;
use crate::cpu::UndoCpu;
use crate::error::Cause;

/// For one walk of the ledger by a clean-up that is in haste.
const HASTY_UNDO_MS: u64 = 5_000;

impl Crew {
    fn undo_deadline(&self) -> Instant {
        let undo_ms = self.config.runtime.deadlines.undo_ms;
        Instant::now() + Duration::from_millis(if self.haste.get() { undo_ms.min(HASTY_UNDO_MS) } else { undo_ms })
    }

    /// Milliseconds for each polite step of ending the VM.
    pub(super) fn term_ms(&self) -> u64 {
        if self.haste.get() { 0 } else { self.config.runtime.deadlines.term_ms }
    }

    /// Undoes some entries while the rest of the sandbox goes on: newest first, one actor after
    /// the other, since a newer object may stand on an older one.
    pub(crate) async fn undo_in_order(&self, mut entries: Vec<Arc<Entry>>, vm: VmFate) -> UndoReport {
        let deadline = self.undo_deadline();
        let mut report = UndoReport::default();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.id));
        for run in entries.chunk_by(|newer, older| newer.actor == older.actor) {
            report.extend(self.undo_run(run.to_vec(), vm, deadline).await);
        }
        report
    }

    /// Undoes everything: first the VM's process, which takes its devices along; then what the
    /// actors made, side by side, each newest first.
    pub(crate) async fn undo_everything(&self) -> UndoReport {
        let deadline = self.undo_deadline();
        let mut entries = self.ledger.live();
        entries.reverse();
        let mut of = |actor: ActorName| entries.extract_if(.., |entry| entry.actor == actor).collect::<Vec<_>>();
        let mut report = self.undo_run(of(ActorName::Supervisor), VmFate::Alive, deadline).await;
        // A socket of the VMM that stays does not keep its VM.
        let vm_is_gone = !self.ledger.any(&is_vmm);
        let vm = if vm_is_gone { VmFate::Gone } else { VmFate::Alive };
        let undone = futures::join!(
            self.undo_run(of(ActorName::Device), vm, deadline),
            self.undo_run(of(ActorName::Network), vm, deadline),
            self.undo_run(of(ActorName::ShareFs), vm, deadline),
            self.undo_run(of(ActorName::Cgroup), vm, deadline),
            self.undo_run(of(ActorName::Cpu), vm, deadline),
        );
        for part in [undone.0, undone.1, undone.2, undone.3, undone.4] {
            report.extend(part);
        }
        report
    }

    /// Undoes entries of one actor.
    async fn undo_run(&self, entries: Vec<Arc<Entry>>, vm: VmFate, deadline: Instant) -> UndoReport {
        let Some(first) = entries.first() else { return UndoReport::default() };
        let (actor, asked) = (first.actor, entries.iter().map(|entry| entry.id).collect::<Vec<_>>());
        let undo = Undo { entries, vm };
        let answer = match actor {
            ActorName::Supervisor => Ok(self.undo_own(&undo.entries, deadline).await),
            ActorName::Device => self.ask_undo(&self.device, UndoDevices(undo), deadline).await,
            ActorName::Network => self.ask_undo(&self.network, UndoNetwork(undo), deadline).await,
            ActorName::ShareFs => self.ask_undo(&self.share, UndoShares(undo), deadline).await,
            ActorName::Cgroup => self.ask_undo(&self.cgroup, UndoCgroups(undo), deadline).await,
            ActorName::Cpu => self.ask_undo(&self.cpu, UndoCpu(undo), deadline).await,
        };
        let (mut report, why) = match answer {
            Ok(report) => (report, "did not end before its deadline".to_owned()),
            Err(error) => (UndoReport::default(), error.cause.to_string()),
        };
        // What an actor did not come to is still in the ledger, and must be in the report.
        for id in asked {
            let is_told = report.items.iter().any(|item| item.entry == id);
            if is_told {
                continue;
            }
            if let Some(entry) = self.ledger.entry(id) {
                let error = PortError::timed_out("undo", entry.object.to_text(), why.clone());
                report.items.push(UndoItem::of(&entry, Err(error)));
            }
        }
        report
    }

    async fn ask_undo<D, R>(&self, seat: &Seat<D>, undo: R, deadline: Instant) -> Result<UndoReport, StepError>
    where
        D: Domain + Serve<R>,
        R: Request<Reply = UndoReport> + Clone,
    {
        let ask = Ask { deadline, cause: Some(self.cause.get()) };
        match seat.ask_plain("undo", undo.clone(), ask).await {
            Err(StepError { cause: Cause::Refused(Refused::Died { .. } | Refused::Ended { .. }), .. }) => {
                seat.replace();
                seat.ask_plain("undo", undo, ask).await
            }
            answer => answer,
        }
    }

    /// The supervisor's own objects: the VMM's process, and its sockets.
    async fn undo_own(&self, entries: &[Arc<Entry>], deadline: Instant) -> UndoReport {
        let mut report = UndoReport::default();
        for entry in entries {
            let result = self.journal.unmake(entry, self.undo_one(entry, deadline)).await;
            report.items.push(UndoItem::of(entry, result));
        }
        report
    }

    async fn undo_one(&self, entry: &Entry, deadline: Instant) -> PortResult<()> {
        match (&entry.object, &entry.identity) {
            (HostObject::Process { .. }, identity) => {
                let process = match identity {
                    Some(Identity::Process(process)) => Some(*process),
                    _ => None,
                };
                let term_ms = self.term_ms();
                self.vmm.kill_vm(KillVm { process, tag: self.tag(entry.id), term_ms }, deadline).await
            }
            (HostObject::File { path }, identity) => {
                let file = SocketFile::of(identity.as_ref());
                self.vmm.remove_socket(RemoveSocket { path: path.clone(), file }, deadline).await
            }
            (object, _) => {
                let cause = "it is not the supervisor's";
                Err(PortError::new(ErrorKind::Invalid, "undo", object.to_string(), cause))
            }
        }
    }
}
