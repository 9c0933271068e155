//! A container's specification, in the agent's words: all but its Linux part.
//!
//! What the protocol has no field for is left out, as Kata does: domain name, scheduler, I/O
//! priority, umask, CPU affinity of an exec, id mappings of single mounts, and in
//! [`super::oci_linux`] what is listed there. A number that is not set travels as 0, which the agent
//! takes for unset; -1 (no limit) travels as it is.

use std::fmt::Debug;
use std::path::Path;

use agent_protocol::oci as wire;
use oci_spec::runtime as oci;
use protobuf::MessageField;
use serde::Serialize;
use serde_json::Value;

/// What of a specification cannot travel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value} has no place in the agent's protocol")]
pub(super) struct Unsendable {
    field: &'static str,
    value: String,
}

impl Unsendable {
    pub(super) fn new(field: &'static str, value: impl Debug) -> Self {
        Self { field, value: format!("{value:?}") }
    }
}

/// Result of a conversion.
pub(super) type Sent<T> = Result<T, Unsendable>;

/// A whole specification.
pub(super) fn spec(from: &oci::Spec) -> Sent<wire::Spec> {
    Ok(wire::Spec {
        Version: from.version().clone(),
        Process: part(from.process(), process)?,
        Root: part(from.root(), root)?,
        Hostname: text(from.hostname()),
        Mounts: each(from.mounts(), mount)?,
        Hooks: part(from.hooks(), hooks)?,
        Annotations: from.annotations().clone().unwrap_or_default(),
        Linux: part(from.linux(), super::oci_linux::linux)?,
        ..Default::default()
    })
}

/// A process.
pub(super) fn process(from: &oci::Process) -> Sent<wire::Process> {
    Ok(wire::Process {
        Terminal: from.terminal().unwrap_or_default(),
        ConsoleSize: part(&from.console_size(), console)?,
        User: MessageField::some(user(from.user())),
        Args: list(from.args()),
        Env: list(from.env()),
        Cwd: path("process.cwd", from.cwd())?,
        Capabilities: part(from.capabilities(), capabilities)?,
        Rlimits: each(from.rlimits(), rlimit)?,
        NoNewPrivileges: from.no_new_privileges().unwrap_or_default(),
        ApparmorProfile: text(from.apparmor_profile()),
        OOMScoreAdj: from.oom_score_adj().unwrap_or_default().into(),
        SelinuxLabel: text(from.selinux_label()),
        ..Default::default()
    })
}

fn console(from: &oci::Box) -> Sent<wire::Box> {
    let cells = |field, count: u64| u32::try_from(count).map_err(|_| Unsendable::new(field, count));
    Ok(wire::Box {
        Height: cells("process.consoleSize.height", from.height())?,
        Width: cells("process.consoleSize.width", from.width())?,
        ..Default::default()
    })
}

fn user(from: &oci::User) -> wire::User {
    wire::User {
        UID: from.uid(),
        GID: from.gid(),
        AdditionalGids: from.additional_gids().clone().unwrap_or_default(),
        Username: text(from.username()),
        ..Default::default()
    }
}

fn capabilities(from: &oci::LinuxCapabilities) -> Sent<wire::LinuxCapabilities> {
    let names = |set: &Option<oci::Capabilities>| -> Sent<Vec<String>> {
        let all = set.iter().flatten().map(|capability| name("process.capabilities", capability));
        let mut names = all.collect::<Sent<Vec<_>>>()?;
        // A set has no order; a recorded request shall have one.
        names.sort_unstable();
        Ok(names)
    };
    Ok(wire::LinuxCapabilities {
        Bounding: names(from.bounding())?,
        Effective: names(from.effective())?,
        Inheritable: names(from.inheritable())?,
        Permitted: names(from.permitted())?,
        Ambient: names(from.ambient())?,
        ..Default::default()
    })
}

