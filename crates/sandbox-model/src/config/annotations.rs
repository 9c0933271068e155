//! What a pod may change by annotations (behaviour A15).
//!
//! The list is closed: the keys of [`keys::KEYS`] that name an annotation. Each is honoured only if the
//! administrator lists its last part in `enable_annotations`, spelt out: a pattern is a way to allow
//! more than one has thought of. What names a file or program of the host is never honoured, listed or
//! not.

use std::collections::BTreeMap;

use super::keys::{self, KEYS, Key, Kind};
use super::{SandboxConfig, kernel_params};

/// Annotations that configure a sandbox begin with this.
pub const PREFIX: &str = "io.katacontainers.config.";

/// Why an annotation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}{}: {reason}; {fix}", .value.as_deref().map(|value| format!(" = {value:?}")).unwrap_or_default())]
pub struct AnnotationError {
    /// The whole key.
    pub annotation: String,
    /// Its value, if the annotation is one that we honour: what others carry may be a secret.
    pub value: Option<String>,
    /// Why it is refused.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// Applies the annotations of a pod: all of them, or none.
///
/// # Errors
/// The first annotation below [`PREFIX`] that is unknown, not enabled, or no value for its key.
pub fn apply_annotations(
    config: &mut SandboxConfig,
    annotations: &BTreeMap<String, String>,
    enable: &[String],
) -> Result<(), AnnotationError> {
    let mut changed = config.clone();
    for (annotation, value) in annotations {
        let Some(rest) = annotation.strip_prefix(PREFIX) else {
            continue;
        };
        let refuse_with = |value: Option<&String>, reason: String, fix: String| AnnotationError {
            annotation: annotation.clone(),
            value: value.cloned(),
            reason,
            fix,
        };
        let refuse = |reason, fix| refuse_with(Some(value), reason, fix);
        let refuse_unseen = |reason, fix| refuse_with(None, reason, fix);
        let remove = || "remove the annotation".to_owned();
        let key = match key_of(rest) {
            Found::Settable(key) => key,
            Found::Fixed(key) => {
                let what = match key.kind {
                    Kind::File | Kind::OptionalFile | Kind::Program | Kind::BindMounts => "names a path of the host",
                    _ => "is for the administrator only",
                };
                return Err(refuse_unseen(format!("it {what} and is never honoured"), remove()));
            }
            Found::Nothing => {
                return Err(refuse_unseen("no such annotation is supported".to_owned(), remove()));
            }
        };
        let last = key.annotation.unwrap_or(key.name);
        if !enable.iter().any(|enabled| enabled == last) {
            let fix = format!("add {last:?} to enable_annotations of [hypervisor.qemu], or remove the annotation");
            return Err(refuse_unseen("it is not enabled on this host".to_owned(), fix));
        }
        if key.kind == Kind::KernelParams {
            kernel_params::check(value)
                .map_err(|why| refuse(why, "leave it to the administrator's file".to_owned()))?;
        }
        key.set_text(&mut changed, value)
            .map_err(|refusal| refuse(format!("expected {}", refusal.expected), refusal.fix))?;
    }
    *config = changed;
    Ok(())
}

enum Found {
    Settable(&'static Key),
    Fixed(&'static Key),
    Nothing,
}

/// The key of `hypervisor.default_max_vcpus`. Kata has the agent's timeout below `runtime`.
fn key_of(rest: &str) -> Found {
    let Some((section, last)) = rest.split_once('.') else {
        return Found::Nothing;
    };
    let in_section =
        |key: &&Key| key.section == section || (section == "runtime" && key.path() == "agent.create_container_timeout");
    if let Some(key) = KEYS.iter().filter(in_section).find(|key| key.annotation == Some(last)) {
        return Found::Settable(key);
    }
    match keys::find(rest) {
        Some(key) => Found::Fixed(key),
        None => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(annotation: &str, value: &str, enable: &[&str]) -> Result<SandboxConfig, AnnotationError> {
        let mut config = SandboxConfig::default();
        let enable: Vec<String> = enable.iter().map(|name| (*name).to_owned()).collect();
        let annotations = BTreeMap::from([(annotation.to_owned(), value.to_owned())]);
        apply_annotations(&mut config, &annotations, &enable).map(|()| config)
    }

    #[test]
    fn an_enabled_annotation_is_honoured() {
        let memory = "io.katacontainers.config.hypervisor.default_memory";
        assert_eq!(apply(memory, "512", &["default_memory"]).unwrap().hypervisor.default_memory, 512);
        let max = "io.katacontainers.config.hypervisor.default_max_vcpus";
        assert_eq!(apply(max, "7", &["default_max_vcpus"]).unwrap().hypervisor.default_maxvcpus, 7);
        let timeout = "io.katacontainers.config.runtime.create_container_timeout";
        assert_eq!(apply(timeout, "9", &["create_container_timeout"]).unwrap().agent.create_container_timeout, 9);
        let modules = "io.katacontainers.config.agent.kernel_modules";
        let config = apply(modules, "e1000 a=1; i915", &["kernel_modules"]).unwrap();
        assert_eq!(config.agent.kernel_modules, ["e1000 a=1", "i915"]);
    }

    #[test]
    fn a_name_must_be_listed_exactly() {
        let memory = "io.katacontainers.config.hypervisor.default_memory";
        for enable in [&[][..], &[".*"], &["default_mem"], &["default_memory2"], &["DEFAULT_MEMORY"]] {
            let error = apply(memory, "512", enable).unwrap_err();
            assert!(error.reason.contains("not enabled"), "{error}");
            assert!(error.fix.contains("\"default_memory\""), "{error}");
        }
    }

    #[test]
    fn paths_are_never_honoured() {
        for name in ["path", "kernel", "initrd", "image", "virtio_fs_daemon", "vsock_daemon"] {
            let error = apply(&format!("{PREFIX}hypervisor.{name}"), "/tmp/evil", &[name]).unwrap_err();
            assert!(error.reason.contains("names a path"), "{error}");
        }
        let mounts = format!("{PREFIX}runtime.sandbox_bind_mounts");
        assert!(apply(&mounts, "/etc", &["sandbox_bind_mounts"]).unwrap_err().reason.contains("names a path"));
        let enable = format!("{PREFIX}hypervisor.enable_annotations");
        assert!(apply(&enable, "kernel", &["enable_annotations"]).unwrap_err().reason.contains("administrator"));
        assert!(
            KEYS.iter()
                .filter(|key| key.annotation.is_some())
                .all(|key| { !matches!(key.kind, Kind::File | Kind::OptionalFile | Kind::Program | Kind::BindMounts) })
        );
    }

    #[test]
    fn a_bad_value_changes_nothing() {
        let mut config = SandboxConfig::default();
        let annotations = BTreeMap::from([
            (format!("{PREFIX}hypervisor.default_memory"), "512".to_owned()),
            (format!("{PREFIX}hypervisor.network_queues"), "300".to_owned()),
        ]);
        let enable = ["default_memory".to_owned(), "network_queues".to_owned()];
        let error = apply_annotations(&mut config, &annotations, &enable).unwrap_err();
        assert_eq!(
            error.to_string(),
            "annotation io.katacontainers.config.hypervisor.network_queues = \"300\": \
             expected a whole number from 1 to 256; set it to 256"
        );
        assert_eq!(config, SandboxConfig::default());
    }

    #[test]
    fn foreign_annotations_are_not_ours_to_judge() {
        assert!(apply("io.kubernetes.cri.container-type", "sandbox", &[]).is_ok());
        assert!(apply("io.katacontainers.config.hypervisor.nonsense", "1", &["nonsense"]).is_err());
    }
}
