//! The ports of each mode: what is real and what is simulated.

use std::sync::Arc;

use cgroup_actor::LinuxCgroupHost;
use cgroup_actor::host::CgroupHost;
use device_actor::LinuxDeviceHost;
use guest_agent::KataAgentFactory;
use hypervisor::QemuFactory;
use network_actor::LinuxNetworkHost;
use resource_actors::Ports;
use sharefs_actor::LinuxShareFsHost;
use simulation::{
    RealMountsSimulatedDaemon, SimulatedAgentFactory, SimulatedCgroupHost, SimulatedDeviceHost, SimulatedVmmFactory,
    World,
};

use crate::mode::{HostMode, Mode, VmmMode};

/// The ports, and what a reader must know of them.
pub(crate) fn ports(mode: Mode, cgroups_are_ours: bool) -> (Ports, Option<&'static str>) {
    let world = Arc::new(World::new());
    // A simulated VMM is no process that a cgroup could hold, and a normal user has no cgroups.
    let enforced = mode.vmm == VmmMode::Qemu && cgroups_are_ours;
    let cgroup: Arc<dyn CgroupHost> =
        if enforced { Arc::new(LinuxCgroupHost::new()) } else { Arc::new(SimulatedCgroupHost::new(world.clone())) };
    let note = (!enforced && mode.host == HostMode::Private).then_some("limits by cgroups are simulated, not enforced");
    let network = Arc::new(LinuxNetworkHost::new());
    let ports = match mode.vmm {
        VmmMode::Qemu => Ports {
            vmm: Arc::new(QemuFactory::default()),
            agent: Arc::new(KataAgentFactory),
            network,
            share: Arc::new(LinuxShareFsHost),
            cgroup,
            device: Arc::new(LinuxDeviceHost::new()),
        },
        VmmMode::Simulated => Ports {
            vmm: Arc::new(SimulatedVmmFactory::new(world.clone())),
            agent: Arc::new(SimulatedAgentFactory::new(world.clone())),
            network,
            share: Arc::new(RealMountsSimulatedDaemon::new(Arc::new(LinuxShareFsHost), world.clone())),
            cgroup,
            device: Arc::new(SimulatedDeviceHost::new(world)),
        },
    };
    (ports, note)
}

/// The real ports, to undo what an earlier process left on this host.
pub(crate) fn real() -> Ports {
    ports(Mode { vmm: VmmMode::Qemu, host: HostMode::Real }, true).0
}
