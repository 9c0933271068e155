//! What a pod or image says, and what the host made of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lifecycle_tests::simulated::{bind, boot, container, create, in_virtual_time, system};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use sandbox_model::config::SandboxConfig;
use sandbox_model::config::annotations::{PREFIX, apply_annotations};
use sandbox_model::config::layers::{Layer, load};
use sandbox_model::request::{DevicesRequest, VolumesRequest};
use simulation::World;

fn annotate(key: &str, value: &str, enable: &[&str]) -> Result<SandboxConfig, String> {
    let mut config = SandboxConfig::default();
    let annotations = BTreeMap::from([(format!("{PREFIX}{key}"), value.to_owned())]);
    let enable: Vec<String> = enable.iter().map(|name| (*name).to_owned()).collect();
    apply_annotations(&mut config, &annotations, &enable).map_err(|error| error.to_string())?;
    Ok(config)
}

fn device(kind: LinuxDeviceType, path: &str, major: i64, minor: i64) -> LinuxDevice {
    LinuxDeviceBuilder::default().typ(kind).path(path).major(major).minor(minor).build().unwrap()
}

/// Annotations named the programs that the host runs as root.
#[test]
fn cve_2020_27151_no_annotation_names_a_program() {
    for key in ["path", "virtio_fs_daemon", "vsock_daemon", "jailer_path", "kernel", "initrd", "image", "firmware"] {
        let refused = annotate(&format!("hypervisor.{key}"), "/tmp/evil", &[key, "path", ".*"]);
        assert!(refused.unwrap_err().contains("annotation"), "{key}");
    }
}

/// The default list of annotations let a pod add virtiofsd's arguments (`-o source=/`) and kernel
/// parameters (the agent's debug console).
#[test]
fn ghsa_rr59_xxvx_96qr_no_annotation_adds_arguments() {
    assert!(SandboxConfig::default().hypervisor.enable_annotations.is_empty(), "nothing is enabled by default");
    let arguments = r#"["-o", "source=/", "--sandbox=none"]"#;
    annotate("hypervisor.virtio_fs_extra_args", arguments, &["virtio_fs_extra_args"]).unwrap_err();
    for parameters in ["agent.debug_console", "quiet agent.debug_console_vport=1026", "systemd.unit=rescue.target"] {
        let refused = annotate("hypervisor.kernel_params", parameters, &["kernel_params"]).unwrap_err();
        assert!(refused.contains("not a kernel parameter that a pod may name"), "{refused}");
    }
    annotate("hypervisor.machine_type", "q35,firmware=/etc/shadow", &["machine_type"]).unwrap_err();
}

/// `sandbox_bind_mounts` was outside of the list of allowed annotations: any host path into the guest.
#[test]
fn pr_13415_no_annotation_shares_a_host_path() {
    for value in ["/etc", "/:rw", "/etc/shadow:ro"] {
        annotate("runtime.sandbox_bind_mounts", value, &["sandbox_bind_mounts", ".*"]).unwrap_err();
    }
}

/// A policy matched more than it said.
#[test]
fn ghsa_fmg6_v47x_52wr_a_name_is_matched_exactly() {
    for pattern in [".*", "default_.*", "default_memory|kernel_params", "*", "default_mem", "DEFAULT_MEMORY", ""] {
        annotate("hypervisor.default_memory", "512", &[pattern]).unwrap_err();
    }
    assert_eq!(
        annotate("hypervisor.default_memory", "512", &["default_memory"]).unwrap().hypervisor.default_memory,
        512
    );
}

/// A `+` in a sysctl's value smuggled in one more.
#[test]
fn cve_2022_0811_a_value_is_one_value() {
    for value in ["quiet\ninit=/bin/sh", "loglevel=3+init=/bin/sh", "loglevel=\"3 init=/bin/sh\""] {
        annotate("hypervisor.kernel_params", value, &["kernel_params"]).unwrap_err();
    }
    let two_lines = "[hypervisor.qemu]\nkernel_params = \"quiet\\ninit=/bin/sh\"\n";
    load(&[Layer::file("file", two_lines).unwrap()]).unwrap_err();
}

/// A guest's protection could be left out without anybody being told.
#[test]
fn cve_2025_58354_a_protection_that_we_do_not_have_is_refused() {
    for key in ["confidential_guest", "sev_snp_guest", "rootless", "seccompsandbox", "selinux_label"] {
        let value = if key.contains("sandbox") || key.contains("label") { "\"on\"" } else { "true" };
        let text = format!("[hypervisor.qemu]\n{key} = {value}\n");
        let refused = load(&[Layer::file("file", &text).unwrap()]).unwrap_err();
        assert!(refused.to_string().contains("weaker"), "{key}: {refused}");
    }
}

/// Values of an image (a volume's path, a label) became paths and programs of the host.
#[test]
fn cve_2022_23648_cve_2026_53488_a_destination_names_nothing_on_the_host() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "image").await.unwrap();
        boot(&sandbox).await.unwrap();
        let hostile = ["/../../../etc", "/a/../../b", "/binary:///bin/sh", "/\u{202e}x", "/a\nb"];
        let mounts = hostile.iter().map(|destination| bind("/srv/a", destination, &["rbind"])).collect();
        let request = VolumesRequest { container: container("c"), mounts };
        sandbox.set_up_volumes(request).await.unwrap();
        let own = Path::new("/run/simulated/image");
        for object in world.list().iter().filter(|object| object.contains("sandbox-0")) {
            let path = Path::new(object.split_once(' ').unwrap().1);
            assert!(path.starts_with(own) && object.is_ascii() && !object.contains(".."), "{object:?}");
        }
    });
}

/// `--privileged` forwarded the host's devices by default.
#[test]
fn kata_runtime_1568_pr_13857_no_device_of_the_host_is_forwarded_by_default() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "privileged").await.unwrap();
        boot(&sandbox).await.unwrap();
        let before = world.list();
        let request = |devices| DevicesRequest { container: container("c"), devices, resources: None };
        let plain = vec![
            device(LinuxDeviceType::C, "/dev/mem", 1, 1),
            device(LinuxDeviceType::C, "/dev/kvm", 10, 232),
            device(LinuxDeviceType::C, "/dev/fuse", 10, 229),
            device(LinuxDeviceType::P, "/dev/pipe", 0, 0),
        ];
        assert!(sandbox.set_up_devices(request(plain)).await.unwrap().devices.is_empty());
        let vfio = vec![device(LinuxDeviceType::C, "/dev/vfio/12", 241, 0)];
        let refused = sandbox.set_up_devices(request(vfio)).await.unwrap_err();
        assert!(refused.to_string().contains("vfio_devices"), "{refused}");
        assert_eq!(world.list(), before);
    });
}
