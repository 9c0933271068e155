//! `stress` and `bench` from outside: what they count does not depend on how busy the machine is.

#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn stress(dir: &Path, arguments: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
    command.args(["stress", "--json", "--state-dir"]).arg(dir).args(arguments);
    let output = command.output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, document)
}

#[test]
fn many_simulated_sandboxes_live_at_once_and_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let (few, small) = stress(dir.path(), &["--sandboxes", "10", "--idle", "1"]);
    let (many, large) = stress(dir.path(), &["--sandboxes", "300", "--at-once", "40", "--idle", "1"]);
    assert!(few.status.success() && many.status.success(), "{few:?} {many:?}");
    assert_eq!((&large["alive"], &large["left"]), (&300.into(), &Value::Array(vec![])));
    assert_eq!(large["threads"], small["threads"], "threads do not grow with sandboxes");
    let wakeups = large["wakeups_per_second"].as_f64().unwrap();
    assert!(wakeups <= 100.0, "sandboxes of which nothing is asked wake nobody: {wakeups}");
    let steps = large["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["count"] == 300), "{steps:?}");
}

#[test]
fn the_commands_of_a_trace_are_a_load() {
    let dir = TempDir::new().unwrap();
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two-lives.jsonl");
    let (output, document) = stress(dir.path(), &["--trace", trace, "--sandboxes", "20", "--idle", "0"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&document["alive"], &document["left"]), (&40.into(), &Value::Array(vec![])), "two in each copy");
    let recorded = std::fs::read_to_string(trace).unwrap();
    let starts = recorded.lines().filter(|line| line.contains("received") && line.contains("\"StartVm\"")).count();
    let steps = document["steps"].as_array().unwrap();
    let started = steps.iter().find(|step| step["step"] == "StartVm").unwrap();
    assert_eq!(started["count"], starts * 20);
}

#[test]
fn a_command_line_that_makes_no_sense_is_usage() {
    for arguments in [
        &["stress", "--sandboxes", "0"][..],
        &["stress", "--rate", "x"],
        &TRACE_ON_A_REAL_HOST,
        &["bench", "no-such-row"],
    ] {
        let status = Command::new(env!("CARGO_BIN_EXE_sandboxctl")).args(arguments).output().unwrap().status;
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

const TRACE_ON_A_REAL_HOST: [&str; 5] = ["stress", "--trace", "x", "--host", "real"];

/// What sandboxes on a private host asked of the kernel.
#[derive(Default)]
struct Asked {
    /// How often each system call was made; sockets of netlink count for themselves.
    calls: BTreeMap<String, u64>,
    /// Threads that entered a namespace or came home from one.
    entered: BTreeSet<String>,
    /// How many threads gave themselves a name, by name.
    threads: BTreeMap<String, u64>,
}

impl Asked {
    fn by_sandboxes(count: u32) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("calls");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-e", "trace=setns,unshare,socket,prctl,geteuid", "-e", "signal=none", "-o"])
            .arg(&log);
        command.arg(env!("CARGO_BIN_EXE_sandboxctl"));
        command.args(["stress", "--json", "--host", "private", "--idle", "0", "--at-once", "1", "--state-dir"]);
        command.arg(dir.path()).args(["--sandboxes", &count.to_string()]);
        let output = command.output().ok()?;
        assert!(output.status.success(), "{output:?}");
        let mut asked = Self::default();
        for line in std::fs::read_to_string(&log).unwrap().lines().filter(|line| !line.contains("resumed>")) {
            asked.read(line);
        }
        Some(asked)
    }

    fn read(&mut self, line: &str) {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        let (call, arguments) = call.trim_start().split_once('(').unwrap_or_default();
        if call == "setns" {
            self.entered.insert(thread.to_owned());
        }
        if let Some(name) = arguments.strip_prefix("PR_SET_NAME, ") {
            *self.threads.entry(name.split('"').nth(1).unwrap_or_default().to_owned()).or_default() += 1;
        }
        let call = if arguments.starts_with("AF_NETLINK") { "netlink socket" } else { call };
        *self.calls.entry(call.to_owned()).or_default() += 1;
    }

    /// Threads of a name, but not those of the actors' pool: it is bounded, and how far it grows depends
    /// on which calls happen to meet.
    fn threads_beside_the_pool(&self) -> BTreeMap<&str, u64> {
        let named = self.threads.iter().map(|(name, count)| (name.as_str(), *count));
        named.filter(|(name, _)| !name.starts_with("resource-actors")).collect()
    }
}

#[test]
fn a_set_up_costs_one_socket_one_way_home_one_look_at_its_directory_and_no_thread() {
    let is_root = nix::unistd::getuid().is_root();
    let found = is_root.then(|| Some((Asked::by_sandboxes(5)?, Asked::by_sandboxes(25)?))).flatten();
    let Some((few, many)) = found else {
        assert!(std::env::var_os("CI").is_none(), "this test needs root and strace");
        eprintln!("skipped: it needs root and strace");
        return;
    };
    let of = |asked: &Asked, call: &str| asked.calls.get(call).copied().unwrap_or(0);
    let more = |call: &str| of(&many, call) - of(&few, call);
    assert_eq!(more("netlink socket"), 20, "one for each set-up, kept for its end");
    assert_eq!(more("unshare"), 20, "one namespace each");
    // Whoever opens a directory of ours asks whose it is: once for the state directory, once for its own.
    assert!(more("geteuid") <= 40, "{} directories opened by 20 sandboxes", more("geteuid"));
    assert!(more("setns") <= 40, "{} for 20 set-ups", more("setns"));
    assert_eq!((few.entered.len(), many.entered.len()), (1, 1), "the thread of the first serves the others");
    assert_eq!(few.threads_beside_the_pool(), many.threads_beside_the_pool(), "and none was made for anything else");
    assert_eq!(many.threads.get("enter-netns"), Some(&1), "{:?}", many.threads);
}
