//! `trace diff`: two traces as aligned lists of steps.

use std::collections::BTreeMap;
use std::path::Path;

use resource_actors::trace::difference;
use sandbox_model::SandboxId;
use sandbox_model::trace::{Ended, Event};
use serde_json::{Value, json};
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::{diverged, read};
use crate::output::{Failure, data, json as print_json};

/// One thing that an actor did.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    /// Which sandbox (by the order of their appearance), actor, message or call.
    name: String,
    /// How it ended.
    outcome: &'static str,
    /// Request and answer.
    content: Value,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.outcome)
    }
}

/// One line of the comparison.
enum Row<'a> {
    Same(&'a Step),
    Changed(&'a Step, &'a Step),
    One(&'a Step),
    Other(&'a Step),
}

pub(super) fn diff(one: &Path, other: &Path, all: bool, as_json: bool) -> Result<(), Failure> {
    let (left, right) = (steps(&read(one)?.1), steps(&read(other)?.1));
    let rows = rows(&left, &right);
    let count = |is: fn(&Row<'_>) -> bool| rows.iter().filter(|row| is(row)).count();
    let same = count(|row| matches!(row, Row::Same(_)));
    let changed = count(|row| matches!(row, Row::Changed(..)));
    let (only_one, only_other) = (count(|row| matches!(row, Row::One(_))), count(|row| matches!(row, Row::Other(_))));
    if as_json {
        let lines = rows.iter().filter(|row| all || !matches!(row, Row::Same(_))).map(as_document);
        print_json(&json!({
            "v": 1, "same": same, "changed": changed, "only_one": only_one, "only_other": only_other,
            "steps": lines.collect::<Vec<_>>(),
        }));
    } else {
        let lines: String = rows.iter().filter(|row| all || !matches!(row, Row::Same(_))).map(render).collect();
        let sum = format!(
            "{same} steps alike, {changed} changed, {only_one} only in the first, {only_other} only in the second\n"
        );
        data(&(lines + &sum));
    }
    if changed + only_one + only_other == 0 {
        return Ok(());
    }
    let what = format!("{} and {} differ", one.display(), other.display());
    Err(diverged(what, format!("{} of {} steps", rows.len() - same, rows.len())))
}

/// What the actors did, by command and actor: what happens side by side has no order worth comparing.
fn steps(events: &[Event]) -> Vec<Step> {
    let (mut ordinals, mut roots, mut requests) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut steps = Vec::new();
    for event in events {
        let Some(place) = event.place() else { continue };
        let next = ordinals.len() + 1;
        let ordinal = *ordinals.entry(place.sandbox.clone()).or_insert(next);
        let root = place.cause.and_then(|cause| roots.get(&cause).copied()).unwrap_or(place.seq);
        roots.insert(place.seq, root);
        let (name, outcome, content) = match event {
            Event::Received { request, .. } => {
                requests.insert(place.seq, request);
                continue;
            }
            Event::Replied { message, reply, .. } => {
                let request = place.cause.and_then(|cause| requests.get(&cause));
                (message.clone(), outcome(reply), json!({"request": request, "reply": reply}))
            }
            Event::Called { port, method, request, result, .. } => {
                let outcome = match result {
                    Ended::Ok(_) => "ok",
                    Ended::Err(_) => "failed",
                    Ended::Dropped => "dropped",
                    Ended::Panicked => "panicked",
                };
                (format!("· {port}.{method}"), outcome, json!({"request": request, "result": result}))
            }
            Event::Died { reason, .. } => ("death".to_owned(), "", json!(reason)),
            _ => continue,
        };
        let name = format!("{ordinal} {:10} {name}", place.actor.as_str());
        steps.push(((ordinal, root, place.actor, place.seq), Step { name, outcome, content }));
    }
    steps.sort_by_key(|(order, _)| *order);
    steps.into_iter().map(|(_, step)| Step { content: without_names(&step.content, &ordinals), ..step }).collect()
}

/// A reply is a `Result` within another.
fn outcome(reply: &Value) -> &'static str {
    if reply.get("Err").is_some() {
        "refused"
    } else if reply.get("Ok").is_some_and(|reply| reply.get("Err").is_some()) {
        "failed"
    } else {
        "ok"
    }
}

/// The content without what two runs of the same must differ in: the sandboxes' names, and waits.
fn without_names(value: &Value, names: &BTreeMap<SandboxId, usize>) -> Value {
    match value {
        Value::String(text) => {
            let named = names.iter().fold(text.clone(), |text, (id, n)| text.replace(id.as_str(), &format!("#{n}")));
            Value::String(named)
        }
        Value::Array(items) => items.iter().map(|item| without_names(item, names)).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| *name != "waited_ms");
            Value::Object(kept.map(|(name, value)| (name.clone(), without_names(value, names))).collect())
        }
        other => other.clone(),
    }
}

