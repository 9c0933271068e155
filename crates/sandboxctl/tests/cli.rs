//! The built program from outside: exit codes, which stream gets what, what errors say.

#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The program with an environment that says nothing.
fn sandboxctl(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir).args(args);
    command
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn run(args: &[&str]) -> Ran {
    let dir = TempDir::new().unwrap();
    ran(&mut sandboxctl(dir.path(), args))
}

/// An error has four lines: what, why, state, try.
fn assert_failure(ran: &Ran, code: i32, number: &str, words: &[&str]) {
    assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
    let at = ran.err.find("error[").unwrap_or_else(|| panic!("no error in {:?}", ran.err));
    let lines: Vec<_> = ran.err[at..].lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.err);
    assert!(lines[0].starts_with(&format!("error[{number}]: ")), "{}", ran.err);
    for (line, start) in lines[1..].iter().zip(["  why:   ", "  state: ", "  try:   "]) {
        assert!(line.starts_with(start) && line.len() > start.len(), "{}", ran.err);
    }
    for word in words {
        assert!(ran.err.contains(word), "{word:?} is not in {}", ran.err);
    }
}

#[test]
fn without_arguments_it_introduces_itself_in_twelve_lines() {
    let ran = run(&[]);
    assert_eq!((ran.code, ran.out.lines().count(), ran.err.as_str()), (0, 12, ""));
}

