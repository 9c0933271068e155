//! How many vCPUs and how much memory a set of containers needs (behaviour A11).
//!
//! The size is a function of the set of live containers and nothing else, so adding and removing a
//! container is the identity and no sum can drift.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::LinuxResources;
use sandbox_model::ContainerId;
use serde::{Deserialize, Serialize};

use super::CpuError;

/// What the VM was started with and may grow to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// `default_vcpus`.
    pub vcpus: f32,
    /// `default_maxvcpus`, resolved.
    pub vcpus_max: u32,
    /// `default_memory`, in MiB.
    pub memory_mib: u64,
    /// `default_maxmemory`, resolved, in MiB.
    pub memory_max_mib: u64,
    /// The guest's memory block in MiB; 0 if it cannot take more memory.
    pub block_mib: u64,
    /// Sized once, never again (`static_sandbox_resource_mgmt`).
    pub is_static: bool,
}

/// What one container asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// CFS quota in µs for each period; `None` or negative is no limit.
    pub quota_us: Option<i64>,
    /// CFS period in µs.
    pub period_us: u64,
    /// CPUs of the cpuset.
    pub cpus: BTreeSet<u32>,
    /// Memory limit in bytes; 0 if there is none.
    pub memory_bytes: u64,
}

/// The CFS period of a container that names none (Documentation/scheduler/sched-bwc.rst).
const DEFAULT_PERIOD_US: u64 = 100_000;
/// CPUs of a cpuset are numbered below this (the kernel's largest NR_CPUS).
const CPU_NUMBER_MAX: u32 = 8191;

impl Share {
    /// Reads a container's share out of its resources.
    ///
    /// # Errors
    /// [`CpuError::Invalid`] names the value.
    pub fn from_resources(resources: Option<&LinuxResources>) -> Result<Self, CpuError> {
        let mut share = Self { period_us: DEFAULT_PERIOD_US, ..Self::default() };
        let Some(resources) = resources else { return Ok(share) };
        if let Some(cpu) = resources.cpu() {
            share.quota_us = cpu.quota().filter(|quota| *quota > 0);
            share.period_us = match cpu.period() {
                Some(0) | None => DEFAULT_PERIOD_US,
                Some(period) => period,
            };
            share.cpus = cpu.cpus().as_deref().map_or(Ok(BTreeSet::new()), parse_cpus)?;
        }
        // -1 and 0 both say that there is no limit (runtime-spec, config-linux.md, memory).
        let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(0);
        share.memory_bytes = u64::try_from(limit).unwrap_or(0);
        for huge in resources.hugepage_limits().iter().flatten() {
            let bytes = u64::try_from(huge.limit()).unwrap_or(0);
            share.memory_bytes = share.memory_bytes.checked_add(bytes).ok_or_else(|| CpuError::Invalid {
                what: "memory.limit and hugepageLimits add up to more than 2^64 bytes".to_owned(),
            })?;
        }
        Ok(share)
    }
}

/// Parses a cpuset list (`0-3,7`, cpuset(7) "List format").
fn parse_cpus(text: &str) -> Result<BTreeSet<u32>, CpuError> {
    let wrong = || CpuError::Invalid {
        what: format!("cpu.cpus {text:?} is no list of CPUs below {CPU_NUMBER_MAX}, as in 0-3,7"),
    };
    let number = |part: &str| part.trim().parse::<u32>().ok().filter(|n| *n <= CPU_NUMBER_MAX).ok_or_else(wrong);
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// The shares of all containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    of: BTreeMap<ContainerId, Share>,
}

impl Shares {
    /// Whether the container has one.
    pub fn contains(&self, container: &ContainerId) -> bool {
        self.of.contains_key(container)
    }