fn rows<'a>(left: &'a [Step], right: &'a [Step]) -> Vec<Row<'a>> {
    let names = |steps: &'a [Step]| steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for op in capture_diff_slices(Algorithm::Myers, &names(left), &names(right)) {
        let (_, old, new) = op.as_tag_tuple();
        if let DiffOp::Equal { .. } = op {
            let pairs = left[old].iter().zip(&right[new]);
            rows.extend(pairs.map(|(one, other)| if one == other { Row::Same(one) } else { Row::Changed(one, other) }));
        } else {
            rows.extend(left[old].iter().map(Row::One));
            rows.extend(right[new].iter().map(Row::Other));
        }
    }
    rows
}

fn render(row: &Row<'_>) -> String {
    match row {
        Row::Same(step) => format!("  {step}\n"),
        Row::One(step) => format!("- {step}\n"),
        Row::Other(step) => format!("+ {step}\n"),
        Row::Changed(one, other) => {
            let differing = difference(&one.content, &other.content);
            let indented: String = differing.lines().skip(1).map(|line| format!("    {line}\n")).collect();
            format!(
                "~ {one}{}\n{indented}",
                if one.outcome == other.outcome { String::new() } else { format!(" | {}", other.outcome) }
            )
        }
    }
}

fn as_document(row: &Row<'_>) -> Value {
    let step = |step: &Step| json!({"step": step.name, "outcome": step.outcome});
    match row {
        Row::Same(one) => json!({"in": "both", "one": step(one)}),
        Row::One(one) => json!({"in": "one", "one": step(one)}),
        Row::Other(other) => json!({"in": "other", "other": step(other)}),
        Row::Changed(one, other) => json!({
            "in": "both", "one": step(one), "other": step(other),
            "difference": difference(&one.content, &other.content),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_model::lifecycle::ActorName;
    use sandbox_model::trace::Place;

    fn life(sandbox: &str, messages: &[(&str, Value)]) -> Vec<Event> {
        let mut events = Vec::new();
        for (message, reply) in messages {
            let seq = events.len() as u64 + 1;
            let sandbox = SandboxId::new(sandbox).unwrap();
            let place = Place { seq, cause: None, sandbox, actor: ActorName::Supervisor, generation: 1, at_us: seq };
            let (message, request) = ((*message).to_owned(), json!({"path": format!("/run/{}", place.sandbox)}));
            let answered = Place { seq: seq + 1, cause: Some(seq), ..place.clone() };
            events.push(Event::Received { place, message: message.clone(), request, queue_us: 0 });
            events.push(Event::Replied { place: answered, message, reply: reply.clone(), service_us: 1 });
        }
        events
    }

    #[test]
    fn two_runs_of_the_same_are_alike_whatever_their_sandboxes_are_called() {
        let done = || json!({"Ok": {"Ok": null}});
        let (one, other) = (steps(&life("a", &[("Stop", done())])), steps(&life("b-7", &[("Stop", done())])));
        assert_eq!(one, other);
        assert!(rows(&one, &other).iter().all(|row| matches!(row, Row::Same(_))));
    }

    #[test]
    fn what_is_missing_is_aligned_and_what_differs_is_shown() {
        let (done, failed) = (json!({"Ok": {"Ok": null}}), json!({"Ok": {"Err": "busy"}}));
        let one = steps(&life("a", &[("Prepare", done.clone()), ("Start", done.clone()), ("Stop", done.clone())]));
        let other = steps(&life("a", &[("Prepare", done.clone()), ("Stop", failed), ("Save", done)]));
        let lines: Vec<_> = rows(&one, &other).iter().map(render).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("  1 supervisor Prepare ok"), "{lines:?}");
        assert!(lines[1].starts_with("- 1 supervisor Start"), "{lines:?}");
        assert!(lines[2].starts_with("~ 1 supervisor Stop ok | failed") && lines[2].contains("\"busy\""), "{lines:?}");
        assert!(lines[3].starts_with("+ 1 supervisor Save"), "{lines:?}");
    }
}
