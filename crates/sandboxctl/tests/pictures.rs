//! Pictures of the committed trace, as the built program draws them.
#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn trace(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir).arg("trace").args(args);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A message that failed, a call that failed, a message that waited behind others.
const EXPLAINED: [&str; 3] = ["22", "90", "288"];

#[test]
fn an_explanation_says_what_it_said_before() {
    let dir = TempDir::new().unwrap();
    let file = data("two-lives.jsonl");
    for seq in EXPLAINED {
        let said = trace(dir.path(), &["explain", file.to_str().unwrap(), seq]);
        assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
        let expected = fs::read_to_string(data(&format!("explain/{seq}.txt"))).unwrap();
        assert_eq!(text(&said.stdout), expected, "record {seq}");
        let said = trace(dir.path(), &["explain", "--json", file.to_str().unwrap(), seq]);
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        let expected = fs::read(data(&format!("explain/{seq}.json"))).unwrap();
        assert_eq!(said, serde_json::from_slice::<Value>(&expected).unwrap(), "record {seq}");
    }
}

#[test]
fn a_record_that_is_not_there_is_an_error() {
    let dir = TempDir::new().unwrap();
    let file = data("two-lives.jsonl");
    let said = trace(dir.path(), &["explain", file.to_str().unwrap(), "999999"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stderr).starts_with("error[E0603]"), "{}", text(&said.stderr));
}

#[test]
fn a_timeline_is_written_in_every_form() {
    let dir = TempDir::new().unwrap();
    let file = data("two-lives.jsonl");
    let args = ["timeline", file.to_str().unwrap(), "-o", "t.html", "--chrome", "t.json", "--svg", "t.svg"];
    let said = trace(dir.path(), &args);
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stderr));
    assert!(text(&said.stdout).contains("of 2 sandboxes, 1 with failures"), "{}", text(&said.stdout));
    let page = fs::read_to_string(dir.path().join("t.html")).unwrap();
    assert!(page.contains("\"pod-0000\"") && page.contains("\"pod-0001\""));
    let chrome: Value = serde_json::from_slice(&fs::read(dir.path().join("t.json")).unwrap()).unwrap();
    assert!(chrome["traceEvents"].as_array().unwrap().len() > 100);
    let picture = fs::read_to_string(dir.path().join("t.svg")).unwrap();
    assert!(picture.contains("PrepareBeforeStartVm") && picture.contains("Sandbox pod-0000"));
}

#[test]
fn a_timeline_needs_to_know_what_to_draw() {
    let dir = TempDir::new().unwrap();
    let file = data("two-lives.jsonl");
    assert_eq!(trace(dir.path(), &["timeline", file.to_str().unwrap()]).status.code(), Some(2));
    let stranger = ["timeline", file.to_str().unwrap(), "--svg", "t.svg", "--sandbox", "stranger"];
    let said = trace(dir.path(), &stranger);
    assert!(said.status.code() == Some(1) && text(&said.stderr).contains("pod-0000, pod-0001"));
    let nowhere = trace(dir.path(), &["timeline", file.to_str().unwrap(), "-o", "no/such/t.html"]);
    assert!(text(&nowhere.stderr).starts_with("error[E0604]"), "{}", text(&nowhere.stderr));
}
