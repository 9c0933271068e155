//! How big a VM is at boot (behaviour A11).
//!
//! In the OCI and in cgroups, a negative limit says "unlimited" and an absent or zero one says nothing;
//! neither asks for any vCPU or memory here. All arithmetic is checked: the numbers come from a pod.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxResources;

use super::SandboxConfig;

/// Annotation: CPU time of all containers of the sandbox for each period, in microseconds.
pub const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// Annotation: that period, in microseconds.
pub const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Annotation: memory of all containers of the sandbox, in bytes.
pub const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

const MIB: u64 = 1024 * 1024;

/// What the containers of a sandbox may use, as far as it is known before the VM boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// CPU time for each period, in microseconds; negative means unlimited.
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory in bytes; negative means unlimited.
    pub memory_bytes: Option<i64>,
}

/// The size of a VM at boot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InitialSize {
    /// vCPUs, perhaps a fraction; the VM gets them rounded up.
    pub vcpus: f32,
    /// vCPUs that it may have after hotplug; 0 means as many as the host has.
    pub max_vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Memory in MiB that it may have after hotplug; 0 means as much as the host has.
    pub max_memory_mib: u32,
}

/// Why a VM cannot be sized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizingError {
    /// An annotation is no number.
    #[error("annotation {annotation} = {value:?} is no whole number")]
    NotANumber {
        /// Which.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// More than a VM can have.
    #[error("{what} is more than a VM can have")]
    TooLarge {
        /// The sum, in words.
        what: String,
    },
    /// Nothing at all.
    #[error("the VM would have no memory: set default_memory")]
    NoMemory,
}

impl Demand {
    /// What a container's own limits say, supplemented from the sandbox's annotations. The limits of a
    /// pod's sandbox container are those of the pause process, so only its annotations count: pass no
    /// resources then.
    ///
    /// # Errors
    /// An annotation is no number.
    pub fn new(
        resources: Option<&LinuxResources>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Self, SizingError> {
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref());
        let quota = cpu.and_then(|cpu| cpu.quota());
        // A quota means nothing without its own period, so both come from one place.
        let (cpu_quota, cpu_period) = match quota {
            Some(quota) => (Some(quota), cpu.and_then(|cpu| cpu.period())),
            None => (number(annotations, SANDBOX_CPU_QUOTA)?, number(annotations, SANDBOX_CPU_PERIOD)?),
        };
        let memory_bytes = match memory.and_then(|memory| memory.limit()) {
            Some(limit) => Some(limit),
            None => number(annotations, SANDBOX_MEMORY)?,
        };
        Ok(Self { cpu_quota, cpu_period, memory_bytes })
    }

    /// vCPUs that are asked for; 0 if none or unlimited.
    pub fn vcpus(&self) -> f64 {
        match (self.cpu_quota, self.cpu_period) {
            (Some(quota), Some(period)) if quota > 0 && period > 0 => quota as f64 / period as f64,
            _ => 0.0,
        }
    }

    /// MiB that are asked for, rounded up to an even number; 0 if none or unlimited.
    pub fn memory_mib(&self) -> u64 {
        let bytes = self.memory_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
        bytes.div_ceil(MIB).next_multiple_of(2)
    }
}

fn number<T: std::str::FromStr>(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
) -> Result<Option<T>, SizingError> {
    let Some(value) = annotations.get(annotation) else {
        return Ok(None);
    };
    let wrong = |_| SizingError::NotANumber { annotation, value: value.clone() };
    value.trim().parse().map(Some).map_err(wrong)
}

