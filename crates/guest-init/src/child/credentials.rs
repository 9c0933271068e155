//! User, groups and capabilities of a process.

use agent_protocol::oci::{LinuxCapabilities, Process};
use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

/// Becomes the user the process is to run as, with no more capabilities than it is to have.
pub(super) fn assume(process: &Process) -> Result<()> {
    // Without a list nothing is taken away.
    let capabilities = process.Capabilities.as_ref();
    if let Some(capabilities) = capabilities {
        bound(set_of(&capabilities.Bounding)).context("bound the capabilities")?;
    }
    let user = &process.User;
    let groups: Vec<Gid> = user.AdditionalGids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).context("set additional groups")?;
    setgid(Gid::from_raw(user.GID)).context("set the group")?;
    // Changing the user would drop what is still needed to set the capabilities.
    set_keep_capabilities(true)?;
    setuid(Uid::from_raw(user.UID)).context("set the user")?;
    set_keep_capabilities(false)?;
    if let Some(capabilities) = capabilities {
        reduce(capabilities).context("set the capabilities")?;
    }
    if process.NoNewPrivileges {
        set_no_new_privs(true).context("give up new privileges")?;
    }
    Ok(())
}

/// Leaves only `kept` in the bounding set, among the capabilities the kernel knows.
fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    for capability in (0..64).filter_map(|bit| CapabilitySet::from_bits(1 << bit)) {
        if !kept.contains(capability) && capability_is_in_bounding_set(capability) == Ok(true) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

fn reduce(capabilities: &LinuxCapabilities) -> rustix::io::Result<()> {
    let sets = CapabilitySets {
        effective: set_of(&capabilities.Effective),
        permitted: set_of(&capabilities.Permitted),
        inheritable: set_of(&capabilities.Inheritable),
    };
    set_capabilities(None, sets)?;
    for capability in set_of(&capabilities.Ambient).iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Names the kernel of this guest may not know are left out.
fn set_of(names: &[String]) -> CapabilitySet {
    names.iter().filter_map(|name| CapabilitySet::from_name(name.strip_prefix("CAP_")?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_name() {
        let names = ["CAP_CHOWN".to_owned(), "CAP_NET_RAW".to_owned(), "CAP_X".to_owned()];
        assert_eq!(set_of(&names), CapabilitySet::CHOWN | CapabilitySet::NET_RAW);
    }
}
