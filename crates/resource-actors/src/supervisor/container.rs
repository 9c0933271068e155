//! What a container gets and gives back (behaviour A2, A6, A7, A8, A11).

use std::rc::Rc;
use std::sync::Arc;

use actor_shell::Call;
use cgroup_actor::{PlaceVcpus, UpdateCpuset};
use device_actor::{AttachDevice, AttachOciDevices};
use oci_spec::runtime::Mount;
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat};
use sandbox_model::layout::{GUEST_SHARED_DIR, GUEST_STORAGE, PASSTHROUGH};
use sandbox_model::ledger::{Entry, HostObject, Scope, UndoReport, VmFate};
use sandbox_model::request::{
    AppliedResources, GuestDevices, GuestRootfs, GuestVolumes, ResourceUpdate, RootfsRequest, RootfsSource,
};
use sandbox_model::storage::{GuestMount, Storage};
use sandbox_model::{ContainerId, ErrorKind};
use sharefs_actor::{ShareRootfs, ShareVolume};

use super::crew::{Crew, StepError};
use super::{
    CpusetWish, Facts, OpenStep, ReleaseContainer, SetUpDevices, SetUpRootfs, SetUpVolumes, Step, StepKind, Stepped,
    UpdateLinuxResources,
};
use crate::cpu::ResizeFor;
use crate::error::Cause;
use crate::host::{InspectPath, PathKind};
use crate::planning::{VolumePlan, needs_source, plan_volume, resources_for_agent};

impl Step for SetUpRootfs {
    type Done = GuestRootfs;
    const KIND: StepKind = StepKind::Container;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<GuestRootfs> {
        Box::pin(async move {
            let Self(RootfsRequest { container, source, read_only }) = self;
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            Facts::add_container(&mut facts, &container);
            let rootfs = match source {
                RootfsSource::Directory { path } => {
                    crew.waits_for("SetUpRootfs", "the shared directory");
                    let request = ShareRootfs { container, source: path, access };
                    let shared = crew.share.ask("share the root file system", request, &call).await?;
                    GuestRootfs { path: shared.guest_path, storages: Vec::new() }
                }
                RootfsSource::Block { path, fstype, options } => {
                    crew.waits_for("SetUpRootfs", "the root disk");
                    let mount_point = format!("{GUEST_SHARED_DIR}{PASSTHROUGH}/{container}/rootfs");
                    let disk = crew.disk(path, access);
                    let source = crew.attach_disk("plug the root disk", disk, &container, &call).await?;
                    let storage = block_storage(source, fstype, options, mount_point.clone());
                    GuestRootfs { path: mount_point, storages: vec![storage] }
                }
            };
            Ok((rootfs, facts))
        })
    }
}

/// A disk that the agent finds by its PCI path and mounts.
fn block_storage(source: String, fstype: String, options: Vec<String>, mount_point: String) -> Storage {
    Storage { driver: "blk".to_owned(), source, fstype, options, mount_point, ..Storage::default() }
}

impl Crew {
    fn disk(&self, path: std::path::PathBuf, access: Access) -> BlockDevice {
        let direct = self.config.hypervisor.block_device_cache_direct;
        BlockDevice { path, access, format: DiskFormat::Raw, direct, serial: None }
    }

    /// Plugs a disk and returns where the guest finds it.
    async fn attach_disk(
        &self,
        doing: &str,
        disk: BlockDevice,
        container: &ContainerId,
        call: &Call,
    ) -> Result<String, StepError> {
        let holder = Scope::Container(container.clone());
        let request = AttachDevice { config: DeviceConfig::Block(disk), holder };
        let attached = self.device.ask(doing, request, call).await?;
        let path = attached.pci_path.ok_or_else(|| {
            let what = format!("the VMM gave device {} no PCI path, so the guest cannot find it", attached.device);
            StepError::own(doing, Cause::Invalid { what })
        })?;
        Ok(path.to_string())
    }

    /// Plans one mount and makes what it needs.
    async fn set_up_volume(
        &self,
        mount: &Mount,
        container: &ContainerId,
        call: &Call,
    ) -> Result<(GuestMount, Option<Storage>), StepError> {
        let destination = mount.destination().display().to_string();
        let doing = format!("set up the volume at {destination}");
        self.waits_for("SetUpVolumes", &doing);
        let source = self.kind_of_source(mount, &doing, call).await?;
        let plan = plan_volume(mount, source);
        match plan.map_err(|what| StepError::own(doing.clone(), Cause::Invalid { what }))? {
            VolumePlan::Guest { mount, storage } => Ok((mount, storage)),
            VolumePlan::Share { source, access, mount } => {
                let request = ShareVolume { container: container.clone(), source, destination, access };
                let shared = self.share.ask(&doing, request, call).await?;
                Ok((GuestMount { source: shared.guest_path, ..mount }, None))
            }
            VolumePlan::Block { source, access, mount } => {
                let disk = self.disk(source, access);
                let address = self.attach_disk(&doing, disk, container, call).await?;
                // The address is unique in the VM for as long as the disk is plugged.
                let mount_point = format!("{GUEST_STORAGE}/{}", address.replace('/', "-"));
                let read_only = (access == Access::ReadOnly).then(|| "ro".to_owned());
                let options = read_only.into_iter().collect();
                let storage = block_storage(address, "ext4".to_owned(), options, mount_point.clone());
                Ok((GuestMount { source: mount_point, ..mount }, Some(storage)))
            }
        }
    }