#[test]
fn a_wrong_command_line_is_usage() {
    let cases: &[&[&str]] = &[
        &["frobnicate"],
        &["run"],
        &["run", "b", "--id", "../x"],
        &["run", "b", "--address", "10.0.0.2"],
        &["run", "b", "--address", "10.0.0.2/33"],
        &["run", "b", "--address", "10.0.0.2/24", "--netns", "/x"],
        &["run", "b", "--vmm", "bochs"],
        &["run", "b", "--timeout", "0"],
        &["run", "b", "--env", "A"],
        &["cleanup"],
        &["cleanup", "a", "--all"],
        &["inspect", "a/b"],
        &["completions", "cobol"],
        &["doctor", "-q", "-v"],
        &["help", "E9999"],
    ];
    for args in cases {
        let ran = run(args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}: {}", ran.err);
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn help_explains_codes_and_commands() {
    let ran = run(&["help", "e0301"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("E0301: the configuration was refused\n"), "{}", ran.out);
    assert!(run(&["help", "run"]).out.contains("--timeout"));
    assert!(run(&["help"]).out.contains("doctor"));
    assert_eq!(run(&["--version"]).code, 0);
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = run(&["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("sandboxctl") && ran.out.contains("cleanup"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    assert!(run(&["man"]).out.contains(".SH NAME"));
    let dir = TempDir::new().unwrap();
    let ran = ran(&mut sandboxctl(dir.path(), &["man", "pages"]));
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
    for page in ["sandboxctl.1", "sandboxctl-run.1", "sandboxctl-trace-timeline.1"] {
        assert!(fs::read_to_string(dir.path().join("pages").join(page)).unwrap().contains(".SH SYNOPSIS"), "{page}");
    }
}

#[test]
fn doctor_reports_in_both_forms() {
    let plain = run(&["doctor"]);
    assert_eq!(plain.code, 0, "{}", plain.err);
    assert!(plain.out.contains("kvm") && plain.out.contains("`sandboxctl run` would use --vmm "), "{}", plain.out);
    let ran = run(&["doctor", "--json", "--set", "hypervisor.path=/no/qemu"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["v"], 1);
    assert_eq!(report["default_mode"], json!({"vmm": "simulated", "host": "private"}));
    let qemu = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "qemu").unwrap();
    assert_eq!(qemu["state"], "missing");
    assert!(qemu["fix"].as_str().unwrap().contains("hypervisor.path"), "{qemu}");
}

#[test]
fn config_shows_where_each_value_comes_from() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, "[hypervisor.qemu]\ndefault_memory = 512\nnetwork_queues = 2\nmemory_slots = 3\n").unwrap();
    fs::create_dir(dir.path().join("config.d")).unwrap();
    fs::write(dir.path().join("config.d/20.toml"), "[hypervisor.qemu]\nnetwork_queues = 4\n").unwrap();
    fs::write(dir.path().join("config.d/10.toml"), "[hypervisor.qemu]\nnetwork_queues = 3\n").unwrap();
    fs::write(dir.path().join("config.d/30.bak"), "not toml").unwrap();
    let mut command = sandboxctl(dir.path(), &["config", "show", "--json", "--set", "agent.server_port=99"]);
    let ran = ran(command.env("KATA_CONF_FILE", &file).env("SANDBOXCTL_HYPERVISOR_MEMORY_SLOTS", "7"));
    let shown: Value = serde_json::from_str(&ran.out).unwrap();
    let file = file.to_str().unwrap();
    let drop_in = file.replace("c.toml", "config.d/20.toml");
    for (key, value, origin) in [
        ("hypervisor.default_memory", json!(512), file),
        ("hypervisor.network_queues", json!(4), &drop_in),
        ("hypervisor.memory_slots", json!(7), "SANDBOXCTL_HYPERVISOR_MEMORY_SLOTS"),
        ("agent.server_port", json!(99), "--set"),
        ("hypervisor.machine_type", json!("q35"), "default"),
    ] {
        assert_eq!(shown["keys"][key], json!({"value": value, "origin": origin}), "{key}");
    }
}

#[test]
fn the_named_file_counts_more_than_the_environment() {
    let dir = TempDir::new().unwrap();
    for (name, memory) in [("flag", 101), ("ours", 102), ("kata", 103)] {
        fs::write(dir.path().join(name), format!("[hypervisor.qemu]\ndefault_memory = {memory}\n")).unwrap();
    }
    let mut kata = sandboxctl(dir.path(), &["config", "show"]);
    assert!(ran(kata.env("KATA_CONF_FILE", "kata")).out.contains("default_memory = 103"));
    let mut ours = sandboxctl(dir.path(), &["config", "show"]);
    assert!(
        ran(ours.env("KATA_CONF_FILE", "kata").env("SANDBOXCTL_CONFIG", "ours")).out.contains("default_memory = 102")
    );
    let mut flag = sandboxctl(dir.path(), &["config", "show", "--config", "flag"]);
    assert!(ran(flag.env("SANDBOXCTL_CONFIG", "ours")).out.contains("default_memory = 101"));
}

#[test]
fn what_the_project_builds_is_found_unless_a_file_brings_its_own() {
    let dir = TempDir::new().unwrap();
    let guest = dir.path().join("target/guest");
    fs::create_dir_all(&guest).unwrap();
    fs::write(guest.join("vmlinux"), "").unwrap();
    fs::write(guest.join("initrd.cpio"), "").unwrap();
    let shown = |args: &[&str]| {
        let ran = ran(&mut sandboxctl(dir.path(), &[&["config", "show", "--json"], args].concat()));
        serde_json::from_str::<Value>(&ran.out).unwrap()["keys"].clone()
    };
    let alone = shown(&[]);
    let initrd = guest.join("initrd.cpio").canonicalize().unwrap();
    assert_eq!(alone["hypervisor.initrd"], json!({"value": initrd, "origin": "built-in"}));
    assert_eq!(alone["hypervisor.kernel"]["origin"], "built-in");
    fs::write(dir.path().join("c.toml"), "[hypervisor.qemu]\nimage = \"/i\"\n").unwrap();
    let with_file = shown(&["--config", "c.toml"]);
    assert_eq!(with_file["hypervisor.initrd"], json!({"value": "", "origin": "default"}));
}

#[test]
fn a_refused_configuration_names_key_value_and_fix() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("bad.toml"), "[hypervisor.qemu]\nnetwork_queues = 999\n").unwrap();
    fs::write(dir.path().join("broken.toml"), "[hypervisor.qemu]\nnetwork_queues = \n").unwrap();
    let check = |args: &[&str]| ran(&mut sandboxctl(dir.path(), args));
    let bad = check(&["config", "check", "bad.toml"]);
    assert_failure(&bad, 1, "E0301", &["bad.toml: hypervisor.qemu.network_queues = 999", "1 to 256", "set it to 256"]);
    assert_failure(&check(&["config", "check", "broken.toml"]), 1, "E0301", &["broken.toml: line 2"]);
    assert_failure(&check(&["config", "check", "none.toml"]), 1, "E0301", &["none.toml", "No such file"]);
    assert_failure(&check(&["config", "show", "--set", "x"]), 1, "E0301", &["there is no ="]);
    assert_failure(&check(&["config", "show", "--set", "a.b=1"]), 1, "E0301", &["no key \"a.b\""]);
    assert_failure(&check(&["--config", "bad.toml", "doctor"]), 1, "E0301", &["999"]);
    assert_failure(&check(&["--config", "bad.toml", "run", "."]), 125, "E0301", &["999"]);
}

#[test]
fn what_is_not_used_is_named_in_one_warning() {
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("c.toml"),
        "[hypervisor.qemu]\ndefualt_memory = 1\nenable_iommu = true\n[factory]\na = 1\n",
    )
    .unwrap();
    let check = ran(&mut sandboxctl(dir.path(), &["config", "check", "c.toml"]));
    assert_eq!((check.code, check.out.as_str()), (0, "the configuration is good\n"));
    assert_eq!(check.err.lines().count(), 1, "{}", check.err);
    assert!(check.err.contains("misspelt: hypervisor.defualt_memory"), "{}", check.err);
    assert!(check.err.contains("ignored here: [factory], hypervisor.enable_iommu"), "{}", check.err);
    assert_eq!(ran(&mut sandboxctl(dir.path(), &["-q", "config", "check", "c.toml"])).err, "");
}

