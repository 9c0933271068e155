//! Giving PCI functions to vfio-pci and back.

use std::io;
use std::path::{Path, PathBuf};

use sandbox_model::{ErrorKind, PortError, PortResult};

use super::sysfs::{Attributes, Kernel};
use crate::host::{PciFunction, VfioGroup, VfioName};
use crate::vfio::VFIO_DRIVER;

/// The PCI bus as a sysfs tree shows it.
#[derive(Debug)]
pub(super) struct Pci<A = Kernel> {
    sysfs: PathBuf,
    attributes: A,
}

impl Pci {
    pub(super) fn new(sysfs: PathBuf) -> Self {
        Self { sysfs, attributes: Kernel }
    }
}

impl<A: Attributes> Pci<A> {
    fn bus(&self, below: &str) -> PathBuf {
        self.sysfs.join("bus/pci").join(below)
    }

    fn function(&self, bdf: &str) -> PathBuf {
        self.bus("devices").join(bdf)
    }

    fn driver(&self, bdf: &str) -> PortResult<Option<String>> {
        match link_name(&self.function(bdf).join("driver")) {
            Ok(name) => Ok(Some(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::os("read driver", bdf, error)),
        }
    }

    /// A group and its functions, by address.
    pub(super) fn group(&self, name: &VfioName) -> PortResult<VfioGroup> {
        let group = match name {
            VfioName::Group(group) => *group,
            VfioName::Function(bdf) => self.group_of(bdf)?,
            VfioName::CharacterDevice(name) => {
                let device = self.sysfs.join("class/vfio-dev").join(name).join("device");
                let bdf = link_name(&device).map_err(|error| PortError::os("read", name.clone(), error))?;
                self.group_of(&bdf)?
            }
        };
        let listed = self.sysfs.join(format!("kernel/iommu_groups/{group}/devices"));
        let refused = |error| PortError::os("read IOMMU group", group.to_string(), error);
        let mut functions = Vec::new();
        for entry in std::fs::read_dir(listed).map_err(refused)? {
            let bdf = entry.map_err(refused)?.file_name().to_string_lossy().into_owned();
            let (class, driver) = (self.class(&bdf)?, self.driver(&bdf)?);
            functions.push(PciFunction { bdf, class, driver });
        }
        functions.sort_by(|a, b| a.bdf.cmp(&b.bdf));
        Ok(VfioGroup { group, functions })
    }

    fn group_of(&self, bdf: &str) -> PortResult<u32> {
        let function = self.function(bdf);
        if !function.exists() {
            return Err(PortError::new(ErrorKind::NotFound, "find PCI function", bdf, "the host has none there"));
        }
        let number = link_name(&function.join("iommu_group")).ok().and_then(|name| name.parse().ok());
        number.ok_or_else(|| {
            let cause = "it is in no IOMMU group: switch the IOMMU on (intel_iommu=on, amd_iommu=on)";
            PortError::new(ErrorKind::Unsupported, "read IOMMU group", bdf, cause)
        })
    }

    /// The attribute holds `0xCCSSPP`: class, subclass, programming interface.
    fn class(&self, bdf: &str) -> PortResult<u16> {
        let text = std::fs::read_to_string(self.function(bdf).join("class"))
            .map_err(|error| PortError::os("read class", bdf, error))?;
        let number = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
        number.and_then(|number| u16::try_from(number >> 8).ok()).ok_or_else(|| {
            PortError::new(ErrorKind::Protocol, "read class", bdf, format!("{:?} is no PCI class", text.trim()))
        })
    }

    /// Gives a function to vfio-pci.
    pub(super) fn bind(&self, bdf: &str) -> PortResult<()> {
        let current = self.driver(bdf)?;
        if current.as_deref() == Some(VFIO_DRIVER) {
            return Ok(());
        }
        if !self.bus("drivers").join(VFIO_DRIVER).exists() {
            let cause = "the host has no vfio-pci driver: modprobe vfio-pci";
            return Err(PortError::new(ErrorKind::Unsupported, "bind to vfio-pci", bdf, cause));
        }
        self.write(&self.function(bdf).join("driver_override"), VFIO_DRIVER, bdf)?;
        // From here on something has changed, whatever comes.
        self.hand_over(bdf, current.as_deref(), &self.bus("drivers_probe"), Some(VFIO_DRIVER))
            .map_err(|error| error.doubtful())
    }

    /// Gives a function back to the driver that had it.
    pub(super) fn give_back(&self, bdf: &str, original: Option<&str>) -> PortResult<()> {
        let absent = |cause: &str| PortError::new(ErrorKind::NotFound, "give back", bdf, cause);
        let function = self.function(bdf);
        if !function.exists() {
            return Err(absent("the host has no such function any more"));
        }
        let current = self.driver(bdf)?;
        let ours = [Some(VFIO_DRIVER), original, None];
        if !ours.contains(&current.as_deref()) {
            let cause = format!("{} has taken it meanwhile", current.unwrap_or_default());
            return Err(PortError::new(ErrorKind::Foreign, "give back", bdf, cause));
        }
        let preference = std::fs::read_to_string(function.join("driver_override")).unwrap_or_default();
        if preference.trim() == VFIO_DRIVER {
            self.write(&function.join("driver_override"), "\n", bdf)?;
        } else if current.as_deref() == original {
            return Err(absent("its own driver has it"));
        }
        if current.as_deref() == original {
            return Ok(());
        }
        let own = original.map(|driver| self.bus("drivers").join(driver).join("bind"));
        let bind = own.filter(|bind| bind.exists()).unwrap_or_else(|| self.bus("drivers_probe"));
        self.hand_over(bdf, current.as_deref(), &bind, original).map_err(|error| error.doubtful())
    }

    /// From one driver to another.
    fn hand_over(&self, bdf: &str, from: Option<&str>, bind: &Path, to: Option<&str>) -> PortResult<()> {
        if from.is_some() {
            self.write(&self.function(bdf).join("driver/unbind"), bdf, bdf)?;
        }
        let Some(to) = to else { return Ok(()) };
        self.write(bind, bdf, bdf)?;
        let now = self.driver(bdf)?;
        if now.as_deref() == Some(to) {
            return Ok(());
        }
        let cause = format!("it is with {} instead of {to}", now.as_deref().unwrap_or("no driver"));
        Err(PortError::new(ErrorKind::Refused, "bind", bdf, cause))
    }

    fn write(&self, path: &Path, text: &str, bdf: &str) -> PortResult<()> {
        self.attributes
            .write(path, text)
            .map_err(|error| PortError::os(format!("write {}", path.display()), bdf, error))
    }
}

/// The last part of where a link leads.
fn link_name(path: &Path) -> io::Result<String> {
    let target = std::fs::read_link(path)?;
    let name = target.file_name().ok_or_else(|| io::Error::other("a link to nothing"))?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[path = "vfio_tests.rs"]
mod tests;
