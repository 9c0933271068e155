//! `PlaceVm` and `PlaceVcpus`.

use std::rc::Rc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;

use super::{CgroupActor, Clients, PlacedVm, Up, settled};
use crate::cpuset::NumberList;
use crate::host::Place;
use crate::messages::{CgroupError, PlaceVcpus, PlaceVm};

type Done = Result<(), CgroupError>;

/// Threads on their way into the groups.
#[derive(Debug)]
pub struct PlaceTicket {
    up: Rc<Up>,
    vm: PlacedVm,
    /// The vCPU threads to move.
    threads: Vec<i32>,
    /// Whether the process itself is to be moved first.
    whole: bool,
    cpus: NumberList,
}

impl Serve<PlaceVm> for CgroupActor {
    type Ticket = PlaceTicket;
    type Outcome = Done;

    fn plan(&mut self, request: PlaceVm, _: &Call) -> Plan<PlaceTicket, Done> {
        let up = match self.up() {
            Ok(Some(up)) => up.clone(),
            Ok(None) => return Plan::Answer(Ok(())),
            Err(error) => return Plan::Answer(Err(error)),
        };
        if up.overhead.is_some() && request.vcpu_threads.is_empty() {
            let what = "the VMM has no vCPU threads to place; its cgroups need at least one".into();
            return Plan::Answer(Err(CgroupError::Invalid { what }));
        }
        let threads = request.vcpu_threads.clone();
        let vm = PlacedVm { process: request.process, vcpu_threads: request.vcpu_threads };
        Plan::Perform(PlaceTicket { up, vm, threads, whole: true, cpus: self.table.cpus() })
    }

    fn perform(&self, ticket: &mut PlaceTicket, call: &Call) -> LocalFuture<Done> {
        self.clients.clone().place(ticket, call.deadline)
    }

    fn settle(&mut self, ticket: PlaceTicket, done: Completion<Done>) -> Done {
        settled(done)?;
        self.vm = Some(ticket.vm);
        Ok(())
    }
}

impl Serve<PlaceVcpus> for CgroupActor {
    type Ticket = PlaceTicket;
    type Outcome = Done;

    fn plan(&mut self, request: PlaceVcpus, _: &Call) -> Plan<PlaceTicket, Done> {
        let up = match self.up() {
            Ok(Some(up)) => up.clone(),
            Ok(None) => return Plan::Answer(Ok(())),
            Err(error) => return Plan::Answer(Err(error)),
        };
        let Some(placed) = &self.vm else {
            return Plan::Answer(Err(CgroupError::Invalid { what: "the VMM has not been placed yet".into() }));
        };
        let threads =
            request.vcpu_threads.iter().copied().filter(|thread| !placed.vcpu_threads.contains(thread)).collect();
        let vm = PlacedVm { process: placed.process, vcpu_threads: request.vcpu_threads };
        Plan::Perform(PlaceTicket { up, vm, threads, whole: false, cpus: self.table.cpus() })
    }

    fn perform(&self, ticket: &mut PlaceTicket, call: &Call) -> LocalFuture<Done> {
        self.clients.clone().place(ticket, call.deadline)
    }

    fn settle(&mut self, ticket: PlaceTicket, done: Completion<Done>) -> Done {
        settled(done)?;
        self.vm = Some(ticket.vm);
        Ok(())
    }
}

impl Clients {
    /// All moves follow each other at once: the first waits for a grace period of the kernel (tens of
    /// milliseconds), those right after it do not.
    fn place(self, ticket: &PlaceTicket, deadline: Instant) -> LocalFuture<Done> {
        let (up, vm, cpus) = (ticket.up.clone(), ticket.vm.clone(), ticket.cpus.clone());
        let process = vm.process;
        let mut moves = Vec::new();
        if ticket.whole {
            let group = up.overhead.as_ref().unwrap_or(&up.sandbox).clone();
            moves.push(Place { process, threads: None, group });
        }
        // Without an overhead group new threads are born where they belong.
        if up.overhead.is_some() && !ticket.threads.is_empty() {
            moves.push(Place { process, threads: Some(ticket.threads.clone()), group: up.sandbox.clone() });
        }
        Box::pin(async move {
            for step in moves {
                self.host.place(step, deadline).await?;
            }
            self.pin(&up, Some(&vm), &cpus, deadline).await?;
            Ok(())
        })
    }
}
