//! Running other programs, and the places they work in.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}

/// Where everything that is built here goes, however cargo's own directory is set.
pub(crate) fn target(name: &str) -> PathBuf {
    workspace().join("target").join(name)
}

/// Where cargo itself builds to.
pub(crate) fn cargo_target() -> PathBuf {
    let built = std::env::var_os("CARGO_TARGET_DIR").map(|path| workspace().join(path));
    built.unwrap_or_else(|| workspace().join("target"))
}

/// Cargo, in the workspace, as the one that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Whether this process may install packages and make host objects.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0)
}

/// Runs a program to its end with its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("`{program}` is not installed or cannot be run"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Another program's exit code as our own, in a shell's way for a signal.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Runs a program to its end; its standard output, if it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{program}` is not installed or cannot be run"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(output.stdout)
}

/// Fetches a package of the distribution and unpacks it, without installing anything.
pub(crate) fn unpack_package(package: &str, into: &std::path::Path) -> Result<()> {
    crate::packages::ensure_lists(package)?;
    let download = into.with_extension("download");
    let _ = std::fs::remove_dir_all(&download);
    std::fs::create_dir_all(&download)?;
    // It writes to its working directory, where the user it would become has no business.
    let own_rights = "APT::Sandbox::User=root";
    let fetch =
        output(Command::new("apt-get").args(["-q", "-o", own_rights, "download", package]).current_dir(&download));
    fetch.with_context(|| format!("fetch package {package}"))?;
    let file = std::fs::read_dir(&download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("no package file of {package} was downloaded"))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
    Ok(std::fs::remove_dir_all(&download)?)
}
