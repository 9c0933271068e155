//! All simulated ports together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use resource_actors::Ports;
use resource_actors::host::{HostFacts, HostSize, InspectPath, PathKind};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult};

use crate::{
    SimulatedAgentFactory, SimulatedCgroupHost, SimulatedDeviceHost, SimulatedNetwork, SimulatedShareFs,
    SimulatedVmmFactory, World,
};

/// Ports onto a simulated world.
pub fn simulated_ports(world: &Arc<World>) -> Ports {
    Ports {
        vmm: Arc::new(SimulatedVmmFactory::new(world.clone())),
        agent: Arc::new(SimulatedAgentFactory::new(world.clone())),
        network: Arc::new(SimulatedNetwork::new(world.clone())),
        share: Arc::new(SimulatedShareFs::new(world.clone())),
        cgroup: Arc::new(SimulatedCgroupHost::new(world.clone())),
        device: Arc::new(SimulatedDeviceHost::new(world.clone())),
    }
}

/// A host of a fixed size, on which every path is a directory unless it is said to be otherwise.
#[derive(Debug, Clone, Default)]
pub struct SimulatedFacts {
    /// Paths that are no directories; `None` is not there.
    pub kinds: BTreeMap<PathBuf, Option<PathKind>>,
}

#[async_trait]
impl HostFacts for SimulatedFacts {
    async fn inspect(&self, request: InspectPath, _: Instant) -> PortResult<PathKind> {
        match self.kinds.get(&request.path) {
            None => Ok(PathKind::Directory),
            Some(Some(kind)) => Ok(*kind),
            Some(None) => {
                let path = request.path.display().to_string();
                Err(PortError::new(ErrorKind::NotFound, "stat", path, "simulated: not there"))
            }
        }
    }

    async fn size(&self, (): (), _: Instant) -> PortResult<HostSize> {
        Ok(HostSize { cpus: 8, memory_mib: 16_384 })
    }
}
