//! What is decided before anything is done: the VM's shape, the kind of each volume, what the
//! agent is told. Plain functions on plain data.

mod vm;
mod volume;

pub use vm::{vm_base, vm_spec};
pub(crate) use volume::needs_source;
pub use volume::{VolumePlan, plan_volume};

use oci_spec::runtime::{LinuxResources, Mount};
use sandbox_model::layout::{GUEST_SHARED_DIR, GUEST_SHM, SHARE_TAG};
use sandbox_model::storage::{GuestMount, Storage};

/// The storages of the sandbox itself (behaviour A3).
pub fn sandbox_storages(has_share: bool, shm_bytes: u64) -> Vec<Storage> {
    let text = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let share = Storage {
        driver: "virtio-fs".to_owned(),
        source: SHARE_TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        options: text(&["nodev"]),
        mount_point: GUEST_SHARED_DIR.to_owned(),
        ..Storage::default()
    };
    let mut options = text(&["noexec", "nosuid", "nodev", "mode=1777"]);
    options.push(format!("size={shm_bytes}"));
    let shm = Storage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options,
        mount_point: GUEST_SHM.to_owned(),
        ..Storage::default()
    };
    has_share.then_some(share).into_iter().chain([shm]).collect()
}

/// A container's limits as the guest can apply them: the host's CPU and node numbers, devices and
/// device weights mean nothing there (behaviour A2 step 7).
pub fn resources_for_agent(resources: &LinuxResources) -> LinuxResources {
    let mut for_agent = resources.clone();
    if let Some(cpu) = for_agent.cpu_mut() {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    for_agent.set_devices(None).set_pids(None).set_block_io(None).set_network(None);
    for_agent
}

/// An OCI mount as it stands in the spec.
pub fn mount_as_is(mount: &Mount) -> GuestMount {
    GuestMount {
        destination: mount.destination().display().to_string(),
        kind: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_ref().map(|source| source.display().to_string()).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

    #[test]
    fn the_sandbox_mounts_its_share_first_and_always_has_shm() {
        let storages = sandbox_storages(true, 1024);
        assert_eq!(storages[0].mount_point, "/run/kata-containers/shared/containers/");
        assert_eq!(storages[1].options.last().unwrap(), "size=1024");
        assert_eq!(sandbox_storages(false, 1).len(), 1);
    }

    #[test]
    fn the_agent_is_not_told_the_hosts_numbers() {
        let cpu = LinuxCpuBuilder::default().cpus("0-3").mems("0").shares(512u64).build().unwrap();
        let pids = LinuxPidsBuilder::default().limit(5).build().unwrap();
        let resources = LinuxResourcesBuilder::default().cpu(cpu).pids(pids).build().unwrap();
        let for_agent = resources_for_agent(&resources);
        let cpu = for_agent.cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.mems(), cpu.shares()), (&None, &None, Some(512)));
        assert!(for_agent.pids().is_none() && for_agent.devices().is_none());
    }
}
