//! Z6: the bytes of a trace, read and replayed.

use resource_actors::trace::{read_trace, replay};

/// Any file is refused with the line that is wrong, or replays to its end or to a difference.
///
/// # Panics
/// When the reader or the replay does.
pub fn z6_trace(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("trace.jsonl");
    std::fs::write(&path, bytes).expect("a file");
    match read_trace(&path) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok((_, events)) => {
            if let Ok(report) = replay(&events) {
                assert!(report.commands <= events.len(), "{report:?}");
            }
        }
    }
}
