//! How we tell our own objects in the kernel from a stranger's.

use sandbox_model::SandboxId;
use sandbox_model::network::MacAddress;
use serde::{Deserialize, Serialize};

/// The marks of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// `ifalias` of its taps: `resource-actors:SANDBOX`.
    pub alias: String,
    /// `TCA_ACT_COOKIE` of its redirects, which the kernel keeps and does not interpret.
    pub cookie: [u8; 16],
}

impl Mark {
    /// The marks of `sandbox`.
    pub fn of(sandbox: &SandboxId) -> Self {
        let mut cookie = *b"resource--------";
        cookie[8..].copy_from_slice(&stable_hash(sandbox).to_be_bytes());
        Self { alias: format!("resource-actors:{sandbox}"), cookie }
    }
}

/// A locally administered unicast address (IEEE 802, second bit of the first byte) for the guest of
/// `sandbox`: the same after every restart, so that what peers have learnt stays true.
pub(crate) fn guest_mac(sandbox: &SandboxId) -> MacAddress {
    let hash = stable_hash(sandbox).to_be_bytes();
    MacAddress([0x02, hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// FNV-1a, 64 bits: the standard library's hashers may change between releases.
fn stable_hash(sandbox: &SandboxId) -> u64 {
    sandbox
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_stable_and_differ_between_sandboxes() {
        let (a, b) = (SandboxId::new("pod-1").unwrap(), SandboxId::new("pod-2").unwrap());
        assert_eq!(Mark::of(&a).alias, "resource-actors:pod-1");
        assert_ne!(Mark::of(&a).cookie, Mark::of(&b).cookie);
        assert_eq!(guest_mac(&a), guest_mac(&SandboxId::new("pod-1").unwrap()));
        assert_ne!(guest_mac(&a), guest_mac(&b));
        assert_eq!(guest_mac(&a).0[0] & 0b11, 0b10, "locally administered, unicast");
        // The published FNV-1a value of "a".
        assert_eq!(stable_hash(&SandboxId::new("a").unwrap()), 0xaf63_dc4c_8601_ec8c);
    }
}
