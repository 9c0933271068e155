//! The spec as the guest's agent shall get it (behaviour A2). A pure function.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, LinuxNamespaceType, LinuxResources, Mount, Spec};
use sandbox_model::config::{RuntimeConfig, VfioMode};
use sandbox_model::request::{AppliedResources, GuestRootfs, GuestVolumes};

/// Annotation: what the container is to its sandbox.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";
/// Annotation: where its bundle is on the host.
const BUNDLE_PATH: &str = "io.katacontainers.pkg.oci.bundle_path";
/// Annotation that is for the VMM only, and may be large.
const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// What has become of the container's resources on the host.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    /// The bundle's directory.
    pub(crate) bundle: &'a Path,
    /// Its root file system in the guest.
    pub(crate) rootfs: &'a GuestRootfs,
    /// Its mounts in the guest.
    pub(crate) volumes: &'a GuestVolumes,
    /// Its limits.
    pub(crate) resources: &'a AppliedResources,
    /// `--env`, which win over the spec's.
    pub(crate) variables: &'a [String],
}

/// A spec for the agent.
#[derive(Debug, PartialEq)]
pub(crate) struct Amended {
    /// The spec.
    pub(crate) spec: Spec,
    /// Whether the container joins the sandbox's pid namespace.
    pub(crate) sandbox_pidns: bool,
}

/// Rewrites what means something on the host only.
pub(crate) fn amend(mut spec: Spec, runtime: &RuntimeConfig, prepared: &Prepared<'_>) -> Amended {
    let sandbox_pidns = shares_pid_namespace(&spec);
    if let Some(root) = spec.root_mut() {
        root.set_path(PathBuf::from(&prepared.rootfs.path));
    }
    spec.set_mounts(Some(guest_mounts(prepared.volumes)));
    keep_guest_hooks(&mut spec);
    amend_process(&mut spec, prepared.variables);
    amend_linux(&mut spec, runtime, prepared.resources.for_agent.clone());
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.remove(INIT_DATA);
    annotations.insert(CONTAINER_TYPE.to_owned(), "single_container".to_owned());
    annotations.insert(BUNDLE_PATH.to_owned(), prepared.bundle.display().to_string());
    spec.set_annotations(Some(annotations));
    Amended { spec, sandbox_pidns }
}

/// A pid namespace with a path is the host's way to say "that of the pod".
fn shares_pid_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    })
}

fn guest_mounts(volumes: &GuestVolumes) -> Vec<Mount> {
    let mount = |planned: &sandbox_model::storage::GuestMount| {
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(&planned.destination))
            .set_typ(Some(planned.kind.clone()))
            .set_source(Some(PathBuf::from(&planned.source)))
            .set_options(Some(planned.options.clone()));
        mount
    };
    volumes.mounts.iter().map(mount).collect()
}

/// Only the hooks that run inside the container make sense in the guest.
fn keep_guest_hooks(spec: &mut Spec) {
    let start = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    let kept = start.filter(|hooks| !hooks.is_empty()).map(|hooks| {
        let mut kept = Hooks::default();
        kept.set_start_container(Some(hooks));
        kept
    });
    spec.set_hooks(kept);
}

