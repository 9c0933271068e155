//! Which devices of a container's spec a guest can have (behaviour A8).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxResources};
use sandbox_model::device::Access;

use crate::host::VfioName;

/// Where VFIO's character devices live.
const VFIO_DIR: &str = "/dev/vfio";

/// A device of the spec that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OciDevice {
    /// A disk.
    Block {
        /// Its path in the container.
        path: PathBuf,
        /// Major number on the host.
        major: u32,
        /// Minor number on the host.
        minor: u32,
        /// Whether the container may write.
        access: Access,
    },
    /// PCI functions of the host.
    Vfio {
        /// Its path in the container.
        path: PathBuf,
        /// Which functions.
        name: VfioName,
    },
}

/// The devices that the guest gets, in the order of the spec. Others are the guest's own business.
///
/// # Errors
/// A text that says which device is wrong and why.
pub(crate) fn wanted(devices: &[LinuxDevice], resources: Option<&LinuxResources>) -> Result<Vec<OciDevice>, String> {
    devices.iter().filter_map(|device| one(device, resources).transpose()).collect()
}

fn one(device: &LinuxDevice, resources: Option<&LinuxResources>) -> Result<Option<OciDevice>, String> {
    let path = device.path().clone();
    match device.typ() {
        LinuxDeviceType::B => {
            let number = |number: i64| {
                u32::try_from(number).map_err(|_| format!("{}: {number} is no device number", path.display()))
            };
            let (major, minor) = (number(device.major())?, number(device.minor())?);
            let access = access(device, resources);
            Ok(Some(OciDevice::Block { path, major, minor, access }))
        }
        LinuxDeviceType::C => {
            let name = vfio_name(&path)?;
            Ok(name.map(|name| OciDevice::Vfio { path, name }))
        }
        _ => Ok(None),
    }
}

/// Read-only if rules for exactly this device exist and none of them allows writing.
fn access(device: &LinuxDevice, resources: Option<&LinuxResources>) -> Access {
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let mut exact = rules
        .iter()
        .filter(|rule| {
            rule.allow()
                && rule.typ() == Some(device.typ())
                && rule.major() == Some(device.major())
                && rule.minor() == Some(device.minor())
        })
        .peekable();
    let is_ruled = exact.peek().is_some();
    // A rule that names no access means all of it.
    let may_write = exact.any(|rule| rule.access().as_ref().is_none_or(|access| access.contains('w')));
    if is_ruled && !may_write { Access::ReadOnly } else { Access::ReadWrite }
}

/// The functions behind a character device; `None` if it is none of VFIO's, or VFIO's container.
fn vfio_name(path: &Path) -> Result<Option<VfioName>, String> {
    let Ok(below) = path.strip_prefix(VFIO_DIR) else {
        return Ok(None);
    };
    let text = below.to_str().unwrap_or_default();
    if text == "vfio" {
        return Ok(None);
    }
    if let Some(name) = text.strip_prefix("devices/") {
        let is_plain = name.strip_prefix("vfio").is_some_and(|n| n.parse::<u32>().is_ok());
        return if is_plain {
            Ok(Some(VfioName::CharacterDevice(name.to_owned())))
        } else {
            Err(format!("{}: VFIO devices are called vfioN", path.display()))
        };
    }
    match text.parse() {
        Ok(group) => Ok(Some(VfioName::Group(group))),
        Err(_) => Err(format!("{}: neither an IOMMU group nor a VFIO device", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxResourcesBuilder};

    use super::*;

    fn device(typ: LinuxDeviceType, path: &str, major: i64, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default().typ(typ).path(path).major(major).minor(minor).build().unwrap()
    }

    fn rule(major: i64, minor: Option<i64>, access: &str) -> oci_spec::runtime::LinuxDeviceCgroup {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B).major(major);
        match minor {
            Some(minor) => rule.minor(minor),
            None => rule,
        }
        .access(access)
        .build()
        .unwrap()
    }

    #[test]
    fn disks_and_vfio_groups_go_to_the_guest_and_nothing_else() {
        let devices = [
            device(LinuxDeviceType::C, "/dev/null", 1, 3),
            device(LinuxDeviceType::B, "/dev/data", 8, 16),
            device(LinuxDeviceType::C, "/dev/vfio/vfio", 10, 196),
            device(LinuxDeviceType::C, "/dev/vfio/12", 241, 0),
            device(LinuxDeviceType::C, "/dev/vfio/devices/vfio0", 241, 1),
            device(LinuxDeviceType::P, "/dev/fifo", 0, 0),
        ];
        let wanted = wanted(&devices, None).unwrap();
        let block = OciDevice::Block { path: "/dev/data".into(), major: 8, minor: 16, access: Access::ReadWrite };
        let group = OciDevice::Vfio { path: "/dev/vfio/12".into(), name: VfioName::Group(12) };
        let cdev = VfioName::CharacterDevice("vfio0".into());
        let function = OciDevice::Vfio { path: "/dev/vfio/devices/vfio0".into(), name: cdev };
        assert_eq!(wanted, [block, group, function]);
    }

    #[test]
    fn only_a_rule_for_exactly_the_device_makes_it_read_only() {
        let cases = [
            (vec![], Access::ReadWrite),
            (vec![rule(8, Some(16), "rm")], Access::ReadOnly),
            (vec![rule(8, Some(16), "rwm")], Access::ReadWrite),
            (vec![rule(8, Some(16), "r"), rule(8, Some(16), "w")], Access::ReadWrite),
            (vec![rule(8, None, "r")], Access::ReadWrite),
            (vec![rule(8, Some(17), "r")], Access::ReadWrite),
        ];
        for (rules, access) in cases {
            let resources = LinuxResourcesBuilder::default().devices(rules.clone()).build().unwrap();
            let found = wanted(&[device(LinuxDeviceType::B, "/dev/data", 8, 16)], Some(&resources)).unwrap();
            assert!(matches!(found[..], [OciDevice::Block { access: a, .. }] if a == access), "{rules:?}");
        }
    }

    #[test]
    fn a_wrong_device_is_named() {
        for (typ, path, major) in [(LinuxDeviceType::B, "/dev/x", -1), (LinuxDeviceType::C, "/dev/vfio/../sda", 1)] {
            let error = wanted(&[device(typ, path, major, 0)], None).unwrap_err();
            assert!(error.contains(path), "{error}");
        }
    }
}
