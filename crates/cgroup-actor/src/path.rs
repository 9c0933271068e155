//! Where the cgroups of a sandbox are made.

use sandbox_model::SandboxId;

use crate::host::GroupPath;

/// Sandboxes whose spec names no path.
const DEFAULT_PARENT: &str = "resource-actors";
/// What is not the guest's.
const OVERHEAD_PARENT: &str = "resource-actors-overhead";
/// Bytes of one part of a path.
const PART_BYTES_MAX: usize = 255;

/// The sandbox's group. A spec without a path gets one of its own, never the root.
///
/// # Errors
/// A text that says what is wrong with the path and what to do.
pub(crate) fn sandbox(wished: Option<&str>, sandbox: &SandboxId, systemd_runs: bool) -> Result<GroupPath, String> {
    let wished = wished.unwrap_or_default();
    if wished.contains(':') {
        let fix = if systemd_runs {
            "cgroups are made directly here, not by systemd"
        } else {
            "it names a systemd slice, and systemd does not run on this host"
        };
        return Err(format!(
            "cgroupsPath {wished:?}: {fix}; use the cgroupfs driver and a path such as /{DEFAULT_PARENT}/{sandbox}"
        ));
    }
    let parts: Vec<_> = wished.split('/').filter(|part| !part.is_empty()).collect();
    let is_bad = |part: &&str| {
        matches!(*part, "." | "..") || part.len() > PART_BYTES_MAX || part.bytes().any(|b| b.is_ascii_control())
    };
    if let Some(part) = parts.iter().copied().find(is_bad) {
        return Err(format!(
            "cgroupsPath {wished:?}: {part:?} is not allowed in it; name the group from the root down"
        ));
    }
    if parts.is_empty() {
        return Ok(GroupPath { path: format!("{DEFAULT_PARENT}/{sandbox}"), joint_parent: true });
    }
    Ok(GroupPath { path: parts.join("/"), joint_parent: false })
}

/// The overhead's group.
pub(crate) fn overhead(sandbox: &SandboxId) -> GroupPath {
    GroupPath { path: format!("{OVERHEAD_PARENT}/{sandbox}"), joint_parent: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(wished: Option<&str>) -> Result<String, String> {
        sandbox(wished, &SandboxId::new("pod").unwrap(), false).map(|group| group.path)
    }

    #[test]
    fn a_path_is_never_the_root_and_never_leads_out() {
        for none in [None, Some(""), Some("/"), Some("//")] {
            assert_eq!(path(none).unwrap(), "resource-actors/pod", "{none:?}");
        }
        assert_eq!(path(Some("/kubepods//burstable/pod1")).unwrap(), "kubepods/burstable/pod1");
        for bad in ["/a/../b", "..", "/./a", "a\nb", &"x".repeat(256)] {
            assert!(path(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_systemd_path_is_refused_with_the_way_out() {
        let error = path(Some("system.slice:kata:pod")).unwrap_err();
        assert!(error.contains("systemd does not run") && error.contains("/resource-actors/pod"), "{error}");
    }
}
