//! The recorded traces: each replays as it was.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use resource_actors::trace::{read_trace, replay};
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::trace::{Event, Header};

/// The recorded traces by name. Those that are packed are unpacked to `dir`.
fn recorded(dir: &Path) -> BTreeMap<String, PathBuf> {
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(traces).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let limit = if name.starts_with("hundred") { 128 << 10 } else { 64 << 10 };
        assert!(fs::metadata(&path).unwrap().len() <= limit, "{name} is too large for a repository");
        match name.strip_suffix(".gz") {
            Some(name) => {
                let unpacked = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
                assert!(unpacked.status.success(), "{name}");
                fs::write(dir.join(name), unpacked.stdout).unwrap();
                found.insert(name.to_owned(), dir.join(name));
            }
            None => drop(found.insert(name, path)),
        }
    }
    found
}

fn read(path: &Path) -> (Header, Vec<Event>) {
    read_trace(path).unwrap()
}

#[test]
fn every_recorded_trace_replays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let traces = recorded(dir.path());
    assert!(traces.len() >= 8, "{traces:?}");
    for (name, path) in traces {
        let (header, events) = read(&path);
        assert_eq!(header.host, "real", "{name}");
        let report = replay(&events).unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {} events, {} outputs, {} commands cut off", report.events, report.outputs, report.cut);
        assert!(report.divergence.is_none(), "{name}: {}", report.divergence.unwrap());
        assert!(report.commands > 0 && report.outputs > report.commands, "{name}: {report:?}");
        let is_cut = name.starts_with("crash-in-boot");
        assert_eq!(report.cut > 0, is_cut, "{name}");
        let all_released = report.states.values().all(|state| *state == LifecycleState::Released);
        assert_eq!(all_released, !is_cut, "{name}: {:?}", report.states);
    }
}

#[test]
fn what_differs_anywhere_in_a_real_trace_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (_, events) = read(&recorded(dir.path())["life.jsonl"]);
    let mut found = 0;
    // Every 40th of what actors put out.
    let outputs = |event: &Event| matches!(event, Event::Replied { .. } | Event::Noted { .. } | Event::Received { .. });
    for place in (0..events.len()).filter(|place| outputs(&events[*place])).step_by(40) {
        let mut changed = events.clone();
        match &mut changed[place] {
            Event::Replied { reply, .. } => *reply = serde_json::json!("something else"),
            Event::Received { place, .. } if place.cause.is_none() => continue,
            Event::Received { request, .. } => *request = serde_json::json!("something else"),
            _ => drop(changed.remove(place)),
        }
        let report = replay(&changed).unwrap();
        assert!(report.divergence.is_some(), "{:?}", events[place]);
        found += 1;
    }
    assert!(found >= 3);
}
