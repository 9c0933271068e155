//! Which CPUs and memory nodes the containers of a sandbox ask for, and the union of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use sandbox_model::ContainerId;
use sandbox_model::request::ResourceUpdate;

use crate::messages::Cpuset;

/// One more than the highest number in a list (Linux' largest `NR_CPUS`; nodes are fewer).
pub const NUMBERS_MAX: u32 = 8192;

/// CPUs or memory nodes, in the kernel's list format: `0-3,7` (cpuset(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberList(BTreeSet<u32>);

/// Why a text is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} in the list {text:?} {rule}; a list is written 0-3,7 with numbers below {NUMBERS_MAX}")]
pub struct BadList {
    text: String,
    part: String,
    rule: &'static str,
}

impl NumberList {
    /// The numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn join(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

impl FromIterator<u32> for NumberList {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl FromStr for NumberList {
    type Err = BadList;

    fn from_str(text: &str) -> Result<Self, BadList> {
        let text = text.trim();
        let mut numbers = BTreeSet::new();
        if text.is_empty() {
            return Ok(Self(numbers));
        }
        for part in text.split(',').map(str::trim) {
            let shown = |text: &str| text.chars().take(80).collect();
            let bad = |rule| BadList { text: shown(text), part: shown(part), rule };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            // A sign would pass the parser of numbers.
            let is_plain = |number: &str| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            if !is_plain(first) || !is_plain(last) {
                return Err(bad("is neither a number nor a range"));
            }
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
                return Err(bad("is too large"));
            };
            if last >= NUMBERS_MAX || first >= NUMBERS_MAX {
                return Err(bad("is too large"));
            }
            if first > last {
                return Err(bad("goes backwards"));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for NumberList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut is_first = true;
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            if !is_first {
                f.write_str(",")?;
            }
            is_first = false;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

/// One container's wish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// CPUs; none means that it does not care.
    pub cpus: NumberList,
    /// Memory nodes; likewise.
    pub mems: NumberList,
}

impl Share {
    /// Reads `cpu.cpus` and `cpu.mems` of a container's resources.
    ///
    /// # Errors
    /// [`BadList`].
    pub fn parse(cpus: Option<&str>, mems: Option<&str>) -> Result<Self, BadList> {
        Ok(Self { cpus: cpus.unwrap_or_default().parse()?, mems: mems.unwrap_or_default().parse()? })
    }
}

/// The wishes of all containers. What the sandbox gets is a function of those that are in it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpusetTable {
    shares: BTreeMap<ContainerId, Share>,
}

impl CpusetTable {
    /// The table after a change.
    #[must_use]
    pub fn with(&self, container: &ContainerId, share: Share, update: ResourceUpdate) -> Self {
        let mut changed = self.clone();
        match update {
            ResourceUpdate::Add | ResourceUpdate::Update => changed.shares.insert(container.clone(), share),
            ResourceUpdate::Remove => changed.shares.remove(container),
        };
        changed
    }

    /// Takes a container out.
    pub fn remove(&mut self, container: &ContainerId) {
        self.shares.remove(container);
    }

    /// CPUs of all that care; none if nobody does.
    pub fn cpus(&self) -> NumberList {
        self.union(|share| &share.cpus)
    }

    /// Memory nodes of all that care.
    pub fn mems(&self) -> NumberList {
        self.union(|share| &share.mems)
    }

    /// Both, as the kernel is told.
    pub fn cpuset(&self) -> Cpuset {
        Cpuset { cpus: self.cpus().to_string(), mems: self.mems().to_string() }
    }

    fn union(&self, part: impl Fn(&Share) -> &NumberList) -> NumberList {
        let mut all = NumberList::default();
        self.shares.values().for_each(|share| all.join(part(share)));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, written) in
            [("", ""), ("0", "0"), ("3,1,2", "1-3"), ("0-3,7", "0-3,7"), (" 1 , 5-6\n", "1,5-6"), ("0,8191", "0,8191")]
        {
            assert_eq!(text.parse::<NumberList>().unwrap().to_string(), written, "{text:?}");
        }
        for text in ["a", "-1", "1-", "3-1", "+1", "8192", "0-99999999999", "1,,2", "0-3:1/2", "0x1"] {
            assert!(text.parse::<NumberList>().is_err(), "{text:?}");
        }
    }

    fn lists() -> impl Strategy<Value = NumberList> {
        prop::collection::btree_set(0..64_u32, 0..20).prop_map(NumberList)
    }

    proptest! {
        #[test]
        fn a_list_survives_being_written(list in lists()) {
            prop_assert_eq!(list.to_string().parse::<NumberList>().unwrap(), list);
        }

        #[test]
        fn no_text_makes_it_panic_or_exceed_its_bound(text in "[0-9,\\- ]{0,40}") {
            if let Ok(list) = text.parse::<NumberList>() {
                prop_assert!(list.numbers().all(|number| number < NUMBERS_MAX));
            }
        }

        #[test]
        fn the_union_depends_on_the_set_of_containers_and_not_on_its_history(
            lists in prop::collection::vec(lists(), 1..6),
            extra in lists(),
        ) {
            let id = |n: usize| ContainerId::new(format!("c{n}")).unwrap();
            let share = |cpus: &NumberList| Share { cpus: cpus.clone(), mems: NumberList::default() };
            let add = |table: CpusetTable, (n, list)| table.with(&id(n), share(list), ResourceUpdate::Add);
            let forward = lists.iter().enumerate().fold(CpusetTable::default(), add);
            let backward = lists.iter().enumerate().rev().fold(CpusetTable::default(), add);
            prop_assert_eq!(&forward, &backward);
            let all: BTreeSet<u32> = lists.iter().flat_map(NumberList::numbers).collect();
            prop_assert_eq!(forward.cpus().numbers().collect::<BTreeSet<_>>(), all);
            let there = forward.with(&id(99), share(&extra), ResourceUpdate::Add);
            let back = there.with(&id(99), Share::default(), ResourceUpdate::Remove);
            prop_assert_eq!(back, forward);
        }
    }
}
