//! The vsock device's daemon, which no distribution packages: built from the registry.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tool;

const NAME: &str = "vhost-device-vsock";
const VERSION: &str = "0.3.0";

/// Builds `target/tools/bin/vhost-device-vsock` unless it is there.
pub(crate) fn build() -> Result<PathBuf> {
    let tools = tool::target("tools");
    let program = tools.join("bin").join(NAME);
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building {NAME} {VERSION}");
    let scratch = tool::target("tools-build");
    let mut install = tool::cargo();
    install.args(["install", NAME, "--quiet", "--locked", "--version", VERSION, "--root"]).arg(&tools);
    install.env("CARGO_TARGET_DIR", &scratch);
    tool::run(&mut install).with_context(|| format!("build {NAME}"))?;
    fs::remove_dir_all(scratch)?;
    Ok(program)
}