    /// The set with one more, or with a changed one.
    #[must_use]
    pub fn with(&self, container: &ContainerId, mut share: Share) -> Self {
        let mut next = self.clone();
        if let Some(old) = next.of.get(container) {
            // An update of the cpuset alone sends no quota; the old one stays (behaviour A11).
            if share.quota_us.is_none() && !share.cpus.is_empty() && old.quota_us.is_some() {
                share.quota_us = old.quota_us;
                share.period_us = old.period_us;
            }
        }
        next.of.insert(container.clone(), share);
        next
    }

    /// The set without one.
    #[must_use]
    pub fn without(&self, container: &ContainerId) -> Self {
        let mut next = self.clone();
        next.of.remove(container);
        next
    }

    /// The containers of the set of which `test` says yes.
    #[must_use]
    pub fn only(&self, test: impl Fn(&ContainerId) -> bool) -> Self {
        let mut next = self.clone();
        next.of.retain(|container, _| test(container));
        next
    }

    /// vCPUs that the set needs, from 1 to the VM's maximum.
    pub fn vcpus(&self, base: &Base) -> u32 {
        let period = self.of.values().map(|share| share.period_us).max().unwrap_or(DEFAULT_PERIOD_US);
        // Whole microseconds: sums of quotas stay exact, whatever their order.
        let quota: u128 = self.of.values().map(|share| scaled_quota(share, period)).sum();
        let cpus: BTreeSet<u32> = self.of.values().flat_map(|share| share.cpus.iter().copied()).collect();
        let needed = if quota > 0 {
            let by_quota = quota as f64 / period as f64;
            (by_quota + f64::from(base.vcpus)).ceil()
        } else if !cpus.is_empty() {
            cpus.len() as f64
        } else {
            f64::from(base.vcpus.ceil())
        };
        clamp(needed, base.vcpus_max)
    }

    /// Memory that the set needs in MiB, whole blocks above the base.
    ///
    /// # Errors
    /// [`CpuError::TooMuchMemory`].
    pub fn memory_mib(&self, base: &Base) -> Result<u64, CpuError> {
        let bytes: u128 = self.of.values().map(|share| u128::from(share.memory_bytes)).sum();
        let extra = u64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u64::MAX);
        let block = base.block_mib.max(1);
        let extra = extra.div_ceil(block).saturating_mul(block);
        let needed = base.memory_mib.saturating_add(extra);
        if needed > base.memory_max_mib {
            return Err(CpuError::TooMuchMemory { needed_mib: needed, max_mib: base.memory_max_mib });
        }
        Ok(needed)
    }
}