#[test]
fn config_explain_reads_from_the_one_table() {
    let ran = run(&["config", "explain", "hypervisor.qemu.default_memory"]);
    for part in
        ["hypervisor.default_memory\n", "MiB", "SANDBOXCTL_HYPERVISOR_DEFAULT_MEMORY", "hypervisor.default_memory, if"]
    {
        assert!(ran.out.contains(part), "{part:?} in {}", ran.out);
    }
    assert!(run(&["config", "explain", "enable_hugepages"]).out.contains("is ignored"));
    assert!(run(&["config", "explain", "hypervisor.confidential_guest"]).out.contains("is refused"));
    assert_failure(&run(&["config", "explain", "default_memory"]), 1, "E0301", &["explain hypervisor.default_memory"]);
}

/// A bundle that is good but for one change.
fn bundle(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let mut config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=1"]},
    });
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn run_bundle(dir: &TempDir) -> Ran {
    ran(&mut sandboxctl(dir.path(), &["run", ".", "--vmm", "simulated", "--host", "private"]))
}

#[test]
fn a_bundle_that_cannot_be_read_is_refused() {
    assert_failure(&run(&["run", "nowhere"]), 125, "E0311", &["nowhere", "No such file"]);
    let dir = TempDir::new().unwrap();
    assert_failure(&run_bundle(&dir), 125, "E0311", &["config.json", "No such file"]);
    for (text, words) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "config.json"),
        ("{\"process\": 7}", "process: invalid type"),
        (
            "{\"process\": {\"args\": [1], \"cwd\": \"/\", \"user\": {\"uid\":0,\"gid\":0}}}",
            "process.args[0]: invalid type",
        ),
        ("{\"linux\": {\"namespaces\": [{\"type\": \"astral\"}]}}", "linux.namespaces[0].type: unknown variant"),
        ("{} trailing", "trailing characters"),
    ] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        assert_failure(&run_bundle(&dir), 125, "E0311", &[words]);
    }
    fs::remove_file(dir.path().join("config.json")).unwrap();
    fs::create_dir(dir.path().join("config.json")).unwrap();
    assert_failure(&run_bundle(&dir), 125, "E0311", &["is no regular file"]);
}

