//! The bus is a directory tree, and the kernel's reaction to a write a few lines of test code.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// Does what the kernel does with `unbind`, `bind` and `drivers_probe`.
#[derive(Debug)]
struct FakeKernel {
    sysfs: PathBuf,
    /// The driver that matches every function by itself.
    native: &'static str,
    refuse_probe: bool,
}

impl FakeKernel {
    fn attach(&self, bdf: &str, driver: &str) -> io::Result<()> {
        symlink(
            self.sysfs.join("bus/pci/drivers").join(driver),
            self.sysfs.join("bus/pci/devices").join(bdf).join("driver"),
        )
    }
}

impl Attributes for FakeKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let function = self.sysfs.join("bus/pci/devices").join(text);
        match name {
            "driver_override" => fs::write(path, text.trim()),
            "unbind" => fs::remove_file(function.join("driver")),
            "bind" => self.attach(text, path.parent().unwrap().file_name().unwrap().to_str().unwrap()),
            "drivers_probe" if self.refuse_probe => Ok(()),
            "drivers_probe" => {
                let wished = fs::read_to_string(function.join("driver_override")).unwrap_or_default();
                self.attach(text, if wished.is_empty() { self.native } else { &wished })
            }
            other => panic!("nobody writes to {other}"),
        }
    }
}

fn bus(functions: &[(&str, u32, Option<&str>)]) -> (tempfile::TempDir, Pci<FakeKernel>) {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = dir.path().to_owned();
    for driver in ["vfio-pci", "e1000e"] {
        let driver = sysfs.join("bus/pci/drivers").join(driver);
        fs::create_dir_all(&driver).unwrap();
        fs::write(driver.join("bind"), "").unwrap();
    }
    let group = sysfs.join("kernel/iommu_groups/5");
    fs::create_dir_all(group.join("devices")).unwrap();
    for (bdf, class, driver) in functions {
        let function = sysfs.join("bus/pci/devices").join(bdf);
        fs::create_dir_all(&function).unwrap();
        fs::write(function.join("class"), format!("{class:#08x}\n")).unwrap();
        fs::write(function.join("driver_override"), "").unwrap();
        symlink(&group, function.join("iommu_group")).unwrap();
        symlink(&function, group.join("devices").join(bdf)).unwrap();
        if let Some(driver) = driver {
            symlink(sysfs.join("bus/pci/drivers").join(driver), function.join("driver")).unwrap();
        }
    }
    let attributes = FakeKernel { sysfs: sysfs.clone(), native: "e1000e", refuse_probe: false };
    (dir, Pci { sysfs, attributes })
}

const NIC: &str = "0000:01:00.0";

#[test]
fn a_group_is_read_with_classes_and_drivers() {
    let (_dir, pci) = bus(&[(NIC, 0x02_0000, Some("e1000e")), ("0000:00:1c.0", 0x06_0400, None)]);
    for name in [VfioName::Group(5), VfioName::Function(NIC.into())] {
        let group = pci.group(&name).unwrap();
        let seen: Vec<_> = group.functions.iter().map(|f| (f.bdf.as_str(), f.class, f.driver.as_deref())).collect();
        assert_eq!((group.group, seen), (5, vec![("0000:00:1c.0", 0x0604, None), (NIC, 0x0200, Some("e1000e"))]));
    }
    assert_eq!(pci.group(&VfioName::Group(6)).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_function_goes_to_vfio_and_back_to_the_driver_that_had_it() {
    for original in [Some("e1000e"), None] {
        let (_dir, pci) = bus(&[(NIC, 0x02_0000, original)]);
        pci.bind(NIC).unwrap();
        assert_eq!(pci.driver(NIC).unwrap().as_deref(), Some("vfio-pci"));
        pci.bind(NIC).unwrap();
        pci.give_back(NIC, original).unwrap();
        assert_eq!(pci.driver(NIC).unwrap().as_deref(), original);
        assert_eq!(fs::read_to_string(pci.function(NIC).join("driver_override")).unwrap(), "");
        assert!(pci.give_back(NIC, original).unwrap_err().is_absent());
    }
}

#[test]
fn a_function_that_somebody_else_took_is_left_alone() {
    let (_dir, pci) = bus(&[(NIC, 0x02_0000, Some("igb"))]);
    assert_eq!(pci.give_back(NIC, Some("e1000e")).unwrap_err().kind, ErrorKind::Foreign);
}

#[test]
fn a_binding_cut_in_the_middle_is_doubtful_and_can_be_given_back() {
    let (_dir, mut pci) = bus(&[(NIC, 0x02_0000, Some("e1000e"))]);
    pci.attributes.refuse_probe = true;
    let error = pci.bind(NIC).unwrap_err();
    assert_eq!((error.outcome, error.kind), (sandbox_model::Outcome::Doubtful, ErrorKind::Refused));
    assert_eq!(pci.driver(NIC).unwrap(), None);
    pci.give_back(NIC, Some("e1000e")).unwrap();
    assert_eq!(pci.driver(NIC).unwrap().as_deref(), Some("e1000e"));
}

#[test]
fn without_the_driver_nothing_is_touched() {
    let (dir, pci) = bus(&[(NIC, 0x02_0000, Some("e1000e"))]);
    fs::rename(dir.path().join("bus/pci/drivers/vfio-pci"), dir.path().join("gone")).unwrap();
    assert_eq!(pci.bind(NIC).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(pci.driver(NIC).unwrap().as_deref(), Some("e1000e"));
}