/// The size at boot.
///
/// With `static_sandbox_resource_mgmt` the VM gets at once what its containers will ask for, and the
/// overheads; without, it boots with the defaults and is resized later.
///
/// # Errors
/// A sum that no VM can have, or no memory at all.
pub fn initial_size(config: &SandboxConfig, demand: &Demand) -> Result<InitialSize, SizingError> {
    let vm = &config.hypervisor;
    let mut size = InitialSize {
        vcpus: vm.default_vcpus,
        max_vcpus: vm.default_maxvcpus,
        memory_mib: vm.default_memory,
        max_memory_mib: vm.default_maxmemory,
    };
    if config.runtime.static_sandbox_resource_mgmt {
        let (vcpus, memory_mib) = (demand.vcpus(), demand.memory_mib());
        if vcpus > 0.0 || memory_mib > 0 {
            size.vcpus = (f64::from(vm.overhead_vcpus) + vcpus).max(1.0) as f32;
            let sum = u64::from(vm.overhead_memory).saturating_add(memory_mib);
            size.memory_mib =
                u32::try_from(sum).map_err(|_| SizingError::TooLarge { what: format!("{sum} MiB of memory") })?;
            if size.max_memory_mib != 0 {
                size.max_memory_mib = size.max_memory_mib.max(size.memory_mib);
            }
        }
        let whole = size.vcpus.ceil();
        if !(1.0..=256.0).contains(&whole) {
            return Err(SizingError::TooLarge { what: format!("{} vCPUs", size.vcpus) });
        }
        size.max_vcpus = whole as u32;
    }
    if size.memory_mib == 0 {
        return Err(SizingError::NoMemory);
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(quota: i64, period: u64, bytes: i64) -> Result<InitialSize, SizingError> {
        let mut config = SandboxConfig::default();
        config.runtime.static_sandbox_resource_mgmt = true;
        let demand = Demand { cpu_quota: Some(quota), cpu_period: Some(period), memory_bytes: Some(bytes) };
        initial_size(&config, &demand)
    }

    #[test]
    fn static_sizing_adds_the_overheads() {
        let cases = [
            // quota, period, bytes -> vcpus, max, MiB
            (150_000, 100_000, 256 << 20, 1.7, 2, 288),
            (10_000, 100_000, 0, 1.0, 1, 32),
            (0, 100_000, (3 << 20) + 1, 1.0, 1, 36),
            (200_000, 100_000, -1, 2.2, 3, 32),
            // Neither asks for anything: the defaults stand.
            (-1, 100_000, -1, 1.0, 1, 2048),
            (0, 0, 0, 1.0, 1, 2048),
            (100_000, 0, 0, 1.0, 1, 2048),
            (i64::MIN, 1, i64::MIN, 1.0, 1, 2048),
        ];
        for (quota, period, bytes, vcpus, max, memory) in cases {
            let size = sized(quota, period, bytes).unwrap();
            assert_eq!((size.vcpus, size.max_vcpus, size.memory_mib), (vcpus, max, memory), "{quota} {period} {bytes}");
        }
    }

    #[test]
    fn more_than_a_vm_can_have_is_refused() {
        assert!(matches!(sized(0, 0, i64::MAX), Err(SizingError::TooLarge { .. })));
        assert!(matches!(sized(i64::MAX, 1, 0), Err(SizingError::TooLarge { .. })));
    }

    #[test]
    fn dynamic_sizing_boots_with_the_defaults() {
        let demand = Demand { cpu_quota: Some(800_000), cpu_period: Some(100_000), memory_bytes: Some(8 << 30) };
        let size = initial_size(&SandboxConfig::default(), &demand).unwrap();
        assert_eq!((size.vcpus, size.max_vcpus, size.memory_mib, size.max_memory_mib), (1.0, 0, 2048, 0));
        let mut none = SandboxConfig::default();
        none.hypervisor.default_memory = 0;
        assert_eq!(initial_size(&none, &demand), Err(SizingError::NoMemory));
    }

    #[test]
    fn own_limits_come_before_annotations() {
        let annotations = BTreeMap::from([
            (SANDBOX_CPU_QUOTA.to_owned(), "200000".to_owned()),
            (SANDBOX_CPU_PERIOD.to_owned(), "100000".to_owned()),
            (SANDBOX_MEMORY.to_owned(), "1048576".to_owned()),
        ]);
        let alone = Demand::new(None, &annotations).unwrap();
        assert_eq!((alone.vcpus(), alone.memory_mib()), (2.0, 2));
        let own: LinuxResources =
            serde_json::from_str(r#"{"cpu":{"quota":50000,"period":100000},"memory":{"limit":-1}}"#).unwrap();
        let both = Demand::new(Some(&own), &annotations).unwrap();
        assert_eq!((both.vcpus(), both.memory_mib()), (0.5, 0));
        let bad = BTreeMap::from([(SANDBOX_MEMORY.to_owned(), "1Gi".to_owned())]);
        assert!(Demand::new(None, &bad).unwrap_err().to_string().contains("\"1Gi\""));
    }
}
