//! How the CPU actor serves its messages.

use std::sync::Arc;

use actor_shell::{Call, Completion, Domain, LocalFuture, Plan, Serve};
use guest_agent::{GuestAgent, OnlineCpuMem};
use hypervisor::{Hypervisor, ResizeMemory, ResizeVcpus};
use sandbox_model::ledger::{Entry, HostObject, Journal, Scope, UndoItem, UndoReport, VmFate};
use sandbox_model::request::ResourceUpdate;
use sandbox_model::{ContainerId, Instant, PortError, PortResult};
use serde::Serialize;

use super::{Base, BaseIs, CpuError, ResizeFor, Share, Shares, Sized, UndoCpu};

/// Sizes one VM.
#[derive(Debug)]
pub struct CpuActor {
    clients: Clients,
    base: Option<Base>,
    shares: Shares,
    now: Sized,
}

#[derive(Debug, Clone)]
struct Clients {
    journal: Journal,
    vmm: Arc<dyn Hypervisor>,
    agent: Arc<dyn GuestAgent>,
}

/// What readers see.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CpuSnapshot {
    /// The containers' shares.
    pub shares: Shares,
    /// The VM's size.
    pub now: Sized,
}

impl CpuActor {
    /// An actor for a VM that has not started.
    pub fn new(journal: Journal, vmm: Arc<dyn Hypervisor>, agent: Arc<dyn GuestAgent>) -> Self {
        let clients = Clients { journal, vmm, agent };
        Self { clients, base: None, shares: Shares::default(), now: Sized::default() }
    }

    /// Takes over a VM of another life.
    pub(super) fn take_over(&mut self, base: Base, shares: Shares, now: Sized) {
        (self.base, self.shares, self.now) = (Some(base), shares, now);
    }

    fn planned(&self, request: &ResizeFor) -> Result<(Shares, Base), CpuError> {
        let base = self.base.clone().ok_or(CpuError::NotStarted)?;
        let container = &request.container;
        let has = self.shares.contains(container);
        let shares = match (request.update, has) {
            (ResourceUpdate::Add, true) => return Err(CpuError::Joined { container: container.clone() }),
            (ResourceUpdate::Update, false) => return Err(CpuError::NotJoined { container: container.clone() }),
            (ResourceUpdate::Add | ResourceUpdate::Update, _) => {
                self.shares.with(container, Share::from_resources(request.resources.as_ref())?)
            }
            (ResourceUpdate::Remove, _) => self.shares.without(container),
        };
        Ok((shares, base))
    }
}

impl Domain for CpuActor {
    type Snapshot = CpuSnapshot;

    fn publish(&mut self, snapshot: &mut CpuSnapshot) {
        snapshot.shares.clone_from(&self.shares);
        snapshot.now.clone_from(&self.now);
    }
}

impl Serve<BaseIs> for CpuActor {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, request: BaseIs, _: &Call) -> Plan<(), ()> {
        if self.base.is_none() {
            self.now.vcpus = self.shares.vcpus(&request.base);
            self.now.memory_mib = request.base.memory_mib;
        }
        self.base = Some(request.base);
        Plan::Answer(())
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) {}
}

/// A planned change of size.
#[derive(Debug)]
pub struct SizeTicket {
    container: ContainerId,
    shares: Shares,
    note_share: bool,
    wish: Wish,
}

/// What the VM is to become.
#[derive(Debug, Clone, Copy)]
struct Wish {
    vcpus: u32,
    memory_mib: u64,
    block_mib: u64,
}

impl Serve<ResizeFor> for CpuActor {
    type Ticket = SizeTicket;
    type Outcome = Result<Sized, CpuError>;