#[test]
fn a_bundle_that_breaks_the_specification_is_refused_by_field() {
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("ociVersion: is \"\"", |c| c["ociVersion"] = json!("")),
        ("ociVersion: is \"2.0.0\"", |c| c["ociVersion"] = json!("2.0.0")),
        ("ociVersion: is \"1.x\"", |c| c["ociVersion"] = json!("1.x")),
        ("root: is missing", |c| drop(c.as_object_mut().unwrap().remove("root"))),
        ("root.path: is empty", |c| c["root"]["path"] = json!("")),
        ("root.path: ", |c| c["root"]["path"] = json!("elsewhere")),
        ("root.path: ", |c| c["root"]["path"] = json!("config.json")),
        ("root.path: is the host's own root", |c| c["root"]["path"] = json!("/")),
        ("process: is missing", |c| drop(c.as_object_mut().unwrap().remove("process"))),
        ("process.args: is empty", |c| c["process"]["args"] = json!([])),
        ("process.args: is empty", |c| c["process"]["args"] = json!([""])),
        ("process.args: is empty", |c| drop(c["process"].as_object_mut().unwrap().remove("args"))),
        ("process.args[1]: has a NUL", |c| c["process"]["args"] = json!(["a", "b\u{0}"])),
        ("process.cwd: \"tmp\" is no absolute path", |c| c["process"]["cwd"] = json!("tmp")),
        ("process.cwd: \"\"", |c| c["process"]["cwd"] = json!("")),
        ("process.env[0]: \"A\"", |c| c["process"]["env"] = json!(["A"])),
        ("process.env[0]: \"=1\"", |c| c["process"]["env"] = json!(["=1"])),
        ("process.rlimits[1]: RLIMIT_NOFILE is there twice", |c| {
            let limit = json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2});
            c["process"]["rlimits"] = json!([limit, limit]);
        }),
        ("process.rlimits[0]: soft is more", |c| {
            c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 2}]);
        }),
        ("mounts[0].destination: \"data\"", |c| c["mounts"] = json!([{"destination": "data", "type": "tmpfs"}])),
        ("mounts[0].destination: \"/a/../b\"", |c| c["mounts"] = json!([{"destination": "/a/../b", "type": "tmpfs"}])),
        ("mounts[0].source: is missing", |c| c["mounts"] = json!([{"destination": "/a", "type": "bind"}])),
        ("mounts[0].source: ", |c| {
            c["mounts"] = json!([{"destination": "/a", "source": "none", "options": ["rbind"]}]);
        }),
        ("linux.namespaces[1]: ", |c| c["linux"] = json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]})),
        ("linux.namespaces[0].path: ", |c| c["linux"] = json!({"namespaces": [{"type": "pid", "path": "x"}]})),
        ("linux.devices[0].path: ", |c| {
            c["linux"] = json!({"devices": [{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]});
        }),
        ("linux.resources.cpu.period: is 0", |c| c["linux"] = json!({"resources": {"cpu": {"quota": 1, "period": 0}}})),
        ("hostname: ", |c| c["hostname"] = json!("a/b")),
        ("annotations: ", |c| c["annotations"] = json!({"": "x"})),
    ];
    for (words, change) in cases {
        let ran = run_bundle(&bundle(change));
        assert_failure(&ran, 125, "E0312", &["config.json", words]);
    }
}

#[test]
fn annotations_of_a_bundle_are_honoured_only_if_enabled() {
    let key = "io.katacontainers.config.hypervisor.default_memory";
    let dir = bundle(|config| config["annotations"] = json!({key: "128"}));
    assert_failure(
        &run_bundle(&dir),
        125,
        "E0313",
        &[key, "not enabled", "add \"default_memory\" to enable_annotations"],
    );
    let dir = bundle(|config| config["annotations"] = json!({"io.katacontainers.config.hypervisor.kernel": "/k"}));
    assert_failure(&run_bundle(&dir), 125, "E0313", &["names a path of the host"]);
    let dir = bundle(|config| config["annotations"] = json!({"io.kubernetes.cri.sandbox-memory": "lots"}));
    assert_failure(&run_bundle(&dir), 125, "E0312", &["\"lots\" is no whole number"]);
}

#[test]
fn a_real_vm_without_its_parts_is_refused() {
    let dir = bundle(|_| {});
    let args =
        ["run", ".", "--vmm", "qemu", "--set", "hypervisor.path=/no/qemu", "--set", "hypervisor.kernel=/no/kernel"];
    let ran = ran(&mut sandboxctl(dir.path(), &args));
    assert_failure(&ran, 125, "E0401", &["no QEMU at /no/qemu", "no kernel at /no/kernel", "sandboxctl doctor"]);
}

#[test]
fn an_error_is_one_document_with_json() {
    let dir = bundle(|config| config["process"]["args"] = json!([]));
    let ran = ran(&mut sandboxctl(dir.path(), &["run", ".", "--json"]));
    assert_eq!(ran.code, 125);
    let document: Value = serde_json::from_str(ran.out.trim()).unwrap();
    assert_eq!((&document["v"], &document["error"]["code"]), (&json!(1), &json!("E0312")));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = TempDir::new().unwrap();
    let mut child = sandboxctl(dir.path(), &["completions", "bash"]);
    let mut child = child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