fn rlimit(from: &oci::PosixRlimit) -> Sent<wire::POSIXRlimit> {
    Ok(wire::POSIXRlimit {
        Type: name("process.rlimits.type", &from.typ())?,
        Hard: from.hard(),
        Soft: from.soft(),
        ..Default::default()
    })
}

fn root(from: &oci::Root) -> Sent<wire::Root> {
    Ok(wire::Root {
        Path: path("root.path", from.path())?,
        Readonly: from.readonly().unwrap_or_default(),
        ..Default::default()
    })
}

fn mount(from: &oci::Mount) -> Sent<wire::Mount> {
    Ok(wire::Mount {
        destination: path("mounts.destination", from.destination())?,
        source: maybe_path("mounts.source", from.source())?,
        type_: text(from.typ()),
        options: list(from.options()),
        ..Default::default()
    })
}

fn hooks(from: &oci::Hooks) -> Sent<wire::Hooks> {
    Ok(wire::Hooks {
        Prestart: each(from.prestart(), hook)?,
        Poststart: each(from.poststart(), hook)?,
        Poststop: each(from.poststop(), hook)?,
        CreateRuntime: each(from.create_runtime(), hook)?,
        CreateContainer: each(from.create_container(), hook)?,
        StartContainer: each(from.start_container(), hook)?,
        ..Default::default()
    })
}

fn hook(from: &oci::Hook) -> Sent<wire::Hook> {
    Ok(wire::Hook {
        Path: path("hooks.path", from.path())?,
        Args: list(from.args()),
        Env: list(from.env()),
        Timeout: from.timeout().unwrap_or_default(),
        ..Default::default()
    })
}

/// A part that may be absent.
pub(super) fn part<A, B>(from: &Option<A>, convert: impl FnOnce(&A) -> Sent<B>) -> Sent<MessageField<B>> {
    Ok(from.as_ref().map(convert).transpose()?.into())
}

/// A list that may be absent.
pub(super) fn each<A, B>(from: &Option<Vec<A>>, convert: impl Fn(&A) -> Sent<B>) -> Sent<Vec<B>> {
    from.iter().flatten().map(convert).collect()
}

/// A text that may be absent.
pub(super) fn text(from: &Option<String>) -> String {
    from.clone().unwrap_or_default()
}

/// Texts that may be absent.
pub(super) fn list(from: &Option<Vec<String>>) -> Vec<String> {
    from.clone().unwrap_or_default()
}

/// A path; the protocol's texts are UTF-8, a path need not be.
pub(super) fn path(field: &'static str, from: &Path) -> Sent<String> {
    from.to_str().map(str::to_owned).ok_or_else(|| Unsendable::new(field, from))
}

/// A path that may be absent.
pub(super) fn maybe_path(field: &'static str, from: &Option<impl AsRef<Path>>) -> Sent<String> {
    from.as_ref().map_or_else(|| Ok(String::new()), |from| path(field, from.as_ref()))
}

