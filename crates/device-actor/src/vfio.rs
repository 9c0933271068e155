//! Which functions of an IOMMU group are handed over.

use crate::host::{PciFunction, VfioGroup};

/// PCI host bridge and PCI-to-PCI bridge: they route and are never handed over.
const BRIDGES: [u16; 2] = [0x0600, 0x0604];
/// Audio function of a graphics card, which Kata leaves with the host too (behaviour A8).
const AUDIO: u16 = 0x0403;
/// The driver that hands functions to a VM.
pub(crate) const VFIO_DRIVER: &str = "vfio-pci";

/// The functions of a group that go to the VM, in the order of their addresses.
pub(crate) fn members(group: &VfioGroup) -> impl Iterator<Item = &PciFunction> {
    group.functions.iter().filter(|function| !BRIDGES.contains(&function.class) && function.class != AUDIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_and_audio_stay_with_the_host() {
        let functions = [0x0200, 0x0604, 0x0300, 0x0403, 0x0600]
            .into_iter()
            .enumerate()
            .map(|(n, class)| PciFunction { bdf: format!("0000:01:00.{n}"), class, driver: None })
            .collect();
        let group = VfioGroup { group: 7, functions };
        let kept: Vec<_> = members(&group).map(|function| function.class).collect();
        assert_eq!(kept, [0x0200, 0x0300]);
    }
}
