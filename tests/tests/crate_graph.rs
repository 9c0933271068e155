//! Holds the workspace to its architecture: which crate may use which, and what a source may not say.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is their failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const PORTS: [&str; 5] = ["sandbox-model", "actor-shell", "helper-process", "hypervisor", "guest-agent"];
const ACTORS: [&str; 4] = ["cgroup-actor", "device-actor", "network-actor", "sharefs-actor"];
/// Two of any of these would be two vocabularies for one thing.
const ONE_VERSION: [&str; 6] =
    ["actix", "netlink-packet-core", "netlink-packet-route", "oci-spec", "rtnetlink", "tokio"];
const LINES_MAX: usize = 520;

/// The crates of this workspace that a crate may use outside its tests.
fn allowed(name: &str) -> Vec<&'static str> {
    match name {
        "sandbox-model" | "agent-protocol" | "xtask" => vec![],
        "actor-shell" | "helper-process" => vec!["sandbox-model"],
        "hypervisor" => vec!["sandbox-model", "helper-process"],
        "guest-agent" => vec!["sandbox-model", "agent-protocol"],
        "guest-init" => vec!["agent-protocol"],
        actor if ACTORS.contains(&actor) => PORTS.to_vec(),
        "resource-actors" => [&PORTS[..], &ACTORS].concat(),
        "simulation" => [&PORTS[..], &ACTORS, &["resource-actors"]].concat(),
        "benchmarks" => [&PORTS[..], &ACTORS, &["resource-actors", "simulation"]].concat(),
        "sandboxctl" | "lifecycle-tests" => {
            [&PORTS[..], &ACTORS, &["resource-actors", "simulation", "benchmarks", "agent-protocol"]].concat()
        }
        other => panic!("{other}: say here what it may use"),
    }
}

#[test]
fn arrows_point_one_way() {
    let packages = metadata();
    let members: BTreeSet<&str> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = text(&package["name"]);
        let may = allowed(name);
        for (used, kind) in dependencies(package) {
            let against_the_arrows = members.contains(used) && kind != Some("dev") && !may.contains(&used);
            let names_actix = used.starts_with("actix") && name != "actor-shell";
            if against_the_arrows || names_actix {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not in the architecture: {wrong:#?}");
}

#[test]
fn shared_vocabularies_come_in_one_version() {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.unwrap_or_default().trim_matches('"')
        };
        versions.entry(field("name")).or_default().push(field("version"));
    }
    for name in ONE_VERSION {
        assert_eq!(versions.get(name).map_or(0, Vec::len), 1, "{name}: {:?}", versions.get(name));
    }
}

#[test]
fn resource_state_is_guarded_by_mailboxes_only() {
    let rooms = ACTORS.iter().chain(&["resource-actors"]);
    // The queue to a trace's writer: nobody decides anything by what is in it.
    let is_no_resource = |path: &PathBuf| path.ends_with("resource-actors/src/trace/sink.rs");
    let files: Vec<PathBuf> = rooms
        .flat_map(|name| sources(&workspace().join("crates").join(name).join("src")))
        .filter(|path| !is_no_resource(path))
        .collect();
    assert_nowhere(&files, |line| words(line).any(|word| word == "Mutex" || word == "RwLock"));
}

#[test]
fn sources_keep_to_the_house_rules() {
    let files: Vec<PathBuf> = crates().iter().flat_map(|member| sources(&member.join("src"))).collect();
    let taboos = ["todo!", "unimplemented!", "remove_dir_all"];
    assert_nowhere(&files, |line| taboos.iter().any(|taboo| line.contains(taboo)));
    let shell = workspace().join("crates/actor-shell");
    let outside: Vec<PathBuf> = files.into_iter().filter(|path| !path.starts_with(&shell)).collect();
    assert_nowhere(&outside, |line| line.contains("actix::"));
}

/// A replay must do what the recorded run did: nothing may depend on the order of a hash table, on a clock
/// that does not jump, on a thread's turn, or on the branch that `select!` draws.
#[test]
fn what_happens_follows_from_messages_and_ports_alone() {
    // The guest is no actor; a measurement is about real time.
    let others = ["guest-init", "benchmarks", "fault-tiers"].map(|name| workspace().join("crates").join(name));
    let members = crates().into_iter().filter(|member| !others.contains(member));
    let files: Vec<PathBuf> = members.flat_map(|member| sources(&member.join("src"))).collect();
    let taboos = ["HashMap", "HashSet", "SystemTime", "thread_rng"];
    assert_nowhere(&files, |line| {
        words(line).any(|word| taboos.contains(&word)) || line.contains("std::time::Instant")
    });
    assert_nowhere(&files, |line| line.contains("thread::spawn("));
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let unbiased = lines.windows(2).filter(|pair| pair[0].ends_with("select! {") && pair[1] != "biased;").count();
        assert_eq!(unbiased, 0, "{}: select! without biased", path.display());
    }
}

#[test]
fn files_stay_readable_at_one_sitting() {
    let roots = crates().into_iter().chain([workspace().join("xtask"), workspace().join("tests")]);
    let long: Vec<String> = roots
        .flat_map(|root| [sources(&root.join("src")), sources(&root.join("tests"))].concat())
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines >= LINES_MAX)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{LINES_MAX} lines or more: {long:#?}");
}

fn metadata() -> Vec<Value> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(workspace());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["packages"].as_array().unwrap().clone()
}

/// Names of what a package uses, each with its kind: none for the normal one.
fn dependencies(package: &Value) -> impl Iterator<Item = (&str, Option<&str>)> {
    let list = package["dependencies"].as_array().unwrap();
    list.iter().map(|dependency| (text(&dependency["name"]), dependency["kind"].as_str()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn crates() -> Vec<PathBuf> {
    fs::read_dir(workspace().join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// All Rust files below a directory, which need not be there.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let nested = paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

fn assert_nowhere(files: &[PathBuf], is_wrong: impl Fn(&str) -> bool) {
    assert!(!files.is_empty(), "there is nothing to look at");
    let mut found = Vec::new();
    for path in files {
        for (index, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
            if is_wrong(line) {
                found.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "against the rules of the house: {found:#?}");
}