    async fn kind_of_source(&self, mount: &Mount, doing: &str, call: &Call) -> Result<Option<PathKind>, StepError> {
        let Some(path) = needs_source(mount) else { return Ok(None) };
        match self.facts.inspect(InspectPath { path }, call.deadline).await {
            Ok(kind) => Ok(Some(kind)),
            // The plan has a better word for it.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StepError::own(doing, error)),
        }
    }
}

impl Step for SetUpVolumes {
    type Done = GuestVolumes;
    const KIND: StepKind = StepKind::Container;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<GuestVolumes> {
        Box::pin(async move {
            Facts::add_container(&mut facts, &self.0.container);
            let mut volumes = GuestVolumes::default();
            for mount in &self.0.mounts {
                let (mount, storage) = crew.set_up_volume(mount, &self.0.container, &call).await?;
                volumes.mounts.push(mount);
                volumes.storages.extend(storage);
            }
            Ok((volumes, facts))
        })
    }
}

impl Step for SetUpDevices {
    type Done = GuestDevices;
    const KIND: StepKind = StepKind::Container;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<GuestDevices> {
        Box::pin(async move {
            Facts::add_container(&mut facts, &self.0.container);
            crew.waits_for("SetUpDevices", "its devices");
            let request = AttachOciDevices {
                container: self.0.container,
                devices: self.0.devices,
                resources: self.0.resources,
                vfio_mode: crew.config.runtime.vfio_mode,
                direct: crew.config.hypervisor.block_device_cache_direct,
            };
            let devices = crew.device.ask("plug the container's devices", request, &call).await?;
            Ok((GuestDevices { devices }, facts))
        })
    }
}

impl Step for UpdateLinuxResources {
    type Done = AppliedResources;
    const KIND: StepKind = StepKind::Container;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<AppliedResources> {
        Box::pin(async move {
            let (container, update) = (self.0.container.clone(), self.0.update);
            if update != ResourceUpdate::Remove {
                Facts::add_container(&mut facts, &container);
            }
            crew.waits_for("UpdateLinuxResources", "the cpuset and the VM's size");
            let CpusetWish { cpus, mems } = CpusetWish::of(self.0.resources.as_ref());
            let cpuset = UpdateCpuset { container: container.clone(), cpus, mems, update };
            let resize = ResizeFor { container, resources: self.0.resources.clone(), update };
            let (cpuset, sized) = futures::join!(
                crew.cgroup.ask("change the cpuset", cpuset, &call),
                crew.cpu.ask("size the VM", resize, &call),
            );
            cpuset?;
            let sized = sized?;
            if let Some(vcpu_threads) = sized.new_threads {
                let request = PlaceVcpus { vcpu_threads };
                crew.cgroup.ask("move new vCPUs into the cgroup", request, &call).await?;
            }
            Arc::make_mut(&mut facts).limit(&self.0).map_err(|error| StepError::own("note the limits", error))?;
            let for_agent = self.0.resources.as_ref().map(resources_for_agent);
            Ok((AppliedResources { vcpus: sized.vcpus, memory_mib: sized.memory_mib, for_agent }, facts))
        })
    }
}

/// Whether a device or binding was let go of by its last holder and could not be taken away: nobody
/// else will ask for it before the sandbox ends.
fn is_left_over(entry: &Entry, live: &[Arc<Entry>]) -> bool {
    let name = match &entry.object {
        HostObject::VmDevice { device, .. } => device.as_str(),
        HostObject::VfioBinding { bdf, .. } => bdf.as_str(),
        _ => return false,
    };
    let is_hold = |other: &Entry| matches!(&other.object, HostObject::Hold { object } if object == name);
    !live.iter().any(|other| is_hold(other))
}

impl Step for ReleaseContainer {
    type Done = UndoReport;
    const KIND: StepKind = StepKind::ReleaseContainer;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, _: Call) -> Stepped<UndoReport> {
        Box::pin(async move {
            crew.waits_for("ReleaseContainer", &format!("what {} holds", self.container));
            let kept = crew.keep_open(OpenStep::Release(self.container.clone()), &facts);
            kept.map_err(|error| StepError::own("keep that the release has begun", error))?;
            let scope = Scope::Container(self.container.clone());
            let live = crew.ledger.live();
            let held =
                live.iter().filter(|entry| entry.scope == scope || is_left_over(entry, &live)).cloned().collect();
            let fate = if facts.vm.is_some() { VmFate::Alive } else { VmFate::Gone };
            let report = crew.undo_in_order(held, fate).await;
            if report.is_clean() {
                Arc::make_mut(&mut facts).remove_container(&self.container);
            }
            Ok((report, facts))
        })
    }
}
