//! The test guest: a kernel, and an initrd that holds `guest-init` and modules, nothing else.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::{kernel, tool};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `target/guest/vmlinux` and `target/guest/initrd.cpio`; their paths.
///
/// The kernel is fetched once; remove `target/guest` to get a newer one. The initrd is written
/// again whenever `guest-init` has changed.
pub(crate) fn build() -> Result<(PathBuf, PathBuf)> {
    let directory = tool::target("guest");
    fs::create_dir_all(&directory)?;
    let (unpacked, vmlinux) = (directory.join("kernel"), directory.join("vmlinux"));
    kernel::prepare(&unpacked, &vmlinux).context("prepare the kernel")?;
    let initrd = directory.join("initrd.cpio");
    write_initrd(&unpacked, &initrd).context("write the initrd")?;
    Ok((vmlinux, initrd))
}

fn write_initrd(unpacked: &Path, initrd: &Path) -> Result<()> {
    let init = fs::read(compile_init()?)?;
    let stamp_file = initrd.with_extension("stamp");
    let stamp = stamp(&init);
    if initrd.exists() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    let part = initrd.with_extension("part");
    pack(&init, &kernel::modules(unpacked)?, fs::File::create(&part)?)?;
    fs::rename(part, initrd)?;
    Ok(fs::write(stamp_file, stamp)?)
}

/// Changes with everything the initrd is made of, this program included.
fn stamp(init: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    init.hash(&mut hasher);
    include_str!("kernel.rs").hash(&mut hasher);
    include_str!("guest_image.rs").hash(&mut hasher);
    format!("{:016x}\n", hasher.finish())
}

fn pack(init: &[u8], modules: &[kernel::Module], output: fs::File) -> Result<()> {
    let mut archive = Archive::new(std::io::BufWriter::new(output));
    archive.directory("dev", 0o755)?;
    // The kernel opens it for the first process before anything is mounted.
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.directory("modules", 0o755)?;
    for module in modules {
        archive.file(&format!("modules/{}", module.name), 0o644, &module.data)?;
    }
    let list: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.file("modules/list", 0o644, list.as_bytes())?;
    archive.file("init", 0o755, init)?;
    archive.finish()?;
    Ok(())
}

/// Builds `guest-init` as a static program and strips it.
fn compile_init() -> Result<PathBuf> {
    let built = tool::cargo_target();
    tool::output(
        tool::cargo()
            .args(["build", "--quiet", "--release", "--package", "guest-init", "--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    let program = built.join(TARGET).join("release/guest-init");
    let stripped = tool::target("guest").join("init");
    tool::output(Command::new("strip").arg("-o").arg(&stripped).arg(&program))?;
    Ok(stripped)
}
