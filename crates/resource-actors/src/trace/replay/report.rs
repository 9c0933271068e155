//! What a replay found.

use std::collections::BTreeMap;
use std::fmt;

use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::trace::Place;
use serde_json::Value;

/// What a replay found.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayReport {
    /// Events of the trace.
    pub events: usize,
    /// Commands that were driven again.
    pub commands: usize,
    /// Replies that were compared, of all actors.
    pub replies: usize,
    /// Messages, replies and ledger records that were compared, of all actors.
    pub outputs: usize,
    /// Commands that the trace ends before.
    pub cut: usize,
    /// Events that the trace says it lacks.
    pub lost: u64,
    /// Where each sandbox stood at the end.
    pub states: BTreeMap<SandboxId, LifecycleState>,
    /// The first difference, if there is one.
    pub divergence: Option<Divergence>,
}

/// The first difference between a trace and its replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Where in the trace; record 0 is behind its end.
    pub place: Place,
    /// Which output: a message, a reply, a call, a ledger record.
    pub what: String,
    /// What the trace says.
    pub recorded: Value,
    /// What happened now.
    pub replayed: Value,
}

/// Differing values that are shown of one difference.
const SHOWN_MAX: usize = 20;
const COLUMN: usize = 46;

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { seq, sandbox, actor, .. } = &self.place;
        writeln!(f, "record {seq}: sandbox {sandbox}, {actor} actor, {}", self.what)?;
        f.write_str(&difference(&self.recorded, &self.replayed))
    }
}

/// The smallest parts in which two values differ, side by side.
pub fn difference(recorded: &Value, replayed: &Value) -> String {
    let all = differences(recorded, replayed);
    let mut text = format!("  {:COLUMN$} | replayed", "recorded");
    for (path, recorded, replayed) in all.iter().take(SHOWN_MAX) {
        text += &format!("\n  {path}:\n  {recorded:COLUMN$} | {replayed}");
    }
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => text,
        more => text + &format!("\n  and {more} more"),
    }
}

/// Path, one, other.
fn differences(one: &Value, other: &Value) -> Vec<(String, String, String)> {
    let (one, other) = (leaves(one), leaves(other));
    let mut paths: Vec<_> = one.keys().chain(other.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    let shown = |leaves: &BTreeMap<String, String>, path| leaves.get(path).cloned().unwrap_or_else(|| "-".to_owned());
    let differing = paths.into_iter().filter(|path| one.get(*path) != other.get(*path));
    differing.map(|path| (path.clone(), shown(&one, path), shown(&other, path))).collect()
}

fn leaves(value: &Value) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                fields.iter().for_each(|(name, value)| walk(&format!("{path}/{name}"), value, leaves));
            }
            Value::Array(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(n, value)| walk(&format!("{path}/{n}"), value, leaves));
            }
            leaf => drop(leaves.insert(path.to_owned(), leaf.to_string())),
        }
    }
    let mut found = BTreeMap::new();
    walk("", value, &mut found);
    found
}

/// Why a trace cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A record does not fit the messages of this version.
    #[error("record {seq}: {what}")]
    Record {
        /// Which.
        seq: u64,
        /// What is wrong.
        what: String,
    },
    /// The replay's own runtime could not be made.
    #[error("cannot make the replay's runtime")]
    Runtime(#[source] std::io::Error),
}
