//! Which kernel parameters a pod may name.
//!
//! A kernel's command line chooses its first program, its modules' behaviour and the agent's debug
//! console, so what a pod may add is a closed list of names with plain values. The administrator's
//! own `kernel_params` are not held to it.

/// Names that change nothing of what protects the host, the guest's agent or its other containers.
const NAMES: [&str; 14] = [
    "agent.container_pipe_size",
    "agent.hotplug_timeout",
    "agent.log",
    "cgroup_no_v1",
    "default_hugepagesz",
    "hugepages",
    "hugepagesz",
    "ipv6.disable",
    "loglevel",
    "net.ifnames",
    "numa_balancing",
    "quiet",
    "systemd.unified_cgroup_hierarchy",
    "transparent_hugepage",
];
/// Bytes of the whole line: the kernel keeps 2048 (`COMMAND_LINE_SIZE` on x86), part of which is ours.
const BYTES_MAX: usize = 512;

/// Checks the parameters that an annotation names.
///
/// # Errors
/// A text that names the first one that a pod may not use. Its value is not repeated.
pub(super) fn check(line: &str) -> Result<(), String> {
    if line.len() > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    for word in line.split_ascii_whitespace() {
        let (name, value) = word.split_once('=').map_or((word, ""), |(name, value)| (name, value));
        if !NAMES.contains(&name) {
            return Err(format!("{name:?} is not a kernel parameter that a pod may name"));
        }
        // A quote would make one parameter of several words, and of what follows ours.
        if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte)) {
            return Err(format!("the value of {name} may contain letters, digits and . _ - : only"));
        }
    }
    if line.chars().any(|letter| letter.is_control() || (letter.is_whitespace() && letter != ' ')) {
        return Err("it may be one line with plain spaces only".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_pod_names_harmless_parameters_only() {
        for good in ["", "quiet", "  quiet   loglevel=3 ", "transparent_hugepage=never agent.log=info"] {
            assert!(check(good).is_ok(), "{good:?}");
        }
        for bad in [
            "init=/bin/sh",
            "quiet init=/bin/sh",
            "agent.debug_console",
            "agent.debug_console_vport=1026",
            "module.sig_enforce=0",
            "systemd.debug_shell",
            "quiet=\"x init=/bin/sh\"",
            "QUIET",
            "quiet\tloglevel=3",
            "loglevel=3\ninit=/bin/sh",
            "loglevel=a,b",
            "--",
            "=x",
            &"quiet ".repeat(100),
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(!check("agent.token=hunter2").unwrap_err().contains("hunter2"));
    }
}
