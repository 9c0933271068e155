//! Every annotation that a pod may try (rules R6 and R7, test S7), against a table of what must come
//! of it: allowed, not allowed, a look-alike, a value that leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use sandbox_model::config::SandboxConfig;
use sandbox_model::config::annotations::{PREFIX, apply_annotations};
use sandbox_model::config::keys::{KEYS, UNSUPPORTED};
use serde_json::{Value, json};

/// An annotation that can be enabled, a value for it, and what then stands where.
const SETTABLE: [(&str, &str, &str, &str); 19] = [
    ("hypervisor.kernel_params", "quiet loglevel=3", "/hypervisor/kernel_params", r#""quiet loglevel=3""#),
    ("hypervisor.machine_type", "pc-q35-7.2", "/hypervisor/machine_type", r#""pc-q35-7.2""#),
    ("hypervisor.default_vcpus", "3", "/hypervisor/default_vcpus", "3.0"),
    ("hypervisor.default_max_vcpus", "7", "/hypervisor/default_maxvcpus", "7"),
    ("hypervisor.default_memory", "512", "/hypervisor/default_memory", "512"),
    ("hypervisor.memory_slots", "4", "/hypervisor/memory_slots", "4"),
    ("hypervisor.block_device_cache_direct", "true", "/hypervisor/block_device_cache_direct", "true"),
    ("hypervisor.network_queues", "2", "/hypervisor/network_queues", "2"),
    ("hypervisor.shared_fs", "none", "/hypervisor/shared_fs", r#""none""#),
    ("hypervisor.virtio_fs_cache", "never", "/hypervisor/virtio_fs_cache", r#""never""#),
    ("agent.kernel_modules", "e1000 a=1", "/agent/kernel_modules", r#"["e1000 a=1"]"#),
    ("agent.create_container_timeout", "9", "/agent/create_container_timeout", "9"),
    ("runtime.create_container_timeout", "9", "/agent/create_container_timeout", "9"),
    ("runtime.internetworking_model", "none", "/runtime/internetworking_model", r#""none""#),
    ("runtime.disable_new_netns", "true", "/runtime/disable_new_netns", "true"),
    ("runtime.sandbox_cgroup_only", "true", "/runtime/sandbox_cgroup_only", "true"),
    ("runtime.enable_vcpus_pinning", "true", "/runtime/enable_vcpus_pinning", "true"),
    ("runtime.disable_guest_seccomp", "false", "/runtime/disable_guest_seccomp", "false"),
    ("runtime.vfio_mode", "vfio", "/runtime/vfio_mode", r#""vfio""#),
];

/// Values that would reach a file, a program, another option or another line.
const ELSEWHERE: [&str; 13] = [
    "/etc/shadow",
    "../../etc/passwd",
    "q35,kernel=/etc/shadow",
    "q35,initrd=/etc/shadow,dumpdtb=/etc/passwd",
    "virtio-fs -o source=/",
    "--sandbox=none",
    "quiet init=/bin/sh",
    "a\nb",
    "a\0b",
    "$(reboot)",
    "`reboot`",
    "99999999999999999999",
    "-1",
];

/// Keys that no list enables, whatever it says: they name files, programs and rights of the host.
const NEVER: [&str; 22] = [
    "hypervisor.path",
    "hypervisor.kernel",
    "hypervisor.initrd",
    "hypervisor.image",
    "hypervisor.rootfs_type",
    "hypervisor.default_maxmemory",
    "hypervisor.default_bridges",
    "hypervisor.block_device_driver",
    "hypervisor.virtio_fs_daemon",
    "hypervisor.virtio_fs_queue_size",
    "hypervisor.vsock_daemon",
    "hypervisor.accelerator",
    "hypervisor.cold_plug_vfio",
    "hypervisor.vfio_devices",
    "hypervisor.enable_annotations",
    "agent.server_port",
    "agent.reconnect_timeout_ms",
    "agent.health_check_request_timeout_ms",
    "runtime.sandbox_bind_mounts",
    "runtime.static_sandbox_resource_mgmt",
    "hypervisor.overhead_vcpus",
    "hypervisor.overhead_memory",
];

fn apply(annotation: &str, value: &str, enable: &[&str]) -> Result<Value, String> {
    let mut config = SandboxConfig::default();
    let annotations = BTreeMap::from([(annotation.to_owned(), value.to_owned())]);
    let enable: Vec<String> = enable.iter().map(|name| (*name).to_owned()).collect();
    let applied = apply_annotations(&mut config, &annotations, &enable).map_err(|error| error.to_string());
    if applied.is_err() {
        assert_eq!(config, SandboxConfig::default(), "{annotation} = {value:?}: refused, and yet changed");
    }
    applied.map(|()| serde_json::to_value(&config).unwrap())
}

fn untouched() -> Value {
    serde_json::to_value(SandboxConfig::default()).unwrap()
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap()
}

#[test]
fn the_table_names_every_key() {
    let settable: BTreeSet<_> = SETTABLE.iter().map(|(key, ..)| last(key)).collect();
    let ours: BTreeSet<_> = KEYS.iter().filter_map(|key| key.annotation).collect();
    assert_eq!(settable, ours);
    let never: BTreeSet<_> = NEVER.into_iter().map(str::to_owned).collect();
    let deadlines = |path: &String| path.starts_with("runtime.deadlines.");
    let fixed = KEYS.iter().filter(|key| key.annotation.is_none()).map(|key| key.path());
    assert_eq!(never, fixed.filter(|path| !deadlines(path)).collect());
}

#[test]
fn what_is_enabled_changes_one_field_and_nothing_else() {
    for (key, value, pointer, expected) in SETTABLE {
        let mut config = apply(&format!("{PREFIX}{key}"), value, &[last(key)]).unwrap();
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(config.pointer(pointer), Some(&expected), "{key}");
        let before = untouched();
        assert_ne!(before.pointer(pointer), Some(&expected), "{key}: the value is the default");
        *config.pointer_mut(pointer).unwrap() = before.pointer(pointer).unwrap().clone();
        assert_eq!(config, before, "{key} changes more than it says");
    }
}

#[test]
fn what_is_not_enabled_by_its_exact_name_is_refused() {
    for (key, value, ..) in SETTABLE {
        let (annotation, name) = (format!("{PREFIX}{key}"), last(key));
        let (upper, longer, spaced) = (name.to_uppercase(), format!("{name}2"), format!(" {name}"));
        let (dotted, shorter) = (format!("hypervisor.{name}"), &name[..name.len() - 1]);
        let lists: [&[&str]; 10] = [
            &[],
            &[".*"],
            &["*"],
            &[""],
            &[&upper],
            &[&longer],
            &[shorter],
            &[&spaced],
            &[&dotted, &annotation],
            &["kernel_param|default_.*|.+"],
        ];
        for list in lists {
            let error = apply(&annotation, value, list).unwrap_err();
            assert!(error.contains("not enabled"), "{key} with {list:?}: {error}");
        }
    }
}

#[test]
fn a_look_alike_is_no_annotation_of_ours() {
    for (key, value, ..) in SETTABLE {
        let name = last(key);
        let (section, _) = key.split_once('.').unwrap();
        for alike in [
            format!("{PREFIX}{section}.{}", name.to_uppercase()),
            format!("{PREFIX}{section}.{name} "),
            format!("{PREFIX}{section}.{name}\u{0}"),
            format!("{PREFIX}{section}.{name}\u{200b}"),
            format!("{PREFIX}{section}.qemu.{name}"),
            format!("{PREFIX}{section}..{name}"),
            format!("{PREFIX}{section}.{}", name.replace('_', "-")),
            format!("{PREFIX}{name}"),
            format!("{PREFIX}elsewhere.{name}"),
            format!("{PREFIX}{section}.{}", name.replacen('e', "\u{0435}", 1)),
        ] {
            if alike == format!("{PREFIX}{key}") {
                // Nothing in it to be replaced.
                continue;
            }
            let outcome = apply(&alike, value, &[name, last(&alike), &alike]);
            assert!(outcome.is_err(), "{alike:?} was honoured");
        }
        for foreign in [format!("io.katacontainers.Config.{key}"), format!("x{PREFIX}{key}"), key.to_owned()] {
            assert_eq!(apply(&foreign, value, &[name]).unwrap(), untouched(), "{foreign:?}");
        }
    }
}

#[test]
fn no_value_leads_to_a_file_a_program_or_another_option() {
    for (key, _, pointer, _) in SETTABLE {
        for value in ELSEWHERE {
            if key == "agent.kernel_modules" && ["quiet init=/bin/sh", "99999999999999999999"].contains(&value) {
                // A module of that name with a parameter of that name: it is the guest's own.
                continue;
            }
            let Ok(config) = apply(&format!("{PREFIX}{key}"), value, &[last(key)]) else { continue };
            panic!("{key} = {value:?} was honoured as {:?}", config.pointer(pointer));
        }
    }
}

#[test]
fn what_names_the_host_is_refused_even_if_it_is_enabled() {
    let unsupported = UNSUPPORTED.iter().map(|key| format!("{}.{}", key.section, key.name));
    for key in NEVER.iter().map(|key| (*key).to_owned()).chain(unsupported) {
        for value in ["/tmp/evil", "1", "true", "0000:00:1f.0", "-o source=/ --sandbox=none"] {
            let outcome = apply(&format!("{PREFIX}{key}"), value, &[last(&key), &key]);
            let error = outcome.expect_err(&key);
            assert!(!error.contains(value) || value.len() == 1 || value == "true", "{key}: {error}");
        }
    }
}

#[test]
fn one_bad_annotation_takes_the_good_ones_with_it() {
    let mut config = SandboxConfig::default();
    let annotations = BTreeMap::from([
        (format!("{PREFIX}hypervisor.default_memory"), "512".to_owned()),
        (format!("{PREFIX}hypervisor.kernel_params"), "init=/bin/sh".to_owned()),
    ]);
    let enable = ["default_memory", "kernel_params"].map(str::to_owned);
    let error = apply_annotations(&mut config, &annotations, &enable).unwrap_err();
    assert!(error.to_string().contains("\"init\""), "{error}");
    assert_eq!(json!(config), untouched());
}
