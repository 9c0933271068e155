//! A VM that is paused, and the files around it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::{Hypervisor, StartedVm, StopVm, VmSpec};
use sandbox_model::config::Accelerator;
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, PciSlot, PlacedDevice};
use sandbox_model::{DeviceId, PortResult};
use tempfile::TempDir;

use crate::{Guard, client, id, in_seconds, opened, start};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Whether QEMU is here; where it must be, its absence is a failure.
pub(crate) fn has_qemu() -> bool {
    let found = Path::new(QEMU).exists();
    assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no {QEMU}");
    if !found {
        eprintln!("skipped: no {QEMU}");
    }
    found
}

/// One VM and the files around it.
pub(crate) struct Bench {
    pub(crate) vm: Arc<dyn Hypervisor>,
    pub(crate) dir: TempDir,
    pub(crate) tag: String,
    guard: RefCell<Guard>,
}

impl Bench {
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let vm = client(dir.path());
        Self { vm, dir, tag: format!("{name}-{}/1", std::process::id()), guard: RefCell::default() }
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// A VM whose kernel is a file of nonsense: enough for as long as it is paused.
    pub(crate) fn spec(&self) -> VmSpec {
        // QEMU looks into the header before anything runs: a multiboot-less, tiny bzImage.
        let mut kernel = vec![0_u8; 64 * 1024];
        kernel[0x1f1] = 1;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x206..0x208].copy_from_slice(&0x0203_u16.to_le_bytes());
        VmSpec {
            program: QEMU.into(),
            machine: "q35".into(),
            accelerator: Accelerator::Tcg,
            kernel: self.file("kernel", &kernel),
            initrd: None,
            kernel_params: "console=ttyS0".into(),
            vcpus: 1,
            vcpus_max: 3,
            memory_mib: 128,
            memory_max_mib: 1024,
            memory_slots: 4,
            shared_memory: true,
            bridges: 2,
        }
    }

    pub(crate) async fn start(&self, spec: VmSpec) -> PortResult<StartedVm> {
        let started = start(&*self.vm, spec, &self.tag).await?;
        self.guard.replace(Guard(started.process));
        Ok(started)
    }

    pub(crate) async fn stop(&self) {
        let exit = self.vm.stop_vm(StopVm { term_ms: 2000 }, in_seconds(20)).await.expect("it ends");
        assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", exit.last_words);
    }

    pub(crate) fn disk(&self, name: &str, bridge: u8, slot: u8) -> PlacedDevice {
        let path = self.file(&format!("{name}.img"), &[0; 64 * 1024]);
        let access = if slot.is_multiple_of(2) { Access::ReadOnly } else { Access::ReadWrite };
        let serial = Some(name.to_owned());
        let disk = opened(&path, access);
        let config = DeviceConfig::Block(BlockDevice { path, access, format: DiskFormat::Raw, direct: false, serial });
        PlacedDevice { id: id(name), slot: PciSlot { bridge, slot }, config, disk }
    }

    pub(crate) async fn add(&self, device: PlacedDevice) -> PortResult<String> {
        let added = self.vm.add_device(device, in_seconds(10)).await?;
        Ok(added.pci_path.expect("on PCI").0)
    }

    pub(crate) async fn devices(&self) -> Vec<DeviceId> {
        let present = self.vm.query_devices((), in_seconds(10)).await.expect("QEMU answers");
        let mut devices: Vec<_> = present.into_iter().map(|device| device.id).collect();
        devices.sort();
        devices
    }
}
