//! Z2: a configuration and annotations become the effective configuration.

use std::collections::BTreeMap;

use sandbox_model::config::SandboxConfig;
use sandbox_model::config::annotations::{PREFIX, apply_annotations};
use sandbox_model::config::keys::KEYS;
use sandbox_model::config::layers::{Layer, load, render};

/// A file, a line with nothing but `---`, and annotations, each `key=value` on a line: any file is
/// refused or loaded, what is loaded is rendered and loads into the same, and no annotation changes
/// what the file does not enable.
///
/// # Panics
/// When that does not hold.
pub fn z2_configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (file, said) = text.split_once("\n---\n").unwrap_or((text, ""));
    let Ok(layer) = Layer::file("fuzz", file) else { return };
    let Ok(loaded) = load(&[layer]) else { return };
    let rendered = render(&loaded);
    let again = Layer::file("rendered", &rendered).and_then(|layer| load(&[layer]));
    assert_eq!(again.expect("what is rendered loads").config, loaded.config, "{rendered}");
    let annotations: BTreeMap<String, String> = said
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
        .collect();
    let mut config = loaded.config.clone();
    let enabled = loaded.config.hypervisor.enable_annotations.clone();
    let outcome = apply_annotations(&mut config, &annotations, &enabled);
    if outcome.is_err() {
        assert_eq!(config, loaded.config, "refused, and yet changed");
    }
    only_what_is_enabled(&loaded.config, &config, &enabled);
}

fn only_what_is_enabled(before: &SandboxConfig, after: &SandboxConfig, enabled: &[String]) {
    for key in KEYS {
        let may_change = key.annotation.is_some_and(|name| enabled.iter().any(|enabled| enabled == name));
        let (was, is) = (key.value(before).to_string(), key.value(after).to_string());
        assert!(may_change || was == is, "{}: {was} became {is}", key.path());
    }
    let machine = &after.hypervisor.machine_type;
    assert!(!machine.contains([',', '=', '/', ' ']), "{machine:?} is more than a machine");
}
