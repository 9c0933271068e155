//! Two choices that are never mixed: which VMM, and whose host objects.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use sandbox_model::config::SandboxConfig;
use schemars::JsonSchema;
use serde::Serialize;

/// Which VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VmmMode {
    /// A real VM.
    Qemu,
    /// A simulated VM and agent: the guest's program does not run.
    Simulated,
}

/// Whose host objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HostMode {
    /// The host's own.
    Real,
    /// Real ones in throw-away namespaces that vanish with the process.
    Private,
    /// None: host and guest are simulated, in virtual time, as the seed says.
    Simulated,
}

/// Both choices. Every report carries both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Mode {
    pub(crate) vmm: VmmMode,
    pub(crate) host: HostMode,
}

impl fmt::Display for VmmMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Simulated => "simulated",
        })
    }
}

impl fmt::Display for HostMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Real => "real",
            Self::Private => "private",
            Self::Simulated => "simulated",
        })
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Effective user id 0.
    pub(crate) is_root: bool,
    /// What a real VM lacks here, each in a few words.
    pub(crate) vm_lacks: Vec<String>,
}

impl Facts {
    /// Looks at this host.
    pub(crate) fn probe(config: &SandboxConfig) -> Self {
        let vm = &config.hypervisor;
        let mut vm_lacks = Vec::new();
        if find_program(&vm.path).is_none() {
            vm_lacks.push(format!("no QEMU at {}", vm.path.display()));
        }
        if !vm.kernel.is_file() {
            let unset = vm.kernel.as_os_str().is_empty();
            vm_lacks.push(if unset {
                "no guest kernel configured".to_owned()
            } else {
                format!("no kernel at {}", vm.kernel.display())
            });
        }
        match vm.initrd.as_ref().or(vm.image.as_ref()) {
            None => vm_lacks.push("no guest image configured".to_owned()),
            Some(path) if !path.exists() => vm_lacks.push(format!("no guest image at {}", path.display())),
            Some(_) => {}
        }
        Self { is_root: nix::unistd::geteuid().is_root(), vm_lacks }
    }
}

/// Chooses what was not said; the second part says why it is not a real VM on the real host.
pub(crate) fn choose(vmm: Option<VmmMode>, host: Option<HostMode>, facts: &Facts) -> (Mode, Option<String>) {
    let mut reasons = facts.vm_lacks.clone();
    if !facts.is_root {
        reasons.insert(0, "not root".to_owned());
    }
    let can_qemu = match host {
        // Throw-away namespaces make a normal user root enough for a VM.
        Some(HostMode::Private) => facts.vm_lacks.is_empty(),
        // A real VM needs a host.
        Some(HostMode::Simulated) => false,
        _ => reasons.is_empty(),
    };
    let chosen = vmm.unwrap_or(if can_qemu { VmmMode::Qemu } else { VmmMode::Simulated });
    let host = host.unwrap_or(match chosen {
        VmmMode::Qemu if facts.is_root => HostMode::Real,
        _ => HostMode::Private,
    });
    let is_a_surprise = vmm.is_none() && chosen == VmmMode::Simulated && host != HostMode::Simulated;
    let note = is_a_surprise.then(|| {
        format!(
            "simulated VM, {host} host objects: {} (`sandboxctl doctor` tells more)",
            if reasons.is_empty() { "as wished".to_owned() } else { reasons.join(", ") }
        )
    });
    (Mode { vmm: chosen, host }, note)
}

/// Finds a program as `execvp` would.
pub(crate) fn find_program(program: &Path) -> Option<PathBuf> {
    let is_executable =
        |path: &PathBuf| path.is_file() && nix::unistd::access(path.as_path(), nix::unistd::AccessFlags::X_OK).is_ok();
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Some(program.to_owned()).filter(is_executable);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(is_executable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use HostMode::{Private, Real};
    use VmmMode::{Qemu, Simulated};

    #[test]
    fn the_choice_follows_the_table() {
        let cases = [
            // root, lacks, --vmm, --host -> vmm, host, whether it is said
            (true, false, None, None, Qemu, Real, false),
            (true, true, None, None, Simulated, Private, true),
            (false, false, None, None, Simulated, Private, true),
            (false, true, None, None, Simulated, Private, true),
            (false, false, None, Some(Private), Qemu, Private, false),
            (false, true, None, Some(Private), Simulated, Private, true),
            (false, false, Some(Qemu), None, Qemu, Private, false),
            (true, true, Some(Qemu), None, Qemu, Real, false),
            (true, false, Some(Simulated), None, Simulated, Private, false),
            (true, false, Some(Simulated), Some(Real), Simulated, Real, false),
            (true, false, None, Some(HostMode::Simulated), Simulated, HostMode::Simulated, false),
        ];
        for (is_root, lacks, vmm, host, chosen, whose, said) in cases {
            let vm_lacks = if lacks { vec!["no QEMU".to_owned()] } else { Vec::new() };
            let (mode, note) = choose(vmm, host, &Facts { is_root, vm_lacks });
            assert_eq!(
                (mode.vmm, mode.host, note.is_some()),
                (chosen, whose, said),
                "{is_root} {lacks} {vmm:?} {host:?}"
            );
        }
    }

    #[test]
    fn the_reason_is_named() {
        let facts = Facts { is_root: false, vm_lacks: vec!["no QEMU at /q".to_owned()] };
        let (_, note) = choose(None, None, &facts);
        assert_eq!(
            note.as_deref(),
            Some("simulated VM, private host objects: not root, no QEMU at /q (`sandboxctl doctor` tells more)")
        );
    }

    #[test]
    fn a_program_is_found_as_execvp_would() {
        assert!(find_program(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert!(find_program(Path::new("/bin/sh")).is_some());
        assert_eq!(find_program(Path::new("/etc/passwd")), None);
        assert_eq!(find_program(Path::new("no-such-program")), None);
    }
}
