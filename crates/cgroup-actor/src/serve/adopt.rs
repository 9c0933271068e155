//! `AdoptCgroups`: the groups of a VM that an earlier process has left running.

use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, HostObject};
use sandbox_model::{Instant, PortResult};

use super::cpuset::Change;
use super::{CgroupActor, Clients, Groups, PlacedVm, Up};
use crate::cpuset::CpusetTable;
use crate::host::{CgroupMode, Place, Survey};
use crate::messages::{AdoptCgroups, CreateCgroups};
use crate::{path, rebuild};

impl Serve<AdoptCgroups> for CgroupActor {
    type Ticket = (AdoptCgroups, CpusetTable);
    type Outcome = Result<(Groups, usize), AdoptError>;

    fn plan(&mut self, request: AdoptCgroups, _: &Call) -> Plan<Self::Ticket, Result<Confirmed, AdoptError>> {
        match rebuild::table(&request.entries, &request.cpusets) {
            Ok(table) => Plan::Perform((request, table)),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, (request, table): &mut Self::Ticket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (clients, request, table) = (self.clients.clone(), request.clone(), table.clone());
        let deadline = call.deadline;
        Box::pin(async move {
            let (groups, objects) = clients.find(&request.entries, &request.groups, deadline).await?;
            if let Groups::Up(up) = &groups {
                clients.settle_in(up, &request, table, deadline).await?;
            }
            Ok((groups, objects))
        })
    }

    fn settle(&mut self, ticket: Self::Ticket, done: Completion<Self::Outcome>) -> Result<Confirmed, AdoptError> {
        let (groups, objects) = match done {
            Completion::Finished(result) => result?,
            Completion::DeadlinePassed => return Err(AdoptError::DeadlinePassed),
            Completion::Interrupted => return Err(AdoptError::Interrupted),
        };
        let (request, table) = ticket;
        self.written = Some(table.cpuset());
        self.table = table;
        self.vm = matches!(groups, Groups::Up(_)).then(|| placed(&request)).flatten();
        self.groups = groups;
        Ok(Confirmed { objects, orphans: Vec::new() })
    }
}

fn placed(request: &AdoptCgroups) -> Option<PlacedVm> {
    let vm = request.vm.as_ref()?;
    Some(PlacedVm { process: vm.process, vcpu_threads: vm.vcpu_threads.clone() })
}

impl Clients {
    /// The groups as they would be made, if what was made is still there.
    async fn find(
        &self,
        entries: &[Arc<Entry>],
        wish: &CreateCgroups,
        deadline: Instant,
    ) -> Result<(Groups, usize), AdoptError> {
        let wished = path::sandbox(wish.path.as_deref(), &self.sandbox, false);
        let wished = wished.map_err(|what| AdoptError::Contradiction { what })?;
        let sandbox = self.host.survey(wished, deadline).await?;
        if sandbox.group.directories.is_empty() {
            return Ok((Groups::NotEnforced, rebuild::confirm(entries, &[])?));
        }
        let overhead = if wish.sandbox_only || sandbox.group.mode == CgroupMode::V2 {
            Survey::default()
        } else {
            self.host.survey(path::overhead(&self.sandbox), deadline).await?
        };
        let confirmed = rebuild::confirm(entries, &[&sandbox, &overhead])?;
        let overhead = Some(overhead.group).filter(|group| !group.directories.is_empty());
        let up = Up { sandbox: sandbox.group, overhead, pin_vcpus: wish.pin_vcpus };
        Ok((Groups::Up(up.into()), confirmed))
    }

    /// Puts vCPUs and cpuset where they belong: whether the last message before the restart came to
    /// that, nobody knows.
    async fn settle_in(
        &self,
        up: &Up,
        request: &AdoptCgroups,
        table: CpusetTable,
        deadline: Instant,
    ) -> PortResult<()> {
        let vm = placed(request);
        if let Some(vm) = vm.as_ref().filter(|vm| up.overhead.is_some() && !vm.vcpu_threads.is_empty()) {
            let threads = Some(vm.vcpu_threads.clone());
            let place = Place { process: vm.process, threads, group: up.sandbox.clone() };
            self.host.place(place, deadline).await?;
        }
        let has_shares = request.entries.iter().any(|entry| matches!(entry.object, HostObject::ResourceShare { .. }));
        if !has_shares {
            return Ok(());
        }
        let change = Change { up: up.clone().into(), vm, before: table.clone(), after: table, written: None };
        self.apply(&change, deadline).await
    }
}
