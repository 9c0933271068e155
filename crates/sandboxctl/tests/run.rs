//! Whole runs of the built program with a simulated VM. Private runs need user namespaces or root;
//! where neither is to be had they are skipped, except in CI, where they fail.
#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use resource_actors::ledger::Seal;
use serde_json::{Value, json};
use tempfile::TempDir;

fn bundle() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"args": ["hello", "world"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"]},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A ledger of these records, each with its sum.
fn sealed(records: [Value; 2]) -> String {
    let mut seal = Seal::default();
    let lines = records.map(|record| {
        let (line, next) = seal.line(&serde_json::from_value(record).unwrap()).unwrap();
        seal = next;
        line
    });
    lines.concat()
}

fn sandboxctl(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir).args(args).stdin(Stdio::null());
    command
}

/// Runs with a simulated VM; `None` if this host allows no namespaces.
fn run(dir: &Path, args: &[&str]) -> Option<Output> {
    let args = [&["run", ".", "--vmm", "simulated"], args].concat();
    let output = sandboxctl(dir, &args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("error[E0402]") {
        assert!(std::env::var_os("CI").is_none(), "CI must allow namespaces: {said}");
        eprintln!("skipped: {said}");
        return None;
    }
    Some(output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_private_run_leaves_nothing() {
    let dir = bundle();
    let existed = Path::new("/run/resource-actors").exists();
    let Some(output) = run(dir.path(), &["--host", "private"]) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "simulated: hello world\n");
    assert!(text(&output.stderr).contains("supervisor cleanup"), "{}", text(&output.stderr));
    assert_eq!(Path::new("/run/resource-actors").exists(), existed);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn quiet_leaves_only_the_containers_output() {
    let dir = bundle();
    let Some(output) = run(dir.path(), &["--host", "private", "-q"]) else { return };
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("simulated: hello world\n", ""));
}

#[test]
fn json_lines_tell_steps_output_and_exit() {
    let dir = bundle();
    let Some(output) = run(dir.path(), &["--host", "private", "--json", "--id", "j1"]) else { return };
    let out = text(&output.stdout);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["v"] == 1), "{out}");
    assert!(lines.iter().any(|line| line["event"] == "step" && line["step"] == "start vm" && line["error"].is_null()));
    assert!(lines.iter().any(|line| line["event"] == "output" && line["text"] == "simulated: hello world\n"));
    let exit = lines.iter().find(|line| line["event"] == "exit").unwrap();
    assert_eq!(exit["vmm"], "simulated");
    assert_eq!((&exit["host"], &exit["id"], &exit["code"]), (&json!("private"), &json!("j1"), &json!(0)));
}

#[test]
fn a_trace_carries_both_axes() {
    let dir = bundle();
    let Some(output) = run(dir.path(), &["--host", "private", "--trace", "t.jsonl"]) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("incomplete"), "{}", text(&output.stderr));
    let trace = fs::read_to_string(dir.path().join("t.jsonl")).unwrap();
    let header: Value = serde_json::from_str(trace.lines().next().unwrap()).unwrap();
    assert_eq!((&header["vmm"], &header["host"]), (&json!("simulated"), &json!("private")));
    assert_eq!(header["config_digest"].as_str().unwrap().len(), 64);
    assert!(trace.lines().count() > 20);
}

#[test]
fn a_broken_trace_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("t"), "not a trace\n").unwrap();
    for file in ["t", "none"] {
        let output = sandboxctl(dir.path(), &["trace", "replay", file]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).starts_with("error[E0601]"), "{}", text(&output.stderr));
    }
}

#[test]
fn an_id_in_use_is_refused_and_what_is_there_is_left_alone() {
    let (dir, state) = (bundle(), TempDir::new().unwrap());
    fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
        eprintln!("skipped: not root");
        return;
    }
    fs::create_dir(state.path().join("taken")).unwrap();
    let args = ["--host", "real", "--id", "taken", "--state-dir", state.path().to_str().unwrap()];
    let output = run(dir.path(), &args).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("error[E0102]"), "{}", text(&output.stderr));
    assert!(state.path().join("taken").is_dir());
}