/// The name of an enum's value in the specification, which is how the agent knows it.
pub(super) fn name<T: Serialize + Debug>(field: &'static str, from: &T) -> Sent<String> {
    match serde_json::to_value(from) {
        Ok(Value::String(name)) => Ok(name),
        _ => Err(Unsendable::new(field, from)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_process_is_whole() {
        let made = process(&read(json!({
            "terminal": true,
            "consoleSize": {"height": 25, "width": 80},
            "user": {"uid": 1, "gid": 2, "additionalGids": [3, 4], "username": "u"},
            "args": ["sh", "-c"],
            "env": ["A=B"],
            "cwd": "/work",
            "capabilities": {
                "bounding": ["CAP_NET_RAW", "CAP_CHOWN"], "effective": ["CAP_CHOWN"], "inheritable": [],
                "permitted": ["CAP_KILL"], "ambient": ["CAP_SYS_ADMIN"]
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18446744073709551615_u64, "soft": 5}],
            "noNewPrivileges": true,
            "apparmorProfile": "prof",
            "oomScoreAdj": -998,
            "selinuxLabel": "label"
        })))
        .unwrap();
        assert!(made.Terminal && made.NoNewPrivileges);
        assert_eq!((made.ConsoleSize.Height, made.ConsoleSize.Width), (25, 80));
        assert_eq!((made.User.UID, made.User.GID, made.User.Username.as_str()), (1, 2, "u"));
        assert_eq!(made.User.AdditionalGids, [3, 4]);
        assert_eq!((made.Args.len(), made.Env.len(), made.Cwd.as_str()), (2, 1, "/work"));
        assert_eq!(made.Capabilities.Bounding, ["CAP_CHOWN", "CAP_NET_RAW"]);
        assert_eq!(made.Capabilities.Effective, ["CAP_CHOWN"]);
        assert!(made.Capabilities.Inheritable.is_empty());
        assert_eq!(made.Capabilities.Permitted, ["CAP_KILL"]);
        assert_eq!(made.Capabilities.Ambient, ["CAP_SYS_ADMIN"]);
        let limit = &made.Rlimits[0];
        assert_eq!((limit.Type.as_str(), limit.Hard, limit.Soft), ("RLIMIT_NOFILE", u64::MAX, 5));
        assert_eq!(
            (made.OOMScoreAdj, made.ApparmorProfile.as_str(), made.SelinuxLabel.as_str()),
            (-998, "prof", "label")
        );
    }

    #[test]
    fn a_console_too_large_is_refused() {
        let from =
            read(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "consoleSize": {"height": 1_u64 << 32, "width": 1}}));
        let error = process(&from).unwrap_err();
        assert_eq!(error.to_string(), "process.consoleSize.height 4294967296 has no place in the agent's protocol");
    }

    #[test]
    fn a_specification_is_whole() {
        let hook = |name: &str| json!([{"path": name, "args": ["a"], "env": ["E=1"], "timeout": 7}]);
        let made = spec(&read(json!({
            "ociVersion": "1.1.0",
            "root": {"path": "/run/rootfs", "readonly": true},
            "hostname": "host",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                {"destination": "/bare"}
            ],
            "hooks": {
                "prestart": hook("/p"), "poststart": hook("/ps"), "poststop": hook("/pp"),
                "createRuntime": hook("/cr"), "createContainer": hook("/cc"), "startContainer": hook("/sc")
            },
            "annotations": {"k": "v"},
            "linux": {"cgroupsPath": "/cg"}
        })))
        .unwrap();
        assert_eq!((made.Version.as_str(), made.Hostname.as_str()), ("1.1.0", "host"));
        assert!(made.Process.is_none());
        assert_eq!((made.Root.Path.as_str(), made.Root.Readonly), ("/run/rootfs", true));
        let mount = &made.Mounts[0];
        assert_eq!(
            (mount.destination.as_str(), mount.type_.as_str(), mount.source.as_str()),
            ("/proc", "proc", "proc")
        );
        assert_eq!((mount.options[0].as_str(), made.Mounts[1].source.as_str()), ("nosuid", ""));
        let hooks = &made.Hooks;
        for (made, path) in [
            (&hooks.Prestart, "/p"),
            (&hooks.Poststart, "/ps"),
            (&hooks.Poststop, "/pp"),
            (&hooks.CreateRuntime, "/cr"),
            (&hooks.CreateContainer, "/cc"),
            (&hooks.StartContainer, "/sc"),
        ] {
            assert_eq!((made[0].Path.as_str(), made[0].Timeout), (path, 7));
            assert_eq!((made[0].Args[0].as_str(), made[0].Env[0].as_str()), ("a", "E=1"));
        }
        assert_eq!(made.Annotations["k"], "v");
        assert_eq!(made.Linux.CgroupsPath, "/cg");
    }

    #[test]
    fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
        assert!(path("root.path", odd).is_err());
        assert_eq!(maybe_path("mounts.source", &None::<&Path>).unwrap(), "");
    }
}
