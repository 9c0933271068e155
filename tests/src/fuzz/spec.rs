//! Z1: an OCI specification becomes a plan.

use std::collections::BTreeMap;

use cgroup_actor::cpuset::Share as CpusetShare;
use oci_spec::runtime::Spec;
use resource_actors::cpu::{Base, Share, Shares};
use resource_actors::host::PathKind;
use resource_actors::planning::{VolumePlan, plan_volume, resources_for_agent};
use sandbox_model::ContainerId;
use sandbox_model::config::sizing::Demand;

/// What a volume's source may turn out to be.
const KINDS: [Option<PathKind>; 5] =
    [None, Some(PathKind::Directory), Some(PathKind::File), Some(PathKind::BlockDevice), Some(PathKind::Other)];

/// Any specification is refused or planned; what is planned stays within the VM's limits and names
/// nothing that it did not say.
///
/// # Panics
/// When that does not hold.
pub fn z1_spec(bytes: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else { return };
    for mount in spec.mounts().iter().flatten() {
        for kind in KINDS {
            let said = mount.source().clone().unwrap_or_default();
            match plan_volume(mount, kind) {
                Ok(VolumePlan::Share { source, .. }) => {
                    assert!(source == said && matches!(kind, Some(PathKind::Directory | PathKind::File)));
                }
                Ok(VolumePlan::Block { source, .. }) => {
                    assert!(source == said && kind == Some(PathKind::BlockDevice));
                }
                Ok(VolumePlan::Guest { mount, .. }) => assert!(mount.destination.starts_with('/')),
                Err(text) => assert!(!text.is_empty()),
            }
        }
    }
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        let told = resources_for_agent(resources);
        let cpu = told.cpu().as_ref();
        assert!(cpu.is_none_or(|cpu| cpu.cpus().is_none() && cpu.mems().is_none()), "the host's CPUs are not told");
        let wished = resources.cpu().as_ref();
        let (cpus, mems) = (wished.and_then(|cpu| cpu.cpus().as_deref()), wished.and_then(|cpu| cpu.mems().as_deref()));
        if let Ok(share) = CpusetShare::parse(cpus, mems) {
            assert_eq!(share, share.clone());
        }
    }
    let annotations: BTreeMap<_, _> =
        spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Ok(demand) = Demand::new(resources, &annotations) {
        assert!(demand.vcpus().is_finite() && demand.vcpus() >= 0.0, "{}", demand.vcpus());
    }
    let base =
        Base { vcpus: 1.0, vcpus_max: 8, memory_mib: 2048, memory_max_mib: 16_384, block_mib: 128, is_static: false };
    let Ok(share) = Share::from_resources(resources) else { return };
    let container = ContainerId::new("c").expect("a literal id");
    let with = Shares::default().with(&container, share);
    let vcpus = with.vcpus(&base);
    assert!((1..=8).contains(&vcpus), "{vcpus} vCPUs");
    if let Ok(memory) = with.memory_mib(&base) {
        assert!((2048..=16_384).contains(&memory), "{memory} MiB");
    }
    let without = with.without(&container);
    assert_eq!((without.vcpus(&base), without.memory_mib(&base).ok()), (1, Some(2048)), "who left counts for nothing");
}
