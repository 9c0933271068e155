//! `CreateCgroups`.

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;
use sandbox_model::ledger::{Entry, HostObject, Identity, Scope};
use sandbox_model::lifecycle::ActorName;

use super::{CgroupActor, Clients, Groups, Up, settled};
use crate::host::{CgroupMode, Group, GroupPath, MakeGroup};
use crate::messages::{CgroupError, CgroupsAreUp, CreateCgroups};
use crate::path;

impl Serve<CreateCgroups> for CgroupActor {
    type Ticket = CreateCgroups;
    type Outcome = Result<(Groups, Vec<String>), CgroupError>;

    fn plan(&mut self, request: CreateCgroups, _: &Call) -> Plan<CreateCgroups, Result<CgroupsAreUp, CgroupError>> {
        // Groups that others made have no entry and outlive an undo: taking them again changes nothing.
        match self.groups {
            Groups::Up(_) if self.clients.has_groups() => Plan::Answer(Err(CgroupError::AlreadyUp)),
            Groups::None | Groups::NotEnforced | Groups::Up(_) => Plan::Perform(request),
        }
    }

    fn perform(&self, request: &mut CreateCgroups, call: &Call) -> LocalFuture<Self::Outcome> {
        let (clients, request, deadline) = (self.clients.clone(), request.clone(), call.deadline);
        Box::pin(async move { clients.create(request, deadline).await })
    }

    fn settle(&mut self, _: CreateCgroups, done: Completion<Self::Outcome>) -> Result<CgroupsAreUp, CgroupError> {
        let (groups, not_enforced) = settled(done)?;
        let mut answer = CgroupsAreUp { not_enforced, ..CgroupsAreUp::default() };
        if let Groups::Up(up) = &groups {
            answer.sandbox.clone_from(&up.sandbox.directories);
            answer.overhead = up.overhead.iter().flat_map(|group| group.directories.clone()).collect();
        }
        self.groups = groups;
        Ok(answer)
    }
}

impl Clients {
    /// Whether there are groups that we made.
    fn has_groups(&self) -> bool {
        let is_group = |entry: &Entry| matches!(entry.object, HostObject::Cgroup { .. });
        self.journal.ledger().any(&|entry| entry.actor == ActorName::Cgroup && is_group(entry))
    }

    async fn create(&self, request: CreateCgroups, deadline: Instant) -> Result<(Groups, Vec<String>), CgroupError> {
        let systemd_runs = match &request.path {
            Some(path) if path.contains(':') => self.host.systemd_runs((), deadline).await?,
            _ => false,
        };
        let wished = path::sandbox(request.path.as_deref(), &self.sandbox, systemd_runs)
            .map_err(|what| CgroupError::Invalid { what })?;
        let (sandbox, mut not_enforced) = self.make(wished, deadline).await?;
        let Some(sandbox) = sandbox else { return Ok((Groups::NotEnforced, not_enforced)) };
        let overhead = match sandbox.mode {
            _ if request.sandbox_only => None,
            // Threads of one process cannot be told apart there.
            CgroupMode::V2 => {
                not_enforced.push("cgroup v2 holds whole processes: the VMM's overhead counts as the sandbox's".into());
                None
            }
            CgroupMode::V1 => self.make(path::overhead(&self.sandbox), deadline).await?.0,
        };
        let up = Up { sandbox, overhead, pin_vcpus: request.pin_vcpus };
        Ok((Groups::Up(up.into()), not_enforced))
    }

    /// Makes one group; `None` if this host enforces nothing.
    async fn make(&self, path: GroupPath, deadline: Instant) -> Result<(Option<Group>, Vec<String>), CgroupError> {
        let joint_parent = path.joint_parent;
        let survey = self.host.survey(path, deadline).await?;
        let group = survey.group;
        if group.directories.is_empty() {
            return Ok((None, survey.not_enforced));
        }
        if !survey.missing.is_empty() {
            let object = HostObject::Cgroup { paths: survey.missing.clone() };
            let make = MakeGroup { group: group.clone(), missing: survey.missing, joint_parent };
            let made = self.journal.make(Scope::Sandbox, object, |_| async {
                let made = self.host.make_group(make, deadline).await?;
                Ok(((), Identity::Inodes { inodes: made.inodes }))
            });
            made.await?;
        }
        Ok((Some(group), survey.not_enforced))
    }
}
