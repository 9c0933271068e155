//! The simulated host that lives are lived on, and what is a stranger's on it.

use resource_actors::host::PathKind;
use simulation::fault::FaultPlan;
use simulation::{SimulatedHost, pod_view};

use crate::lifecycles::{Setting, Vfio};
use crate::simulated::config;

/// The pod's namespace.
const POD: &str = "/run/netns/pod";
/// The disk that is a volume's source.
const VOLUME_DISK: &str = "/dev/simulated/volume";

/// Things of others, beside and below what is ours: no clean-up may touch them.
const STRANGERS: [(&str, &str); 7] = [
    ("process", "other/1"),
    ("process", "virtiofsd lifeless/1"),
    ("vm-device", "other/blk-0"),
    ("directory", "/run/simulated/other"),
    ("mount", "/srv/volumes/common"),
    ("cgroup", "/sys/fs/cgroup/simulated/other"),
    ("vfio-binding", "0000:7f:00.0"),
];

/// What lives need of the simulated host.
pub fn setting() -> Setting {
    Setting {
        config: config(),
        cgroups_path: None,
        pod: POD.into(),
        images: "/srv/images".into(),
        volumes: "/srv/volumes".into(),
        root_disk: "/srv/images/root.disk".into(),
        volume_disk: VOLUME_DISK.into(),
        node: Some((8, 16)),
        vfio: Some(Vfio { cold: "0000:20:00.0".into(), hot_group: 0x80 }),
    }
}

/// A host with a pod's namespace and strangers' objects.
///
/// # Panics
/// Never: the world is empty before.
pub fn ground(plan: FaultPlan) -> SimulatedHost {
    let view = pod_view(&["veth", "macvlan", "vlan"]);
    let mut host = SimulatedHost::with_pod(plan, POD, view).expect("the world is empty");
    host.give_vmms_a_socket();
    host.set_kind(VOLUME_DISK, Some(PathKind::BlockDevice));
    for (kind, name) in STRANGERS {
        host.world.make("somebody else makes", kind, name).expect("the names differ");
    }
    host
}
