//! PCI slots behind the VM's bridges.

use sandbox_model::device::PciSlot;

/// Bridges that a VM may have (behaviour A8: `default_bridges`, at most 5).
pub const BRIDGES_MAX: u8 = 5;
/// First hotplug slot of a bridge (behaviour A17: 1..30; slot 0 is the bridge's own).
pub const SLOT_MIN: u8 = 1;
/// Last hotplug slot of a bridge.
pub const SLOT_MAX: u8 = 30;
/// Bits of the slots of one bridge.
const ALL: u32 = ((1 << SLOT_MAX) - 1) << SLOT_MIN;

/// Which slots are taken. Finding the lowest free one looks at one word per bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPool {
    taken: [u32; BRIDGES_MAX as usize],
    bridges: u8,
}

impl SlotPool {
    /// All slots of `bridges` bridges, free. More than [`BRIDGES_MAX`] are not used.
    pub fn new(bridges: u8) -> Self {
        Self { taken: [0; BRIDGES_MAX as usize], bridges: bridges.min(BRIDGES_MAX) }
    }

    /// Bridges in use.
    pub fn bridges(&self) -> u8 {
        self.bridges
    }

    /// Slots in all.
    pub fn total(&self) -> usize {
        usize::from(self.bridges) * usize::from(SLOT_MAX - SLOT_MIN + 1)
    }

    /// Free slots.
    pub fn free(&self) -> usize {
        let taken: u32 = self.taken.iter().map(|word| word.count_ones()).sum();
        self.total() - taken as usize
    }

    /// The lowest free slot of the lowest bridge that has one.
    pub fn lowest_free(&self) -> Option<PciSlot> {
        (0..self.bridges).find_map(|bridge| {
            let free = ALL & !self.taken[usize::from(bridge)];
            (free != 0).then(|| PciSlot { bridge, slot: free.trailing_zeros() as u8 })
        })
    }

    /// Takes a slot; `false` if it is out of range or taken.
    pub fn take(&mut self, slot: PciSlot) -> bool {
        let Some(bit) = self.bit(slot) else {
            return false;
        };
        let word = &mut self.taken[usize::from(slot.bridge)];
        let was_free = *word & bit == 0;
        *word |= bit;
        was_free
    }

    /// Gives a slot back; `false` if it was free.
    pub fn give_back(&mut self, slot: PciSlot) -> bool {
        let Some(bit) = self.bit(slot) else {
            return false;
        };
        let word = &mut self.taken[usize::from(slot.bridge)];
        let was_taken = *word & bit != 0;
        *word &= !bit;
        was_taken
    }

    fn bit(&self, slot: PciSlot) -> Option<u32> {
        let in_range = slot.bridge < self.bridges && (SLOT_MIN..=SLOT_MAX).contains(&slot.slot);
        in_range.then(|| 1 << slot.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_1_to_30_of_each_bridge_lowest_first() {
        let mut pool = SlotPool::new(2);
        let mut order = Vec::new();
        while let Some(slot) = pool.lowest_free() {
            assert!(pool.take(slot));
            order.push((slot.bridge, slot.slot));
        }
        let wanted: Vec<_> = (0..2).flat_map(|bridge| (1..=30).map(move |slot| (bridge, slot))).collect();
        assert_eq!(order, wanted);
        assert!(pool.give_back(PciSlot { bridge: 0, slot: 7 }));
        assert!(!pool.give_back(PciSlot { bridge: 0, slot: 7 }), "freed once");
        assert_eq!(pool.lowest_free(), Some(PciSlot { bridge: 0, slot: 7 }));
        for bad in [(0, 0), (0, 31), (2, 1)] {
            assert!(!pool.take(PciSlot { bridge: bad.0, slot: bad.1 }), "{bad:?}");
        }
    }
}
