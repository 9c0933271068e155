//! The guest's kernel: Debian's, as an ELF image, and the modules it needs.
//!
//! QEMU starts an ELF kernel through its PVH entry, without the decompression that a `bzImage`
//! goes through: that saves half a second of each boot under emulation.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{packages, tool};

/// Depends on the current kernel of its kind.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the guest needs, without what that needs in turn.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "ext4",
    // Asked for by ext4 at run time only.
    "crc32c_generic",
    "erofs",
    "overlay",
    "virtio_mem",
    "virtio_balloon",
    "virtio-rng",
];

/// A module, ready to be put into the initrd.
pub(crate) struct Module {
    /// Name of the file.
    pub(crate) name: String,
    /// The file, without its debugging information.
    pub(crate) data: Vec<u8>,
}

/// Fetches and unpacks the kernel unless that was done before; writes `vmlinux`.
pub(crate) fn prepare(unpacked: &Path, vmlinux: &Path) -> Result<()> {
    if vmlinux.exists() {
        return Ok(());
    }
    let package = current_package()?;
    eprintln!("fetching {package}");
    let _ = fs::remove_dir_all(unpacked);
    tool::unpack_package(&package, unpacked)?;
    let image = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
    let elf = extract_elf(&fs::read(&image)?, &unpacked.join("payload"))?;
    let version = only_entry(&unpacked.join("lib/modules"), "")?;
    let version = version.file_name().context("kernel version")?.to_owned();
    // The package leaves this to its installation.
    tool::output(Command::new("/sbin/depmod").arg("-b").arg(unpacked).arg(version))?;
    // Last, because its presence says that all of this was done.
    let part = vmlinux.with_extension("part");
    fs::write(&part, elf)?;
    Ok(fs::rename(part, vmlinux)?)
}

/// The modules of an unpacked kernel, each after those it depends on.
pub(crate) fn modules(unpacked: &Path) -> Result<Vec<Module>> {
    let directory = only_entry(&unpacked.join("lib/modules"), "")?;
    let dependencies = fs::read_to_string(directory.join("modules.dep"))?;
    let builtin = fs::read_to_string(directory.join("modules.builtin"))?;
    let paths = in_order(&dependencies, &builtin, &MODULES)?;
    paths.iter().map(|path| stripped(&directory.join(path), unpacked)).collect()
}

fn current_package() -> Result<String> {
    packages::ensure_lists(META_PACKAGE)?;
    let text = tool::output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let text = String::from_utf8(text)?;
    let found = text.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        name.starts_with("linux-image-").then(|| name.to_owned())
    });
    found.with_context(|| format!("{META_PACKAGE} depends on no kernel; try `apt-get update`"))
}

/// The path of each module and of all it depends on, dependencies first. What is built into the
/// kernel needs no loading.
fn in_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    for name in wanted {
        let suffix = format!("/{name}.ko");
        if builtin.lines().any(|path| path.ends_with(&suffix)) {
            continue;
        }
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| path.ends_with(&suffix))
            .with_context(|| format!("the kernel has no module {name}"))?;
        // The list names all dependencies, each after those that need it.
        for path in line.1.split_ascii_whitespace().rev().chain([line.0]) {
            if seen.insert(path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn stripped(path: &Path, scratch: &Path) -> Result<Module> {
    let name = path.file_name().and_then(|name| name.to_str()).context("module name")?.to_owned();
    let copy = scratch.join("stripped.ko");
    tool::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(path))?;
    Ok(Module { name, data: fs::read(&copy)? })
}

/// Takes the ELF image out of a `bzImage`, by the fields of the boot protocol.
fn extract_elf(image: &[u8], scratch: &Path) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup_sectors = usize::from(*image.get(0x1f1).context("not a kernel image")?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The size of what comes out is put behind the payload, where unpackers do not expect it.
    let end = start + word(0x24c)? - 4;
    let payload = image.get(start..end).context("the kernel's payload is cut short")?;
    let (program, arguments) = unpacker(payload)?;
    fs::write(scratch, payload)?;
    let elf = tool::output(Command::new(program).args(arguments).arg(scratch))?;
    fs::remove_file(scratch)?;
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel's payload is not an ELF image");
    Ok(elf)
}

fn unpacker(payload: &[u8]) -> Result<(&'static str, &'static [&'static str])> {
    Ok(match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"]),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        _ => bail!("the kernel is compressed in a way that is not known here"),
    })
}

/// The one entry of a directory whose name starts as given.
fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let matches = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(prefix);
    let mut found = entries.flatten().filter(|entry| matches(&entry.file_name()));
    let first = found.next().with_context(|| format!("no {prefix} in {}", directory.display()))?;
    ensure!(found.next().is_none(), "more than one {prefix} in {}", directory.display());
    Ok(first.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let list = "k/fs/ext4.ko: k/fs/jbd2.ko k/lib/crc16.ko\nk/lib/crc16.ko:\n\
                    k/fs/jbd2.ko: k/lib/crc16.ko\n";
        let order = in_order(list, "k/fs/fuse.ko\n", &["fuse", "ext4", "jbd2"]).unwrap();
        assert_eq!(order, ["k/lib/crc16.ko", "k/fs/jbd2.ko", "k/fs/ext4.ko"]);
        assert!(in_order(list, "", &["xfs"]).is_err());
    }
}
