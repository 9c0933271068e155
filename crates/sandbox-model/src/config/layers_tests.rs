use super::super::keys::Kind;
use super::*;

const RUST: &str = include_str!("../../tests/data/kata-rust.toml");
const GO: &str = include_str!("../../tests/data/kata-go.toml");

fn from(text: &str) -> Result<Loaded, ConfigError> {
    load(&[Layer::file("c.toml", text)?])
}

#[test]
fn a_configuration_of_katas_rust_runtime_loads() {
    let loaded = from(RUST).unwrap();
    let vm = &loaded.config.hypervisor;
    assert_eq!(vm.path.to_str(), Some("/opt/kata/bin/qemu-system-x86_64"));
    assert_eq!(vm.block_device_driver, "virtio-blk-pci");
    assert!(loaded.config.runtime.static_sandbox_resource_mgmt && loaded.config.runtime.sandbox_cgroup_only);
    assert_eq!(loaded.config.runtime.sandbox_bind_mounts[1].source.to_str(), Some("/var/cache/models"));
    assert_eq!(loaded.config.agent.create_container_timeout, 60);
    assert_eq!(loaded.notes.unknown, BTreeSet::new());
    let text = loaded.notes.to_string();
    assert!(text.contains("ignored here: agent.dial_timeout_ms"), "{text}");
    assert!(text.contains("hypervisor.virtio_fs_extra_args"), "{text}");
    assert!(text.contains("block_device_driver = \"virtio-scsi\" is read as \"virtio-blk-pci\""), "{text}");
}

#[test]
fn a_configuration_of_katas_go_runtime_loads() {
    let loaded = from(GO).unwrap();
    assert_eq!(loaded.config.agent.create_container_timeout, 60, "moved from [runtime]");
    assert_eq!(loaded.config.hypervisor.kernel_params, "quiet");
    assert_eq!(loaded.notes.unknown, BTreeSet::from(["hypervisor.disable_nesting_checks".to_owned()]));
    for ignored in ["[factory]", "[hypervisor.clh]", "hypervisor.hotplug_vfio"] {
        assert!(loaded.notes.ignored.contains(ignored), "{ignored} in {}", loaded.notes);
    }
}

#[test]
fn a_later_layer_wins_and_its_origin_is_known() {
    let layers = [
        Layer::file("base.toml", "[hypervisor.qemu]\ndefault_memory = 512\nmemory_slots = 3").unwrap(),
        Layer::file("config.d/10.toml", "[hypervisor.qemu]\ndefault_memory = 1024").unwrap(),
        Layer::setting("SANDBOXCTL_AGENT_SERVER_PORT", "agent.server_port", "2048").unwrap(),
        Layer::setting("--set", "hypervisor.qemu.default_vcpus", "1.5").unwrap(),
    ];
    let loaded = load(&layers).unwrap();
    assert_eq!(loaded.config.hypervisor.default_memory, 1024);
    let origin = |path| loaded.origin(keys::find(path).unwrap());
    assert_eq!(origin("hypervisor.default_memory"), "config.d/10.toml");
    assert_eq!(origin("hypervisor.memory_slots"), "base.toml");
    assert_eq!(origin("agent.server_port"), "SANDBOXCTL_AGENT_SERVER_PORT");
    assert_eq!(origin("hypervisor.default_vcpus"), "--set");
    assert_eq!(origin("runtime.vfio_mode"), "default");
}

#[test]
fn a_wrong_value_is_refused_with_key_value_range_and_fix() {
    let cases = [
        (
            "hypervisor.qemu",
            "network_queues = 0",
            "network_queues = 0: expected a whole number from 1 to 256; set it to 1",
        ),
        ("hypervisor.qemu", "network_queues = \"4\"", "write the number without quotes"),
        ("hypervisor.qemu", "default_vcpus = -1", "expected a number from 0.01 to 256; set it to 0.01"),
        ("hypervisor.qemu", "default_vcpus = nan", "write a number"),
        ("hypervisor.qemu", "default_memory = 8", "set it to 64"),
        ("hypervisor.qemu", "default_bridges = 6", "set it to 5"),
        ("hypervisor.qemu", "virtio_fs_queue_size = 1000", "a power of two from 2 to 1024"),
        ("hypervisor.qemu", "shared_fs = \"virtio-9p\"", "expected one of virtio-fs, none; set it to \"virtio-fs\""),
        ("hypervisor.qemu", "kernel = \"boot/vmlinux\"", "begin the path with /"),
        ("hypervisor.qemu", "path = \"./qemu\"", "or give the bare name"),
        ("hypervisor.qemu", "kernel_params = \"a\\nb\"", "remove line breaks"),
        ("hypervisor.qemu", "cold_plug_vfio = \"switch-port\"", "no-port or root-port"),
        ("hypervisor.qemu", "confidential_guest = true", "remove the key"),
        ("agent.kata", "policy = \"p\"", "remove the key"),
        ("agent.kata", "kernel_modules = \"e1000\"", "write a list"),
        ("runtime", "internetworking_model = \"macvtap\"", "one of tcfilter, none"),
        ("runtime", "sandbox_cgroup_only = \"true\"", "true or false, without quotes"),
        ("runtime", "sandbox_bind_mounts = [\"etc\"]", "begin \"etc\" with /"),
        ("runtime", "hypervisor_name = \"clh\"", "expected qemu"),
        ("runtime.deadlines", "step_ms = 0", "runtime.deadlines.step_ms = 0"),
    ];
    for (table, line, expected) in cases {
        let text = from(&format!("[{table}]\n{line}\n")).expect_err(line).to_string();
        assert!(text.starts_with("c.toml: ") && text.contains(expected), "{line}: {text}");
    }
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    let error = from("[runtime]\nvfio_mode = \n").unwrap_err();
    assert!(matches!(&error, ConfigError::Syntax { line: 2, .. }), "{error}");
    assert!(error.to_string().starts_with("c.toml: line 2: "), "{error}");
}

