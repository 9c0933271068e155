//! `cargo xtask run`: from a fresh clone to a container in a virtual machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{example_bundle, guest_image, packages, tool, vsock_daemon};

const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// Prepares what is missing and runs the example, or `sandboxctl` with the arguments given.
///
/// The exit code is that of `sandboxctl`.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    packages::for_run()?;
    let bundle = prepare()?;
    let sandboxctl = build_sandboxctl()?;
    let mut command = Command::new(sandboxctl);
    command.arg("--config").arg(tool::target("example").join("configuration.toml"));
    if arguments.is_empty() {
        command.arg("run").arg(bundle);
    } else {
        command.args(arguments);
    }
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    Ok(tool::exit_code(status))
}

/// Builds the guest, the vsock daemon and the example bundle; the bundle's directory.
pub(crate) fn prepare() -> Result<PathBuf> {
    let daemon = vsock_daemon::build()?;
    let (kernel, initrd) = guest_image::build()?;
    let bundle = example_bundle::build()?;
    let text = configuration(&kernel, &initrd, &daemon);
    fs::write(tool::target("example").join("configuration.toml"), text)?;
    Ok(bundle)
}

/// Builds the command line tool.
pub(crate) fn build_sandboxctl() -> Result<PathBuf> {
    tool::run(tool::cargo().args(["build", "--quiet", "--release", "--package", "sandboxctl"]))?;
    Ok(tool::cargo_target().join("release/sandboxctl"))
}

/// A configuration in Kata's format, with what was built here.
fn configuration(kernel: &Path, initrd: &Path, vsock_daemon: &Path) -> String {
    let virtiofsd = VIRTIOFSD.into_iter().find(|path| Path::new(path).exists()).unwrap_or(VIRTIOFSD[0]);
    format!(
        r#"# Written by `cargo xtask run`; written again at the next.

[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
kernel = "{}"
initrd = "{}"
default_vcpus = 1
default_memory = 256
shared_fs = "virtio-fs"
virtio_fs_daemon = "{virtiofsd}"
vsock_daemon = "{}"

[agent.kata]

[runtime]
"#,
        kernel.display(),
        initrd.display(),
        vsock_daemon.display(),
    )
}