    fn plan(&mut self, request: ResizeFor, _: &Call) -> Plan<SizeTicket, Result<Sized, CpuError>> {
        let planned = self.planned(&request).and_then(|(shares, base)| {
            let wish = if base.is_static {
                Wish { vcpus: self.now.vcpus, memory_mib: self.now.memory_mib, block_mib: base.block_mib }
            } else {
                // A container that joins never takes away, one that leaves never adds.
                let (vcpus, memory_mib) = (shares.vcpus(&base), shares.memory_mib(&base)?);
                let bounded = |wish: u64, now: u64| match request.update {
                    ResourceUpdate::Add => wish.max(now),
                    ResourceUpdate::Update => wish,
                    ResourceUpdate::Remove => wish.min(now),
                };
                let vcpus = bounded(u64::from(vcpus), u64::from(self.now.vcpus));
                let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
                Wish { vcpus, memory_mib: bounded(memory_mib, self.now.memory_mib), block_mib: base.block_mib }
            };
            let note_share = request.update == ResourceUpdate::Add;
            Ok(SizeTicket { container: request.container, shares, note_share, wish })
        });
        match planned {
            Ok(ticket) => Plan::Perform(ticket),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, ticket: &mut SizeTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (clients, now, wish, deadline) = (self.clients.clone(), self.now.clone(), ticket.wish, call.deadline);
        let share = ticket.note_share.then(|| ticket.container.clone());
        Box::pin(async move {
            if let Some(container) = share {
                let scope = Scope::Container(container.clone());
                clients.journal.note(scope, HostObject::ResourceShare { container })?;
            }
            Ok(resize(&clients, &now, wish, deadline).await?)
        })
    }

    fn settle(&mut self, ticket: SizeTicket, done: Completion<Self::Outcome>) -> Result<Sized, CpuError> {
        match done {
            Completion::Finished(Ok(sized)) => {
                self.shares = ticket.shares;
                self.now = Sized { new_threads: None, ..sized.clone() };
                Ok(sized)
            }
            Completion::Finished(Err(error)) => Err(error),
            Completion::DeadlinePassed => Err(CpuError::DeadlinePassed),
            Completion::Interrupted => Err(CpuError::Interrupted),
        }
    }
}

/// Asks the VMM for the size, then the guest to use it (behaviour A11: also when nothing changed).
async fn resize(clients: &Clients, now: &Sized, wish: Wish, deadline: Instant) -> PortResult<Sized> {
    let mut sized = now.clone();
    if wish.vcpus != now.vcpus {
        let resized = clients.vmm.resize_vcpus(ResizeVcpus { target: wish.vcpus }, deadline).await?;
        if resized.vcpus != now.vcpus {
            sized.new_threads = Some(resized.vcpu_threads);
        }
        sized.vcpus = resized.vcpus;
    }
    if wish.memory_mib != now.memory_mib {
        let request = ResizeMemory { target_mib: wish.memory_mib, block_mib: wish.block_mib };
        sized.memory_mib = clients.vmm.resize_memory(request, deadline).await?.memory_mib;
    }
    let grew = sized.vcpus > now.vcpus || sized.memory_mib > now.memory_mib;
    let online = OnlineCpuMem { wait: grew, vcpus: sized.vcpus, cpu_only: false };
    clients.agent.online_cpu_mem(online, deadline).await?;
    Ok(sized)
}

impl Serve<UndoCpu> for CpuActor {
    type Ticket = Vec<Arc<Entry>>;
    type Outcome = (UndoReport, Option<Sized>);

    fn plan(&mut self, UndoCpu(undo): UndoCpu, _: &Call) -> Plan<Vec<Arc<Entry>>, UndoReport> {
        for entry in &undo.entries {
            if let HostObject::ResourceShare { container } = &entry.object {
                self.shares = self.shares.without(container);
            }
        }
        if undo.vm == VmFate::Gone {
            // What the VM had is gone with it: there is nothing to size.
            self.base = None;
        }
        Plan::Perform(undo.entries)
    }

    fn perform(&self, entries: &mut Vec<Arc<Entry>>, call: &Call) -> LocalFuture<Self::Outcome> {
        let (clients, entries, now, deadline) =
            (self.clients.clone(), entries.clone(), self.now.clone(), call.deadline);
        let target = self.base.as_ref().filter(|base| !base.is_static).and_then(|base| {
            let (vcpus, memory_mib) = (self.shares.vcpus(base), self.shares.memory_mib(base).ok()?);
            let (vcpus, memory_mib) = (vcpus.min(now.vcpus), memory_mib.min(now.memory_mib));
            Some(Wish { vcpus, memory_mib, block_mib: base.block_mib })
        });
        Box::pin(async move {
            let mut report = UndoReport::default();
            for entry in &entries {
                let result = clients.journal.unmake(entry, std::future::ready(check(entry))).await;
                report.items.push(UndoItem::of(entry, result));
            }
            let shrinks = target.filter(|wish| wish.vcpus < now.vcpus || wish.memory_mib < now.memory_mib);
            let sized = match shrinks {
                None => None,
                // The share is given back whether or not the VM can become smaller: the VMM says
                // what it has, and a guest that does not answer must not keep a clean-up from ending.
                Some(wish) => shrink(&clients, &now, wish, deadline).await.ok(),
            };
            (report, sized)
        })
    }

    fn settle(&mut self, _: Vec<Arc<Entry>>, done: Completion<Self::Outcome>) -> UndoReport {
        match done {
            Completion::Finished((report, sized)) => {
                if let Some(sized) = sized {
                    self.now = sized;
                }
                report
            }
            // What was not reported is still in the ledger.
            Completion::DeadlinePassed | Completion::Interrupted => UndoReport::default(),
        }
    }
}

async fn shrink(clients: &Clients, now: &Sized, wish: Wish, deadline: Instant) -> PortResult<Sized> {
    let mut sized = now.clone();
    if wish.vcpus < now.vcpus {
        sized.vcpus = clients.vmm.resize_vcpus(ResizeVcpus { target: wish.vcpus }, deadline).await?.vcpus;
    }
    if wish.memory_mib < now.memory_mib {
        let request = ResizeMemory { target_mib: wish.memory_mib, block_mib: wish.block_mib };
        sized.memory_mib = clients.vmm.resize_memory(request, deadline).await?.memory_mib;
    }
    Ok(sized)
}

fn check(entry: &Entry) -> PortResult<()> {
    match &entry.object {
        HostObject::ResourceShare { .. } => Ok(()),
        other => Err(PortError::new(
            sandbox_model::ErrorKind::Invalid,
            "undo",
            other.to_string(),
            "it is not the CPU actor's",
        )),
    }
}
