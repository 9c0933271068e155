//! The simulated host of the cgroup actor: groups are objects of the world.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cgroup_actor::host::{
    CgroupHost, CgroupMode, Group, GroupPath, MadeGroup, MakeGroup, PinThreads, Place, RemoveGroup, SetCpuset, Survey,
};
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};

use crate::World;

/// The kind of object in the world.
const CGROUP: &str = "cgroup";
/// Where the one hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup/simulated";

/// One v1 hierarchy whose groups exist only while a sandbox has them. Parents are not kept: what is
/// shared by sandboxes is not an object of one.
#[derive(Debug, Clone)]
pub struct SimulatedCgroupHost {
    world: Arc<World>,
    is_writable: bool,
}

impl SimulatedCgroupHost {
    /// A host where we may make groups.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, is_writable: true }
    }

    /// A host where we may not, as an unprivileged user.
    pub fn read_only(world: Arc<World>) -> Self {
        Self { world, is_writable: false }
    }

    fn exists(&self, operation: &str, group: &Group) -> PortResult<()> {
        for directory in &group.directories {
            let name = directory.to_string_lossy();
            if self.world.identity(CGROUP, &name).is_none() {
                return Err(PortError::new(ErrorKind::NotFound, operation, name, "simulated: no such group"));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl CgroupHost for SimulatedCgroupHost {
    async fn systemd_runs(&self, (): (), _: Instant) -> PortResult<bool> {
        Ok(false)
    }

    async fn survey(&self, request: GroupPath, _: Instant) -> PortResult<Survey> {
        let leaf = PathBuf::from(ROOT).join(&request.path);
        let mut survey = Survey::default();
        if !self.is_writable {
            survey.not_enforced.push(format!("simulated: {ROOT} is not writable"));
            return Ok(survey);
        }
        // Below a joint parent the names are ours: a group that is there already makes the making fail.
        if request.joint_parent || self.world.identity(CGROUP, &leaf.to_string_lossy()).is_none() {
            survey.missing.push(leaf.clone());
        }
        survey.inodes.push(self.world.identity(CGROUP, &leaf.to_string_lossy()));
        let (directories, hierarchies) = (vec![leaf], Live::absent());
        survey.group = Group { path: request.path, directories, mode: CgroupMode::V1, hierarchies };
        Ok(survey)
    }

    async fn make_group(&self, request: MakeGroup, _: Instant) -> PortResult<MadeGroup> {
        let make = |path: &PathBuf| self.world.make("mkdir", CGROUP, path.to_string_lossy().into_owned());
        Ok(MadeGroup { inodes: request.missing.iter().map(make).collect::<PortResult<_>>()? })
    }

    async fn remove_group(&self, request: RemoveGroup, _: Instant) -> PortResult<()> {
        let mut was_there = false;
        for (n, path) in request.directories.iter().enumerate().rev() {
            let name = path.to_string_lossy().into_owned();
            let Some(found) = self.world.identity(CGROUP, &name) else { continue };
            if request.inodes.as_ref().and_then(|inodes| inodes.get(n)).is_some_and(|inode| *inode != found) {
                let cause = "simulated: it is not the group that was made here";
                return Err(PortError::new(ErrorKind::Foreign, "rmdir", name, cause));
            }
            self.world.remove("rmdir", CGROUP, &name)?;
            was_there = true;
        }
        if was_there {
            return Ok(());
        }
        Err(PortError::new(ErrorKind::NotFound, "remove", "cgroup", "simulated: all its directories are gone"))
    }

    async fn place(&self, request: Place, _: Instant) -> PortResult<()> {
        self.exists("place in cgroup", &request.group)
    }

    async fn set_cpuset(&self, request: SetCpuset, _: Instant) -> PortResult<()> {
        self.exists("set cpuset", &request.group)
    }

    async fn pin_threads(&self, _: PinThreads, _: Instant) -> PortResult<()> {
        Ok(())
    }
}