/// A container's quota at another period, rounded up.
fn scaled_quota(share: &Share, period: u64) -> u128 {
    let quota = u128::from(u64::try_from(share.quota_us.unwrap_or(0)).unwrap_or(0));
    (quota * u128::from(period)).div_ceil(u128::from(share.period_us))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u32 before")]
fn clamp(vcpus: f64, max: u32) -> u32 {
    vcpus.clamp(1.0, f64::from(max.max(1))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};
    use proptest::prelude::*;

    fn base() -> Base {
        let (vcpus, vcpus_max) = (1.0, 8);
        Base { vcpus, vcpus_max, memory_mib: 512, memory_max_mib: 8192, block_mib: 128, is_static: false }
    }

    fn id(n: u32) -> ContainerId {
        ContainerId::new(format!("c{n}")).unwrap()
    }

    fn quota(quota_us: i64, period_us: u64) -> Share {
        Share { quota_us: Some(quota_us).filter(|q| *q > 0), period_us, ..Share::default() }
    }

    #[test]
    fn vcpus_follow_the_rules_of_the_specification() {
        let cases: [(&str, Vec<Share>, u32); 8] = [
            ("no container", vec![], 1),
            ("no limit", vec![quota(-1, 100_000)], 1),
            ("one CPU and the VM's own", vec![quota(100_000, 100_000)], 2),
            ("half a CPU rounds up", vec![quota(50_000, 100_000)], 2),
            ("two halves are one", vec![quota(50_000, 100_000), quota(25_000, 50_000)], 2),
            ("more than the maximum", vec![quota(9_900_000, 100_000)], 8),
            (
                "a cpuset counts its union",
                vec![
                    Share { cpus: [0, 1].into(), period_us: 1, ..Share::default() },
                    Share { cpus: [1, 2].into(), period_us: 1, ..Share::default() },
                ],
                3,
            ),
            ("a quota beats a cpuset", vec![Share { cpus: [0, 1, 2, 3].into(), ..quota(100_000, 100_000) }], 2),
        ];
        for (name, shares, expected) in cases {
            let mut set = Shares::default();
            for (n, share) in shares.into_iter().enumerate() {
                set = set.with(&id(u32::try_from(n).unwrap()), share);
            }
            assert_eq!(set.vcpus(&base()), expected, "{name}");
        }
    }

    #[test]
    fn an_update_of_the_cpuset_alone_keeps_the_quota() {
        let only_cpus = Share { cpus: [0].into(), period_us: 100_000, ..Share::default() };
        let set = Shares::default().with(&id(0), quota(300_000, 100_000)).with(&id(0), only_cpus);
        assert_eq!(set.vcpus(&base()), 4);
    }

    #[test]
    fn memory_is_whole_blocks_above_the_base_and_bounded() {
        let with = |bytes| Shares::default().with(&id(0), Share { memory_bytes: bytes, ..quota(0, 1) });
        for (bytes, expected) in [(0, 512), (1, 640), (128 << 20, 640), ((128 << 20) + 1, 768), (1 << 30, 1536)] {
            assert_eq!(with(bytes).memory_mib(&base()), Ok(expected), "{bytes}");
        }
        let error = with(8 << 30).memory_mib(&base()).unwrap_err();
        assert_eq!(error, CpuError::TooMuchMemory { needed_mib: 8704, max_mib: 8192 });
        assert!(with(u64::MAX).memory_mib(&base()).is_err(), "no sum overflows");
    }

    #[test]
    fn no_limit_is_written_in_two_ways_and_counts_as_nothing() {
        for limit in [-1, 0] {
            let memory = LinuxMemoryBuilder::default().limit(limit).build().unwrap();
            let cpu = LinuxCpuBuilder::default().quota(-1).period(0u64).cpus("").build().unwrap();
            let resources = LinuxResourcesBuilder::default().memory(memory).cpu(cpu).build().unwrap();
            let share = Share::from_resources(Some(&resources)).unwrap();
            assert_eq!(share, Share { period_us: DEFAULT_PERIOD_US, ..Share::default() });
        }
    }

    #[test]
    fn cpu_lists_are_parsed_and_bad_ones_named() {
        assert_eq!(parse_cpus("0-2,7").unwrap(), [0, 1, 2, 7].into());
        for bad in ["x", "3-1", "1-", "-1", "9999", "0-8192"] {
            assert!(parse_cpus(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn adding_and_removing_is_the_identity_and_order_does_not_matter(
            shares in proptest::collection::vec((1i64..1_000_000, 1u64..1_000_000, 0u64..1 << 40), 1..8),
        ) {
            let make = |(q, p, m): &(i64, u64, u64)| Share { memory_bytes: *m, ..quota(*q, *p) };
            let all = |order: &mut dyn Iterator<Item = usize>| {
                order.fold(Shares::default(), |set, n| set.with(&id(u32::try_from(n).unwrap()), make(&shares[n])))
            };
            let forwards = all(&mut (0..shares.len()));
            let backwards = all(&mut (0..shares.len()).rev());
            prop_assert_eq!(&forwards, &backwards);
            let more = forwards.with(&id(99), quota(500_000, 100_000)).without(&id(99));
            prop_assert_eq!(more.vcpus(&base()), forwards.vcpus(&base()));
            let vcpus = forwards.vcpus(&base());
            prop_assert!((1..=8).contains(&vcpus));
            let emptied = (0..shares.len()).fold(forwards, |set, n| set.without(&id(u32::try_from(n).unwrap())));
            prop_assert_eq!(emptied, Shares::default());
        }
    }
}
