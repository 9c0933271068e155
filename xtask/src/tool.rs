//! Running other programs, and the places they work in.

use std::path::PathBuf;
use std::process::{Command, Stdio};

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

/// Runs a program to its end; its standard output, if it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{program}` is not installed or cannot be run"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        output.status
    );
    Ok(output.stdout)
}

/// Fetches a package of the distribution and unpacks it, without installing anything.
pub(crate) fn unpack_package(package: &str, into: &std::path::Path) -> Result<()> {
    let download = into.with_extension("download");
    let _ = std::fs::remove_dir_all(&download);
    std::fs::create_dir_all(&download)?;
    // It writes to its working directory, where the user it would become has no business.
    let own_rights = "APT::Sandbox::User=root";
    let fetch = output(
        Command::new("apt-get")
            .args(["-q", "-o", own_rights, "download", package])
            .current_dir(&download),
    );
    fetch.with_context(|| format!("fetch package {package}"))?;
    let file = std::fs::read_dir(&download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("no package file of {package} was downloaded"))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
    Ok(std::fs::remove_dir_all(&download)?)
}
