//! Which configuration counts: file, drop-ins, environment, flags; later ones win.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandbox_model::config::keys::KEYS;
use sandbox_model::config::layers::{ConfigError, Layer, Loaded, load};

use crate::cli::Global;
use crate::output::{Code, Failure};

/// Where Kata looks, in its order.
const KATA_FILES: [&str; 3] = [
    "/etc/kata-containers/runtime-rs/configuration.toml",
    "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml",
];
/// A configuration is a few KiB; more than this is something else.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Loads what counts for this call.
pub(crate) fn effective(global: &Global) -> Result<Loaded, Failure> {
    let mut layers = built_in(&[("hypervisor.vsock_daemon", "../tools/bin/vhost-device-vsock")]);
    match find_file(global) {
        Some(file) => layers.extend(file_layers(&file)?),
        // A file brings its own guest, and a guest has one root.
        None => layers.extend(built_in(&[("hypervisor.kernel", "vmlinux"), ("hypervisor.initrd", "initrd.cpio")])),
    }
    for key in KEYS {
        let variable = key.variable();
        let Some(text) = std::env::var_os(&variable) else { continue };
        layers.push(Layer::setting(&variable, &key.path(), &utf8(&variable, text)?).map_err(refused)?);
    }
    for setting in &global.settings {
        let Some((path, text)) = setting.split_once('=') else {
            let why = format!("--set {setting}: there is no = between key and value");
            return Err(Failure::early(Code::CONFIG, "cannot read the command line", why, "--set KEY=VALUE"));
        };
        layers.push(Layer::setting("--set", path.trim(), text).map_err(refused)?);
    }
    load(&layers).map_err(refused)
}

/// Loads one file and its drop-ins, for `config check`.
pub(crate) fn of_file(file: &Path) -> Result<Loaded, Failure> {
    load(&file_layers(file)?).map_err(refused)
}

/// Says once what was not used as written.
pub(crate) fn warn(loaded: &Loaded) {
    if !loaded.notes.is_empty() {
        tracing::warn!("configuration: {}", loaded.notes);
    }
}

fn refused(error: ConfigError) -> Failure {
    let advice = match &error {
        ConfigError::Value { key, .. } => format!("sandboxctl config explain {key}"),
        ConfigError::NoSuchKey { .. } => "sandboxctl config show".to_owned(),
        ConfigError::Conflict { .. } => "sandboxctl config show   # where each value comes from".to_owned(),
        ConfigError::Syntax { origin, .. } => format!("correct {origin}, then: sandboxctl config check {origin}"),
    };
    Failure::early(Code::CONFIG, "the configuration was refused", error, advice)
}

fn utf8(variable: &str, text: OsString) -> Result<String, Failure> {
    text.into_string().map_err(|_| {
        let why = format!("{variable} is not UTF-8");
        Failure::early(Code::CONFIG, "the configuration was refused", why, format!("unset {variable}"))
    })
}

/// A file that was named must be there; the well-known ones may be.
fn find_file(global: &Global) -> Option<PathBuf> {
    let named = || std::env::var_os("KATA_CONF_FILE").filter(|text| !text.is_empty()).map(PathBuf::from);
    let known = || KATA_FILES.iter().map(PathBuf::from).find(|file| file.exists());
    global.config.clone().or_else(named).or_else(known)
}

fn file_layers(file: &Path) -> Result<Vec<Layer>, Failure> {
    let mut layers = vec![file_layer(file)?];
    let drop_ins = file.parent().unwrap_or(Path::new("")).join("config.d");
    let entries = match fs::read_dir(&drop_ins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(layers),
        Err(error) => return Err(unreadable(&drop_ins, error)),
    };
    let paths: Result<Vec<PathBuf>, io::Error> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|error| unreadable(&drop_ins, error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    for path in paths {
        layers.push(file_layer(&path)?);
    }
    Ok(layers)
}

fn file_layer(file: &Path) -> Result<Layer, Failure> {
    let size = fs::metadata(file).map_err(|error| unreadable(file, error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(file, io::Error::other(format!("{size} bytes are no configuration"))));
    }
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, error))?;
    Layer::file(file.display().to_string(), &text).map_err(refused)
}

fn unreadable(file: &Path, error: io::Error) -> Failure {
    let why = format!("read {}: {error}", file.display());
    Failure::early(
        Code::CONFIG,
        "cannot read the configuration",
        why,
        "--config FILE, or unset SANDBOXCTL_CONFIG and KATA_CONF_FILE",
    )
}

/// What this project builds for a first run, as far as it is there: keys with files beside the guest.
fn built_in(files: &[(&str, &str)]) -> Vec<Layer> {
    let Some(dir) = guest_dir() else { return Vec::new() };
    let setting = |key: &str, file: &str| {
        let path = dir.join(file).canonicalize().ok()?;
        Layer::setting("built-in", key, path.to_str()?).ok()
    };
    files.iter().filter_map(|(key, file)| setting(key, file)).collect()
}

/// `target/guest` below the current directory, or beside the program (`target/debug/sandboxctl`).
fn guest_dir() -> Option<PathBuf> {
    let here = std::env::current_dir().ok().map(|dir| dir.join("target/guest"));
    let program = std::env::current_exe().ok();
    let beside = program.iter().flat_map(|path| path.ancestors().skip(1).take(3)).map(|dir| dir.join("guest"));
    here.into_iter().chain(beside).find(|dir| dir.join("vmlinux").is_file())
}
