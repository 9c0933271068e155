//! The simulated kernel's cgroups: one unified hierarchy whose directories are objects of a [`World`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cgroup_actor::host::{
    CgroupHost, CgroupMode, Group, GroupPath, MadeGroup, MakeGroup, PinThreads, Place, RemoveGroup, SetCpuset, Survey,
};
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};

use crate::World;

const CGROUP: &str = "cgroup";
const ROOT: &str = "/sys/fs/cgroup";

/// Cgroups that enforce nothing but exist.
#[derive(Debug)]
pub struct SimulatedCgroups {
    world: Arc<World>,
}

impl SimulatedCgroups {
    /// A kernel with an empty hierarchy.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    fn has_children(&self, directory: &Path) -> bool {
        let below = format!("{CGROUP} {}/", directory.display());
        self.world.list().iter().any(|object| object.starts_with(&below))
    }

    fn remove_one(&self, directory: &Path, identity: Option<u64>) -> PortResult<()> {
        let name = directory.display().to_string();
        match (self.world.identity(CGROUP, &name), identity) {
            (Some(found), Some(ours)) if found != ours => {
                Err(PortError::new(ErrorKind::Foreign, "rmdir", name, "simulated: another directory of that name"))
            }
            // A parent that other sandboxes use stays.
            (Some(_), _) if self.has_children(directory) => Ok(()),
            _ => self.world.remove("rmdir", CGROUP, &name),
        }
    }
}

#[async_trait]
impl CgroupHost for SimulatedCgroups {
    async fn systemd_runs(&self, (): (), _: Instant) -> PortResult<bool> {
        Ok(false)
    }

    async fn survey(&self, request: GroupPath, _: Instant) -> PortResult<Survey> {
        let directory = Path::new(ROOT).join(&request.path);
        let ancestors = directory.ancestors().take_while(|path| *path != Path::new(ROOT));
        let absent = |path: &&Path| self.world.identity(CGROUP, &path.display().to_string()).is_none();
        let mut missing: Vec<PathBuf> = ancestors.filter(absent).map(Path::to_owned).collect();
        missing.reverse();
        let group = Group {
            path: request.path,
            directories: vec![directory],
            mode: CgroupMode::V2,
            hierarchies: Live::absent(),
        };
        Ok(Survey { group, missing, not_enforced: Vec::new() })
    }

    async fn make_group(&self, request: MakeGroup, _: Instant) -> PortResult<MadeGroup> {
        let mut inodes = Vec::new();
        for directory in &request.missing {
            match self.world.make("mkdir", CGROUP, directory.display().to_string()) {
                Ok(inode) => inodes.push(inode),
                Err(error) if error.kind == ErrorKind::Exists && request.joint_parent => {
                    inodes.push(self.world.identity(CGROUP, &directory.display().to_string()).unwrap_or_default());
                }
                Err(error) => return Err(error.doubtful()),
            }
        }
        Ok(MadeGroup { inodes })
    }

    async fn remove_group(&self, request: RemoveGroup, _: Instant) -> PortResult<()> {
        let mut was_there = false;
        for (index, directory) in request.directories.iter().enumerate().rev() {
            let identity = request.inodes.as_ref().and_then(|inodes| inodes.get(index).copied());
            match self.remove_one(directory, identity) {
                Ok(()) => was_there = true,
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        if was_there {
            return Ok(());
        }
        let name = request.directories.first().map(|path| path.display().to_string()).unwrap_or_default();
        Err(PortError::new(ErrorKind::NotFound, "rmdir", name, "simulated: not there"))
    }

    async fn place(&self, request: Place, _: Instant) -> PortResult<()> {
        for directory in &request.group.directories {
            let name = directory.display().to_string();
            if self.world.identity(CGROUP, &name).is_none() {
                return Err(PortError::new(ErrorKind::NotFound, "write cgroup.procs", name, "simulated: not there"));
            }
        }
        Ok(())
    }

    async fn set_cpuset(&self, _: SetCpuset, _: Instant) -> PortResult<()> {
        Ok(())
    }

    async fn pin_threads(&self, _: PinThreads, _: Instant) -> PortResult<()> {
        Ok(())
    }
}