#[test]
fn values_must_go_together() {
    let both = "[hypervisor.qemu]\nimage = \"/a\"\ninitrd = \"/b\"";
    assert!(from(both).unwrap_err().to_string().contains("one root"));
    let few = "[hypervisor.qemu]\ndefault_vcpus = 2.5\ndefault_maxvcpus = 2";
    assert_eq!(
        from(few).unwrap_err().to_string(),
        "hypervisor.default_vcpus = 2.5 and hypervisor.default_maxvcpus = 2 do not go together: \
         more than the maximum; raise the maximum, or set it to 0 for as many as the host has"
    );
    assert!(from("[hypervisor.qemu]\ndefault_memory = 512\ndefault_maxmemory = 256").is_err());
}

#[test]
fn zero_and_empty_ask_for_the_default_where_kata_says_so() {
    let text = "[hypervisor.qemu]\ndefault_vcpus = 0\ndefault_memory = 0\nshared_fs = \"\"\nvirtio_fs_daemon = \"\"\nimage = \"\"";
    assert_eq!(from(text).unwrap().config, SandboxConfig::default());
}

#[test]
fn patterns_in_enable_annotations_are_named() {
    let loaded = from("[hypervisor.qemu]\nenable_annotations = [\".*\", \"kernel_params\"]").unwrap();
    assert_eq!(loaded.notes.replaced.len(), 1);
    assert!(loaded.notes.to_string().contains("\".*\" matches nothing"), "{}", loaded.notes);
}

#[test]
fn an_unknown_flag_key_is_refused() {
    let error = Layer::setting("--set", "hypervisor.defualt_memory", "1").unwrap_err();
    assert!(error.to_string().contains("no key \"hypervisor.defualt_memory\""));
}

#[test]
fn what_is_rendered_loads_into_the_same_configuration() {
    for text in [RUST, GO, ""] {
        let loaded = from(text).unwrap();
        let again = from(&render(&loaded)).unwrap();
        assert_eq!(again.config, loaded.config);
        assert!(again.notes.is_empty(), "{}", again.notes);
    }
}

#[test]
fn every_key_takes_the_ends_of_its_range() {
    for key in KEYS {
        let ends: Vec<toml::Value> = match key.kind {
            Kind::Integer { min, max, .. } | Kind::PowerOfTwo { min, max } => {
                vec![min.into(), max.into()]
            }
            Kind::Fraction { min, max } => vec![min.into(), max.into()],
            Kind::Choice { words, .. } => words.iter().map(|word| (*word).into()).collect(),
            Kind::Flag => vec![true.into(), false.into()],
            Kind::ColdPlug => vec!["root-port".into(), "no-port".into()],
            Kind::Words | Kind::Modules => vec![toml::Value::Array(vec!["a".into()])],
            Kind::BindMounts => vec![toml::Value::Array(vec!["/a:rw".into()])],
            Kind::KernelParams | Kind::File | Kind::OptionalFile | Kind::Program => vec!["/a".into()],
            Kind::Word => vec!["q35".into()],
            Kind::PciAddresses => vec![toml::Value::Array(vec!["0000:3b:00.1".into()])],
        };
        for end in ends {
            let mut config = SandboxConfig::default();
            let Checked::Store(value) = key.kind.check(&end).unwrap() else { panic!("{}", key.path()) };
            key.store(&mut config, value).unwrap_or_else(|refusal| panic!("{}: {refusal:?}", key.path()));
            assert_eq!(key.value(&config).to_string(), end.to_string(), "{}", key.path());
        }
    }
}

#[test]
fn no_key_is_listed_twice_and_every_field_has_one() {
    let mut paths: Vec<_> = KEYS.iter().map(Key::path).collect();
    paths.extend(UNSUPPORTED.iter().map(|key| format!("{}.{}", key.section, key.name)));
    let count = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), count);
    let config = serde_json::to_value(SandboxConfig::default()).unwrap();
    for (section, fields) in config.as_object().unwrap() {
        for field in fields.as_object().unwrap().keys().filter(|field| *field != "deadlines") {
            assert!(keys::find(&format!("{section}.{field}")).is_some(), "{section}.{field} has no key");
        }
    }
    for field in config["runtime"]["deadlines"].as_object().unwrap().keys() {
        assert!(keys::find(&format!("runtime.deadlines.{field}")).is_some(), "{field} has no key");
    }
}