fn amend_process(spec: &mut Spec, variables: &[String]) {
    let Some(process) = spec.process_mut() else { return };
    process.set_selinux_label(None);
    let mut env = process.env().clone().unwrap_or_default();
    for variable in variables {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
}

fn amend_linux(spec: &mut Spec, runtime: &RuntimeConfig, resources: Option<LinuxResources>) {
    let Some(linux) = spec.linux_mut() else { return };
    linux.set_mount_label(None);
    if runtime.disable_guest_seccomp {
        linux.set_seccomp(None);
    }
    if let Some(namespaces) = linux.namespaces_mut() {
        // The guest has its own network and clock, and its agent arranges the pid namespace.
        use LinuxNamespaceType::{Network, Pid, Time};
        namespaces.retain(|namespace| !matches!(namespace.typ(), Pid | Network | Time));
        for namespace in namespaces {
            namespace.set_path(None);
        }
    }
    if runtime.vfio_mode != VfioMode::Vfio
        && let Some(devices) = linux.devices_mut()
    {
        devices.retain(|device| !device.path().starts_with("/dev/vfio"));
    }
    let resources = resources.or_else(|| linux.resources().clone()).map(guest_resources);
    linux.set_resources(resources);
}

/// Limits that name host objects mean nothing in the guest.
fn guest_resources(mut resources: LinuxResources) -> LinuxResources {
    resources.set_devices(None).set_pids(None).set_block_io(None).set_network(None);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None);
    }
    resources
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn amended(change: Value, runtime: &RuntimeConfig, variables: &[&str]) -> (Value, bool) {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/bundle/rootfs", "readonly": true},
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1", "B=2"]},
            "linux": {},
        });
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let variables: Vec<String> = variables.iter().map(|text| (*text).to_owned()).collect();
        let prepared = Prepared {
            bundle: Path::new("/bundle"),
            rootfs: &GuestRootfs { path: "/run/g/rootfs".into(), storages: Vec::new() },
            volumes: &GuestVolumes {
                mounts: vec![sandbox_model::storage::GuestMount {
                    destination: "/data".into(),
                    kind: "bind".into(),
                    source: "/run/g/data".into(),
                    options: vec!["ro".into()],
                }],
                storages: Vec::new(),
            },
            resources: &AppliedResources { vcpus: 1, memory_mib: 64, for_agent: None },
            variables: &variables,
        };
        let amended = amend(serde_json::from_value(spec).unwrap(), runtime, &prepared);
        (serde_json::to_value(amended.spec).unwrap(), amended.sandbox_pidns)
    }

    #[test]
    fn paths_become_the_guests() {
        let (spec, _) = amended(
            json!({"mounts": [{"destination": "/data", "type": "bind", "source": "/host"}]}),
            &RuntimeConfig::default(),
            &[],
        );
        assert_eq!(spec["root"], json!({"path": "/run/g/rootfs", "readonly": true}));
        assert_eq!(
            spec["mounts"],
            json!([{"destination": "/data", "type": "bind", "source": "/run/g/data", "options": ["ro"]}])
        );
    }

    #[test]
    fn only_start_container_hooks_stay() {
        let hook = json!([{"path": "/h"}]);
        let hooks = json!({"createRuntime": hook, "poststop": hook, "startContainer": hook});
        let (spec, _) = amended(json!({"hooks": hooks}), &RuntimeConfig::default(), &[]);
        assert_eq!(spec["hooks"], json!({"startContainer": hook}));
        let (spec, _) = amended(json!({"hooks": {"createRuntime": hook}}), &RuntimeConfig::default(), &[]);
        assert_eq!(spec.get("hooks"), None);
    }

    #[test]
    fn namespaces_of_the_host_go() {
        let with = |path: Value| {
            json!({"linux": {"namespaces": [
                {"type": "pid", "path": path}, {"type": "network", "path": "/run/netns/x"}, {"type": "time"},
                {"type": "mount"}, {"type": "ipc", "path": "/proc/1/ns/ipc"},
            ]}})
        };
        let (spec, shared) = amended(with(json!("/proc/1/ns/pid")), &RuntimeConfig::default(), &[]);
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "ipc"}]));
        assert!(shared);
        assert!(!amended(with(Value::Null), &RuntimeConfig::default(), &[]).1);
    }

    #[test]
    fn seccomp_stays_only_if_the_guest_shall_have_it() {
        let linux = json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}});
        let mut runtime = RuntimeConfig::default();
        assert_eq!(amended(linux.clone(), &runtime, &[]).0["linux"].get("seccomp"), None);
        runtime.disable_guest_seccomp = false;
        assert!(amended(linux, &runtime, &[]).0["linux"].get("seccomp").is_some());
    }

    #[test]
    fn limits_of_host_objects_go() {
        let linux = json!({"linux": {
            "resources": {"cpu": {"cpus": "0-3", "quota": 5000, "period": 10000}, "pids": {"limit": 5}, "memory": {"limit": 9},
                          "devices": [{"allow": false}], "blockIO": {}, "network": {}},
            "devices": [{"path": "/dev/vfio/7", "type": "c", "major": 1, "minor": 2}, {"path": "/dev/x", "type": "c", "major": 1, "minor": 3}],
        }});
        let (spec, _) = amended(linux, &RuntimeConfig::default(), &[]);
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources, &json!({"cpu": {"quota": 5000, "period": 10000}, "memory": {"limit": 9}}));
        assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn annotations_tell_the_agent_what_it_is() {
        let (spec, _) = amended(json!({"annotations": {"a": "b", INIT_DATA: "x"}}), &RuntimeConfig::default(), &[]);
        assert_eq!(spec["annotations"], json!({"a": "b", CONTAINER_TYPE: "single_container", BUNDLE_PATH: "/bundle"}));
    }

    #[test]
    fn variables_of_the_command_line_win() {
        let (spec, _) = amended(json!({}), &RuntimeConfig::default(), &["B=3", "C="]);
        assert_eq!(spec["process"]["env"], json!(["A=1", "B=3", "C="]));
    }
}
