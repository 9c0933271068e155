//! Which source is shared under which name, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sandbox_model::ContainerId;
use sandbox_model::device::Access;
use sandbox_model::ledger::{EntryId, SharedSource};

use crate::host::Inode;
use crate::names::Place;

/// What two users must agree in to use one share. A share's access never changes while it lives: who
/// wants another gets another share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShareKey {
    /// The source.
    pub source: Inode,
    /// The mount through which it was reached. One that is read-only on the host must not be served
    /// by the share of a sibling that is not.
    pub mount_id: u64,
    /// Whether the guest may write.
    pub access: Access,
}

impl From<ShareKey> for SharedSource {
    fn from(key: ShareKey) -> Self {
        let Inode { device, inode } = key.source;
        Self { device, inode, mount_id: key.mount_id, access: key.access }
    }
}

impl From<SharedSource> for ShareKey {
    fn from(shared: SharedSource) -> Self {
        let source = Inode { device: shared.device, inode: shared.inode };
        Self { source, mount_id: shared.mount_id, access: shared.access }
    }
}

/// One shared source.
#[derive(Debug)]
struct Share {
    key: ShareKey,
    /// Placeholder and mount, oldest first.
    entries: Vec<EntryId>,
    /// Few, oldest first.
    holds: Vec<(EntryId, ContainerId)>,
}

impl Share {
    fn is_held_by(&self, hold: EntryId) -> bool {
        self.holds.iter().any(|(held, _)| *held == hold)
    }
}

/// All shared volumes of a sandbox, by their holders.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    by_key: Rc<BTreeMap<ShareKey, Place>>,
    /// Boxed: a node has room for eleven, and most sandboxes have few.
    shares: BTreeMap<Place, Box<Share>>,
}

impl Shares {
    /// The names by key, for a reader that outlives the borrow. Cheap.
    pub(crate) fn index(&self) -> Rc<BTreeMap<ShareKey, Place>> {
        self.by_key.clone()
    }

    /// Adds a new share with its first holder.
    pub(crate) fn add(&mut self, place: Place, key: ShareKey, entries: Vec<EntryId>, hold: (EntryId, ContainerId)) {
        let taken = self.shares.insert(place.clone(), Box::new(Share { key, entries, holds: vec![hold] }));
        assert!(taken.is_none(), "a share's name is used once");
        Rc::make_mut(&mut self.by_key).insert(key, place);
    }

    /// Adds a holder to a share that [`index`](Self::index) named.
    pub(crate) fn hold(&mut self, place: &Place, hold: (EntryId, ContainerId)) {
        if let Some(share) = self.shares.get_mut(place) {
            share.holds.push(hold);
        }
    }

    /// What else goes when `gone` go: of each share whose last hold is among them, its own entries,
    /// newest first, keyed by that last hold.
    pub(crate) fn last_holds(&self, gone: &[EntryId]) -> BTreeMap<EntryId, Vec<EntryId>> {
        let mut left: BTreeMap<&Place, BTreeSet<EntryId>> = BTreeMap::new();
        let mut taken_along = BTreeMap::new();
        for hold in gone {
            let Some((place, share)) = self.shares.iter().find(|(_, share)| share.is_held_by(*hold)) else {
                continue;
            };
            let left = left.entry(place).or_insert_with(|| share.holds.iter().map(|(hold, _)| *hold).collect());
            left.remove(hold);
            if left.is_empty() {
                taken_along.insert(*hold, share.entries.iter().rev().copied().collect());
            }
        }
        taken_along
    }

    /// A holder, other than `gone`, of the share that `entry` makes up.
    pub(crate) fn holder_besides(&self, entry: EntryId, gone: &[EntryId]) -> Option<&ContainerId> {
        let share = self.shares.values().find(|share| share.entries.contains(&entry))?;
        share.holds.iter().find(|(hold, _)| !gone.contains(hold)).map(|(_, container)| container)
    }

    /// Drops what is no longer in the ledger. A share that lost its last holder or a part of itself
    /// gets no new holder, even if some of it could not be undone.
    pub(crate) fn forget(&mut self, is_live: impl Fn(EntryId) -> bool) {
        let by_key = Rc::make_mut(&mut self.by_key);
        self.shares.retain(|place, share| {
            share.holds.retain(|(hold, _)| is_live(*hold));
            let is_held = !share.holds.is_empty();
            let is_whole = is_held && share.entries.iter().all(|entry| is_live(*entry));
            if !is_whole && by_key.get(&share.key) == Some(place) {
                by_key.remove(&share.key);
            }
            // What is left of one is given to nobody, and goes with its last holder.
            is_held && share.entries.iter().any(|entry| is_live(*entry))
        });
    }

    /// How many shares there are, and how many holds on them.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.shares.len(), self.shares.values().map(|share| share.holds.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    fn key(inode: u64, access: Access) -> ShareKey {
        ShareKey { source: Inode { device: 1, inode }, mount_id: 1, access }
    }

    fn two_holders() -> (Shares, Place) {
        let mut shares = Shares::default();
        let place = Place::volume(1, "/data");
        shares.add(place.clone(), key(7, Access::ReadOnly), vec![EntryId(1), EntryId(2)], (EntryId(3), container("a")));
        shares.hold(&place, (EntryId(4), container("b")));
        (shares, place)
    }

    #[test]
    fn a_share_goes_with_its_last_holder() {
        let (mut shares, _) = two_holders();
        assert!(shares.last_holds(&[EntryId(3)]).is_empty());
        let both = shares.last_holds(&[EntryId(4), EntryId(3)]);
        assert_eq!(both, BTreeMap::from([(EntryId(3), vec![EntryId(2), EntryId(1)])]));
        shares.forget(|id| id != EntryId(3));
        assert_eq!(shares.count(), (1, 1));
        assert_eq!(shares.last_holds(&[EntryId(4)]).len(), 1);
        assert!(shares.last_holds(&[EntryId(3)]).is_empty(), "an unknown hold takes nothing along");
    }

    #[test]
    fn what_others_hold_is_not_taken_from_them() {
        let (shares, _) = two_holders();
        assert_eq!(shares.holder_besides(EntryId(2), &[EntryId(3)]), Some(&container("b")));
        assert_eq!(shares.holder_besides(EntryId(2), &[EntryId(3), EntryId(4)]), None);
        assert_eq!(shares.holder_besides(EntryId(9), &[]), None);
    }

    #[test]
    fn access_is_part_of_the_key_and_a_damaged_share_is_not_offered() {
        let (mut shares, place) = two_holders();
        assert_eq!(shares.index().get(&key(7, Access::ReadOnly)), Some(&place));
        assert_eq!(shares.index().get(&key(7, Access::ReadWrite)), None);
        shares.forget(|id| id != EntryId(1));
        assert_eq!((shares.count(), shares.index().len()), ((1, 2), 0), "what is left goes with its holders");
        shares.forget(|id| id != EntryId(1) && id != EntryId(2));
        assert_eq!(shares.count(), (0, 0));
    }
}