#[test]
fn list_inspect_and_cleanup_know_what_a_ledger_says() {
    // The state directory goes with its last sandbox, so it is not the one that the tool runs in.
    let home = TempDir::new().unwrap();
    let state = home.path().join("state");
    let dir = state.join("old");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let rw = dir.join("rw");
    let header = json!({"record": "header", "version": 2, "sandbox": "old", "boot": boot.trim(), "last": 0});
    let intent = json!({
        "record": "intent", "entry": 1, "actor": "share-fs", "scope": "sandbox", "object": {"directory": {"path": rw}},
    });
    fs::write(dir.join("ledger.jsonl"), sealed([header, intent])).unwrap();
    fs::set_permissions(dir.join("ledger.jsonl"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let tool = |args: &[&str]| {
        let args = [args, &["--state-dir", state.to_str().unwrap()]].concat();
        let output = sandboxctl(home.path(), &args).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let listed: Value = serde_json::from_str(&tool(&["list", "--json"]).1).unwrap();
    assert_eq!(listed, json!({"v": 1, "sandboxes": [{"id": "old", "state": "left", "objects": 1}]}));
    let (code, inspected, _) = tool(&["inspect", "old"]);
    assert!(code == 0 && inspected.contains("! #1 directory rw  (perhaps made, not there)"), "{inspected}");
    fs::create_dir(&rw).unwrap();
    fs::write(dir.join("stranger"), "").unwrap();
    let (_, inspected, _) = tool(&["inspect", "old", "--json"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["counts"]["there"], 1, "{inspected}");
    assert_eq!(inspected["strangers"], json!([{"kind": "file", "name": dir.join("stranger")}]));
    fs::remove_dir(&rw).unwrap();
    fs::remove_file(dir.join("stranger")).unwrap();
    let (code, _, said) = tool(&["inspect", "new"]);
    assert!(code == 1 && said.starts_with("error[E0103]"), "{said}");
    let (code, _, said) = tool(&["cleanup", "new"]);
    assert!(code == 1 && said.starts_with("error[E0103]"), "{said}");

    let held = nix::fcntl::Flock::lock(fs::File::open(&dir).unwrap(), nix::fcntl::FlockArg::LockExclusive).unwrap();
    let (code, _, said) = tool(&["cleanup", "old"]);
    assert!(code == 1 && said.contains("old is running"), "{said}");
    assert_eq!(tool(&["cleanup", "--all"]).0, 0);
    assert!(dir.is_dir(), "a living process's sandbox stays");
    drop(held);

    // Others could have prepared a directory that they may enter: nothing in it is touched.
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, _, said) = tool(&["cleanup", "old"]);
    assert!(code == 1 && said.contains("error[E0106]") && said.contains("mode 0755"), "{said}");
    assert!(dir.join("ledger.jsonl").exists(), "nothing has been undone");
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

    let (code, cleaned, said) = tool(&["cleanup", "--all", "--json"]);
    let cleaned: Value = serde_json::from_str(&cleaned).unwrap();
    assert_eq!((code, &cleaned["sandboxes"][0]["clean"]), (0, &json!(true)), "{said}");
    assert!(!dir.exists());
    assert_eq!(tool(&["list"]).1, "SANDBOX  STATE  OBJECTS\n");
}

#[test]
fn a_watch_tells_each_change_and_ends_with_the_sandbox() {
    let home = TempDir::new().unwrap();
    let state = home.path().join("state");
    let dir = state.join("seen");
    fs::create_dir_all(&dir).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let header = json!({"record": "header", "version": 2, "sandbox": "seen", "boot": boot.trim(), "last": 0});
    let object = json!({"directory": {"path": dir.join("rw")}});
    let intent = json!({"record": "intent", "entry": 1, "actor": "share-fs", "scope": "sandbox", "object": object});
    fs::write(dir.join("ledger.jsonl"), sealed([header, intent])).unwrap();
    let args = ["inspect", "seen", "--watch", "--json", "--state-dir", state.to_str().unwrap()];
    let mut watch = sandboxctl(home.path(), &args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["objects"][0]["sight"], "vanished");
    fs::create_dir(dir.join("rw")).unwrap();
    assert_eq!(next()["objects"][0]["sight"], "there");
    // A directory without a ledger is still a sandbox's, so it goes as a whole.
    fs::rename(&dir, home.path().join("gone")).unwrap();
    assert_eq!(next()["state"], "gone");
    assert!(watch.wait().unwrap().success());
}

#[test]
fn top_tells_of_sandboxes_whose_process_does_not() {
    let home = TempDir::new().unwrap();
    let state = home.path().join("state");
    fs::create_dir_all(state.join("left")).unwrap();
    let args = ["top", "--once", "--json", "--state-dir", state.to_str().unwrap()];
    let output = sandboxctl(home.path(), &args).output().unwrap();
    let top: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&top["v"], &top["sandboxes"], &top["silent"][0]["id"]), (&json!(1), &json!([]), &json!("left")));
    let output = sandboxctl(home.path(), &["top", "--once", "--state-dir", "/nowhere"]).output().unwrap();
    assert_eq!(text(&output.stdout), "no sandboxes\n");
}
