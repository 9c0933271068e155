//! Which port call makes or takes which object, in the words of the field.
//!
//! A trace has no ledger records; the calls that make and take objects stand for them.

use serde_json::Value;

use super::Outcome;

/// An object that was made or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It is there now; what it is.
    Born(String),
    /// It is gone now; what it was.
    Gone(String),
}

impl Mark {
    /// What it is.
    pub(crate) fn object(&self) -> &str {
        match self {
            Self::Born(object) | Self::Gone(object) => object,
        }
    }

    /// `▲` or `▼`.
    pub(crate) fn sign(&self) -> &'static str {
        match self {
            Self::Born(_) => "▲",
            Self::Gone(_) => "▼",
        }
    }
}

/// What a call that ended that way made or took. One that failed did neither, as far as is known; an
/// object that was gone already was not taken by this call.
pub(crate) fn mark(method: &str, request: &Value, outcome: &Outcome) -> Option<Mark> {
    if *outcome != Outcome::Done {
        return None;
    }
    let at = |pointer: &str| text(request, pointer);
    let born = |object: String| Some(Mark::Born(object));
    let gone = |object: String| Some(Mark::Gone(object));
    match method {
        "create_file" => born(format!("file {}", file_name(&at("/path")))),
        "create_namespace" => born(format!("netns {}", file_name(&at("/path")))),
        "create_tap" => born(format!("tap {}", at("/name"))),
        "redirect" => born(format!("tc redirect {}⇄tap", at("/link"))),
        "remove_tap" => gone(format!("tap {}", at("/name"))),
        "remove_redirect" => gone(format!("tc redirect {}", at("/link"))),
        "remove_namespace" => gone(format!("netns {}", file_name(&at("/path")))),
        "make_directory" => born(format!("directory {}", at("/path"))),
        "make_file" => born(format!("file {}", at("/path"))),
        "remove_directory" => gone(format!("directory {}", at("/at/path"))),
        "remove_file" if request.get("at").is_some() => gone(format!("file {}", at("/at/path"))),
        "remove_file" => gone(format!("file {}", file_name(&at("/path")))),
        "export" => born(format!("mount {}", at("/to/path"))),
        "attach" => born(format!("mount {} on {}", at("/source/path"), at("/at/path"))),
        "detach" => gone(format!("mount {}", at("/at/path"))),
        "start_daemon" => born("process virtiofsd".to_owned()),
        "start_vsock_daemon" => born("process vhost-device-vsock".to_owned()),
        "end_daemon" => gone("daemon".to_owned()),
        "remove_socket" => gone(format!("socket {}", file_name(&at("/path")))),
        "make_group" => born(format!("cgroup {}", at("/group/path"))),
        "remove_group" => gone(format!("cgroup {}", group(request))),
        "bind_vfio" => born(format!("vfio binding {}", at("/bdf"))),
        "give_back_vfio" => gone(format!("vfio binding {}", at("/bdf"))),
        "add_device" => born(format!("{} {}", device_kind(request), at("/id"))),
        "remove_device" => gone(format!("device {}", at("/id"))),
        "start_vm" => born("VM".to_owned()),
        "stop_vm" | "kill_vm" => gone("VM".to_owned()),
        _ => None,
    }
}

fn text(request: &Value, pointer: &str) -> String {
    request.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The path of a group below its hierarchy: its directories are `…/PARENT/SANDBOX` in each.
fn group(request: &Value) -> String {
    let paths = request.pointer("/directories").and_then(Value::as_array);
    let path = paths.and_then(|paths| paths.last()?.as_str()).unwrap_or_default();
    let mut parts = path.rsplitn(3, '/');
    match (parts.next(), parts.next()) {
        (Some(name), Some(parent)) => format!("{parent}/{name}"),
        _ => path.to_owned(),
    }
}

/// `block`, `network` and so on: the name of the variant of a placed device's configuration.
fn device_kind(request: &Value) -> String {
    let kind = request.get("config").and_then(Value::as_object).and_then(|fields| fields.keys().next());
    kind.map_or_else(|| "device".to_owned(), |kind| format!("{kind} device"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_succeeded_makes_or_takes() {
        let tap = json!({"name": "tap0_kata", "alias": "a"});
        let made = mark("create_tap", &tap, &Outcome::Done).unwrap();
        assert_eq!((made.sign(), made.object()), ("▲", "tap tap0_kata"));
        assert_eq!(mark("create_tap", &tap, &Outcome::Failed("no".into())), None);
        assert_eq!(mark("remove_tap", &tap, &Outcome::AlreadyGone), None);
        assert_eq!(mark("remove_tap", &tap, &Outcome::Done), Some(Mark::Gone("tap tap0_kata".into())));
        assert_eq!(mark("query_devices", &Value::Null, &Outcome::Done), None);
    }

    #[test]
    fn an_object_has_the_fields_name() {
        let device = json!({"config": {"share-fs": {"tag": "kataShared"}}, "id": "fs-0"});
        assert_eq!(mark("add_device", &device, &Outcome::Done).unwrap().object(), "share-fs device fs-0");
        let removed = json!({"directories": ["/cg/cpu/us", "/cg/cpu/us/pod"]});
        assert_eq!(mark("remove_group", &removed, &Outcome::Done).unwrap().object(), "cgroup us/pod");
        let below = json!({"at": {"dir": "/run/x", "path": "ro"}});
        assert_eq!(mark("detach", &below, &Outcome::Done).unwrap().object(), "mount ro");
    }
}
