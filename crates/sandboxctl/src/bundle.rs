//! Reads an OCI bundle and refuses what cannot be run, naming file and field.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use oci_spec::runtime::{Process, Spec};

use crate::output::{Code, Failure};

/// A spec of a pod is some tens of KiB.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A bundle that may be run.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    /// Its directory, absolute.
    pub(crate) dir: PathBuf,
    /// Its root file system, absolute.
    pub(crate) rootfs: PathBuf,
    /// Its spec, with absolute sources of bind mounts.
    pub(crate) spec: Spec,
}

impl Bundle {
    /// Reads `dir/config.json`.
    pub(crate) fn read(dir: &Path) -> Result<Self, Failure> {
        let unreadable = |path: &Path, cause: &dyn std::fmt::Display| {
            let what = format!("cannot read bundle {}", dir.display());
            let why = format!("{}: {cause}", path.display());
            Failure::early(Code::BUNDLE_READ, what, why, "runc spec   # in the bundle's directory makes a config.json")
        };
        let dir = dir.canonicalize().map_err(|error| unreadable(dir, &error))?;
        let file = dir.join("config.json");
        let text = read_bounded(&file, CONFIG_BYTES_MAX).map_err(|cause| unreadable(&file, &cause))?;
        // Serde would take a list for a struct whose fields are all optional.
        if text.trim_ascii_start().first() == Some(&b'[') {
            return Err(unreadable(&file, &"is a list, and must be an object"));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(&text);
        let spec: Spec = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let cause = error.into_inner();
            if path == "." { unreadable(&file, &cause) } else { unreadable(&file, &format!("{path}: {cause}")) }
        })?;
        deserializer.end().map_err(|error| unreadable(&file, &error))?;
        Self::check(dir, spec).map_err(|wrong| {
            let what = format!("bundle {} cannot be run", file.parent().unwrap_or(&file).display());
            let why = format!("{}: {}: {}", file.display(), wrong.field, wrong.rule);
            Failure::early(Code::BUNDLE_SPEC, what, why, format!("correct {} in config.json", wrong.field))
        })
    }

    fn check(dir: PathBuf, mut spec: Spec) -> Result<Self, Wrong> {
        check_version(spec.version())?;
        let rootfs = check_root(&dir, &spec)?;
        check_process(
            spec.process().as_ref().ok_or_else(|| wrong("process", "is missing, so there is nothing to run"))?,
        )?;
        check_linux(&spec)?;
        for (key, value) in spec.annotations().iter().flatten() {
            if key.is_empty() || key.contains('\0') || value.contains('\0') {
                return Err(wrong("annotations", format!("key {key:?} is empty or has a NUL")));
            }
        }
        if let Some(hostname) = spec.hostname()
            && (hostname.len() > 64 || hostname.contains(['\0', '/', '\n']))
        {
            return Err(wrong("hostname", "is longer than 64 bytes or has a character that no host name may have"));
        }
        resolve_mounts(&dir, &mut spec)?;
        Ok(Self { dir, rootfs, spec })
    }
}

/// A field and the rule that it breaks.
#[derive(Debug, PartialEq, Eq)]
struct Wrong {
    field: String,
    rule: String,
}

fn wrong(field: impl Into<String>, rule: impl Into<String>) -> Wrong {
    Wrong { field: field.into(), rule: rule.into() }
}

/// Reads a regular file of at most `bytes_max` bytes. A FIFO in its place is not waited for.
pub(crate) fn read_bounded(file: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let opened = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file);
    let opened = opened.map_err(|error| error.to_string())?;
    if !opened.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut text = Vec::new();
    opened.take(bytes_max.saturating_add(1)).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > bytes_max {
        return Err(format!("is larger than {} KiB", bytes_max >> 10));
    }
    Ok(text)
}

fn check_version(version: &str) -> Result<(), Wrong> {
    let mut parts = version.split('-').next().unwrap_or_default().split('.');
    let numbers: Vec<Option<u32>> = parts.by_ref().map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => Err(wrong("ociVersion", format!("is {version:?}, and only version 1 is known"))),
        _ => Err(wrong("ociVersion", format!("is {version:?}, and must be a version as \"1.2.0\""))),
    }
}

fn check_root(dir: &Path, spec: &Spec) -> Result<PathBuf, Wrong> {
    let root = spec.root().as_ref().ok_or_else(|| wrong("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(wrong("root.path", "is empty"));
    }
    let joined = dir.join(root.path());
    let rootfs = joined.canonicalize().map_err(|error| wrong("root.path", format!("{}: {error}", joined.display())))?;
    if !rootfs.is_dir() {
        return Err(wrong("root.path", format!("{} is no directory", rootfs.display())));
    }
    if rootfs == Path::new("/") {
        return Err(wrong("root.path", "is the host's own root"));
    }
    Ok(rootfs)
}

fn check_process(process: &Process) -> Result<(), Wrong> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(wrong("process.args", "is empty, so there is nothing to run"));
    }
    if let Some(index) = args.iter().position(|arg| arg.contains('\0')) {
        return Err(wrong(format!("process.args[{index}]"), "has a NUL"));
    }
    for (index, variable) in process.env().iter().flatten().enumerate() {
        if variable.contains('\0') || variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return Err(wrong(format!("process.env[{index}]"), format!("{variable:?} is not of the form NAME=VALUE")));
        }
    }
    if !is_plain_absolute(process.cwd()) {
        return Err(wrong("process.cwd", format!("{:?} is no absolute path", process.cwd().display().to_string())));
    }
    let mut seen = BTreeSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        if !seen.insert(limit.typ().to_string()) {
            return Err(wrong(format!("process.rlimits[{index}]"), format!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(wrong(format!("process.rlimits[{index}]"), "soft is more than hard"));
        }
    }
    Ok(())
}

fn check_linux(spec: &Spec) -> Result<(), Wrong> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let mut seen = BTreeSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if !seen.insert(namespace.typ().to_string()) {
            return Err(wrong(field, format!("{} is there twice", namespace.typ())));
        }
        if namespace.path().as_ref().is_some_and(|path| !is_plain_absolute(path)) {
            return Err(wrong(format!("{field}.path"), "is no absolute path"));
        }
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        if !is_plain_absolute(device.path()) {
            return Err(wrong(format!("linux.devices[{index}].path"), "is no absolute path"));
        }
    }
    let resources = linux.resources().as_ref();
    if resources.and_then(|all| all.cpu().as_ref()).is_some_and(|cpu| cpu.period() == Some(0)) {
        return Err(wrong("linux.resources.cpu.period", "is 0"));
    }
    Ok(())
}

/// The OCI lets the source of a bind mount be relative to the bundle.
fn resolve_mounts(dir: &Path, spec: &mut Spec) -> Result<(), Wrong> {
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        if !is_plain_absolute(mount.destination()) {
            let shown = mount.destination().display().to_string();
            return Err(wrong(format!("{field}.destination"), format!("{shown:?} is no absolute path without \"..\"")));
        }
        let options = mount.options().as_deref().unwrap_or_default();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind");
        if !is_bind {
            continue;
        }
        let Some(source) = mount.source() else {
            return Err(wrong(format!("{field}.source"), "is missing, and this is a bind mount"));
        };
        let source = dir.join(source);
        if let Err(error) = source.metadata() {
            return Err(wrong(format!("{field}.source"), format!("{}: {error}", source.display())));
        }
        mount.set_typ(Some("bind".to_owned())).set_source(Some(source));
    }
    Ok(())
}

/// Absolute, without `..` and NUL.
fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path.as_os_str().as_encoded_bytes().contains(&0)
}
