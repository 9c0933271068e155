//! `stress` and `bench` from outside: what they count does not depend on how busy the machine is.

#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn stress(dir: &Path, arguments: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
    command.args(["stress", "--json", "--idle", "1", "--state-dir"]).arg(dir).args(arguments);
    let output = command.output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, document)
}

#[test]
fn many_simulated_sandboxes_live_at_once_and_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let (few, small) = stress(dir.path(), &["--sandboxes", "10"]);
    let (many, large) = stress(dir.path(), &["--sandboxes", "300", "--at-once", "40"]);
    assert!(few.status.success() && many.status.success(), "{few:?} {many:?}");
    assert_eq!((&large["alive"], &large["left"]), (&300.into(), &Value::Array(vec![])));
    assert_eq!(large["threads"], small["threads"], "threads do not grow with sandboxes");
    let wakeups = large["wakeups_per_second"].as_f64().unwrap();
    assert!(wakeups <= 100.0, "sandboxes of which nothing is asked wake nobody: {wakeups}");
    let steps = large["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["count"] == 300), "{steps:?}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_usage() {
    for arguments in [&["stress", "--sandboxes", "0"][..], &["stress", "--rate", "x"], &["bench", "no-such-row"]] {
        let status = Command::new(env!("CARGO_BIN_EXE_sandboxctl")).args(arguments).output().unwrap().status;
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

/// How often each system call was made by `sandboxes` sandboxes on a private host.
fn system_calls(sandboxes: u32) -> Option<BTreeMap<String, u64>> {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("calls");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=setns,unshare,socket,clone,clone3", "-e", "signal=none", "-o"]).arg(&log);
    command.arg(env!("CARGO_BIN_EXE_sandboxctl"));
    command.args(["stress", "--json", "--host", "private", "--idle", "0", "--at-once", "1", "--state-dir"]);
    command.arg(dir.path()).args(["--sandboxes", &sandboxes.to_string()]);
    let output = command.output().ok()?;
    assert!(output.status.success(), "{output:?}");
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        let name = call.split('(').next().unwrap_or_default();
        let name = if call.contains("AF_NETLINK") { "netlink socket" } else { name };
        if !call.contains("resumed>") {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    Some(counts)
}

#[test]
fn a_networks_set_up_costs_one_socket_one_way_home_and_no_thread() {
    let is_root = nix::unistd::getuid().is_root();
    let found = is_root.then(|| Some((system_calls(5)?, system_calls(25)?))).flatten();
    let Some((few, many)) = found else {
        assert!(std::env::var_os("CI").is_none(), "this test needs root and strace");
        eprintln!("skipped: it needs root and strace");
        return;
    };
    let more = |name: &str| many.get(name).copied().unwrap_or(0) - few.get(name).copied().unwrap_or(0);
    assert_eq!(more("netlink socket"), 20, "one for each set-up, kept for its end");
    assert_eq!(more("unshare"), 20, "one namespace each");
    assert!(more("setns") <= 40, "{} for 20 set-ups", more("setns"));
    assert_eq!(more("clone3") + more("clone"), 0, "the threads of the first serve the others");
}
