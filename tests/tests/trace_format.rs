//! The trace's format: its schema, what is on the disk, what is read back.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use lifecycle_tests::simulated::{create, in_virtual_time, lifecycle, system};
use resource_actors::trace::{ChannelSink, TraceFile, read_trace};
use sandbox_model::trace::{Event, Header, TraceSink};
use simulation::World;
use std::sync::Arc;

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/trace.v2.json");

fn header() -> Header {
    Header::new("simulated", "simulated")
}

/// Records a whole lifecycle to `path`.
fn record(path: &Path, limit_bytes: u64) -> std::io::Result<()> {
    let file = TraceFile::bounded(path, header(), limit_bytes)?;
    let sink = file.sink();
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, Some(sink), None);
        let sandbox = create(&system, "told").await.expect("nothing is in its way");
        lifecycle(&sandbox).await.expect("nothing fails");
        assert!(sandbox.cleanup().await.expect("nothing fails").is_clean());
    });
    file.finish()
}

#[test]
fn the_schema_is_that_of_the_types() {
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(Event)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(SCHEMA, &schema).unwrap();
    }
    let written = fs::read_to_string(SCHEMA).unwrap();
    assert!(written == schema, "schema/trace.v2.json is stale: run this test with UPDATE_SCHEMA=1");
}

#[test]
fn every_line_of_a_real_trace_has_the_fields_of_its_kind_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("life.jsonl");
    record(&path, u64::MAX).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    for line in text.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        let kind = kinds.iter().find(|kind| kind["properties"]["event"]["const"] == event["event"]).unwrap();
        // What is flattened into an event stands behind a reference.
        let part = kind["$ref"].as_str().map(|name| &schema["$defs"][name.rsplit('/').next().unwrap()]);
        let described = |field: &str, of: &str| {
            let has = |schema: &serde_json::Value| {
                schema[of].get(field).is_some()
                    || schema[of].as_array().is_some_and(|names| names.iter().any(|name| name == field))
            };
            has(kind) || part.is_some_and(has)
        };
        for field in event.as_object().unwrap().keys() {
            assert!(described(field, "properties"), "{field} in {line}");
        }
        let required = [Some(kind), part].into_iter().flatten().filter_map(|schema| schema["required"].as_array());
        for field in required.flatten() {
            assert!(event.get(field.as_str().unwrap()).is_some(), "{field} is missing in {line}");
        }
    }
    assert!(text.len() <= 96 << 10, "{} bytes for one lifecycle", text.len());
}

#[test]
fn a_full_part_makes_room_and_what_is_left_is_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("life.jsonl");
    record(&path, 24 << 10).unwrap();
    let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 24 << 10, "{bytes}");
    let (header, events) = read_trace(&path).unwrap();
    assert!(header.part > 1);
    let seqs: Vec<_> = events.iter().filter_map(|event| event.place().map(|place| place.seq)).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "nothing is missing between the parts");
    assert!(seqs[0] > 1);
}

#[test]
fn what_is_lost_is_counted_in_the_trace_and_blocks_nobody() {
    let (sink, heard) = ChannelSink::with_queue(2);
    let event = || Event::Header(header());
    for _ in 0..5 {
        sink.record(event());
    }
    assert_eq!((sink.lost(), heard.try_iter().count()), (3, 2));
}

#[test]
fn a_line_that_is_no_event_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.jsonl");
    let header = serde_json::to_string(&Event::<serde_json::Value>::Header(header())).unwrap();
    for (text, place) in [
        (format!("{header}\n{{\"event\":\"dreamt\"}}\n"), "line 2"),
        (format!("{header}\n{header}\n"), "line 2: a second header"),
        (header.replace("\"version\":2", "\"version\":1") + "\n", "line 1: trace version 1 is not 2"),
        ("\n".to_owned(), "line 1"),
        (String::new(), "line 1: the header is missing"),
    ] {
        fs::write(&path, text).unwrap();
        let error = read_trace(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains(place), "{error}");
    }
    fs::write(&path, format!("{header}\n{{\"event\":\"interr")).unwrap();
    assert_eq!(read_trace(&path).unwrap().1, [], "a line cut by a crash is left out");
}
