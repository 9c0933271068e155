//! A trace in Chrome's event format, for <https://ui.perfetto.dev>.
//!
//! A process for each sandbox, a thread for each lane and row. The importer nests slices of one
//! thread by time, so slices of one thread never overlap: calls lie below their message on threads
//! of their own. Messages that wait are asynchronous slices, since several wait at once; how many do
//! is a counter. A flow leads from each message to those that it caused.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::story::layout::{Layout, lane_of_actor};
use crate::story::{Life, Message, Outcome, Story};

/// Threads of one lane: its messages, then its rows of calls.
const THREADS_OF_A_LANE: usize = 10_000;

/// Writes the events of a trace, in the order of their times.
///
/// # Errors
/// They cannot be written.
pub(crate) fn write(story: &Story, out: &mut impl Write) -> io::Result<()> {
    let header = &story.header;
    let about = json!({"vmm": header.vmm, "host": header.host, "build": header.build});
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let mut events: Vec<_> =
        story.lives.iter().enumerate().flat_map(|(number, life)| of_life(number + 1, life)).collect();
    // Names first; of two slices that begin together the longer is the outer one.
    events.sort_by_key(|event| (event.at, std::cmp::Reverse(event.took)));
    for (number, event) in events.iter().enumerate() {
        let comma = if number == 0 { "\n" } else { ",\n" };
        write!(out, "{comma}{}", event.value)?;
    }
    out.write_all(b"\n]}\n")
}

/// An event, and by what it is sorted: `None` for names.
struct Event {
    at: Option<u64>,
    took: u64,
    value: Value,
}

fn of_life(pid: usize, life: &Life) -> Vec<Event> {
    let layout = Layout::new(life);
    let mut events = names(pid, life, &layout);
    let mut add = |at: u64, took: u64, value: Value| events.push(Event { at: Some(at), took, value });
    let by_seq = life.by_seq();
    let thread = |lane: usize, row: usize| lane * THREADS_OF_A_LANE + row + 1;
    for (message, place) in life.messages.iter().zip(&layout.messages) {
        let (tid, name) = (thread(place.lane, 0), message.name.as_str());
        let args = json!({"seq": message.seq, "cause": message.cause, "how": how(&message.outcome), "request": message.request});
        let took = message.ended_us - message.taken_us;
        add(message.taken_us, took, slice((pid, tid), (message.taken_us, took), name, "message", args));
        if message.sent_us < message.taken_us {
            let wait = |phase: &str, ts: u64| json!({"ph": phase, "cat": "mailbox", "name": format!("{name} waits"), "id": message.seq, "pid": pid, "tid": tid, "ts": ts});
            add(message.sent_us, 1, wait("b", message.sent_us));
            add(message.taken_us, 0, wait("e", message.taken_us));
        }
        if let Some(cause) = message.cause.and_then(|cause| by_seq.get(&cause)) {
            let from = thread(lane_of(life, &layout, cause), 0);
            let flow = |phase: &str, tid: usize, ts: u64| json!({"ph": phase, "cat": "cause", "name": "cause", "id": message.seq, "pid": pid, "tid": tid, "ts": ts, "bp": "e"});
            // A flow begins within the slice that it leaves.
            let left = message.sent_us.clamp(cause.taken_us, cause.ended_us);
            add(left, 0, flow("s", from, left));
            add(message.taken_us.max(left), 0, flow("f", tid, message.taken_us.max(left)));
        }
    }
    for (call, place) in life.calls.iter().zip(&layout.calls) {
        let tid = thread(place.lane, place.row + 1);
        let args = json!({"seq": call.seq, "cause": call.cause, "port": call.port, "how": how(&call.outcome), "request": call.request});
        let took = call.ended_us - call.begun_us;
        add(call.begun_us, took, slice((pid, tid), (call.begun_us, took), &call.method, &call.port, args));
    }
    let notes = life.marks.iter().map(|mark| (mark.actor, mark.at_us, mark.text()));
    let happened = life.events.iter().map(|event| (event.actor, event.at_us, event.what.clone()));
    for (actor, ts, name) in notes.chain(happened) {
        let tid = thread(lane_of_actor(actor), 0);
        add(ts, 0, json!({"ph": "i", "s": "t", "name": name, "cat": "ledger", "pid": pid, "tid": tid, "ts": ts}));
    }
    for (name, depths) in depths(life, &layout) {
        for (at, depth) in depths {
            let value = json!({"ph": "C", "name": format!("mailbox of {name}"), "pid": pid, "ts": at, "args": {"messages": depth}});
            add(at, 0, value);
        }
    }
    events
}

fn how(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::AlreadyGone => "already gone".to_owned(),
        Outcome::Failed(why) => format!("failed: {why}"),
        Outcome::Dropped => "given up".to_owned(),
        Outcome::Open => "no answer in the trace".to_owned(),
    }
}

/// A slice of a process, thread and time; its name, category and arguments are added.
fn slice((pid, tid): (usize, usize), (ts, dur): (u64, u64), name: &str, category: &str, args: Value) -> Value {
    json!({"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args})
}

fn lane_of(life: &Life, layout: &Layout, message: &Message) -> usize {
    let index = life.messages.iter().position(|one| one.seq == message.seq);
    index.map_or(0, |index| layout.messages[index].lane)
}

/// What processes and threads are called, and in which order they are drawn.
fn names(pid: usize, life: &Life, layout: &Layout) -> Vec<Event> {
    let mut events = Vec::new();
    let mut name = |what: &str, tid: Option<usize>, args: Value| {
        let mut value = json!({"ph": "M", "name": what, "pid": pid, "args": args});
        if let Some(tid) = tid {
            value["tid"] = json!(tid);
        }
        events.push(Event { at: None, took: 0, value });
    };
    name("process_name", None, json!({"name": format!("sandbox {}", life.sandbox)}));
    for (index, lane) in layout.lanes.iter().enumerate() {
        for row in 0..=lane.calls {
            let tid = index * THREADS_OF_A_LANE + row + 1;
            let text = if row == 0 { lane.name.to_owned() } else { format!("{} calls {row}", lane.name) };
            name("thread_name", Some(tid), json!({"name": text}));
            name("thread_sort_index", Some(tid), json!({"sort_index": tid}));
        }
    }
    events
}

/// For each actor, how many messages wait or are served, whenever that changes.
fn depths<'a>(life: &Life, layout: &'a Layout) -> BTreeMap<&'a str, BTreeMap<u64, i64>> {
    let mut changes: BTreeMap<&str, BTreeMap<u64, i64>> = BTreeMap::new();
    for (message, place) in life.messages.iter().zip(&layout.messages) {
        let of = changes.entry(layout.lanes[place.lane].name).or_default();
        *of.entry(message.sent_us).or_default() += 1;
        *of.entry(message.ended_us).or_default() -= 1;
    }
    for of in changes.values_mut() {
        let mut depth = 0;
        for change in of.values_mut() {
            depth += *change;
            *change = depth;
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::story::sample;

    fn events() -> Vec<Value> {
        let mut text = Vec::new();
        write(&sample::story(), &mut text).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["otherData"]["vmm"], "simulated");
        document["traceEvents"].as_array().unwrap().clone()
    }

    fn of(phase: &str) -> Vec<Value> {
        events().into_iter().filter(|event| event["ph"] == phase).collect()
    }

    #[test]
    fn every_event_has_the_fields_of_its_phase() {
        for event in events() {
            let has = |fields: &[&str]| assert!(fields.iter().all(|field| !event[*field].is_null()), "{event}");
            has(&["ph", "pid", "name"]);
            match event["ph"].as_str().unwrap() {
                "M" => has(&["args"]),
                "X" => has(&["ts", "dur", "tid", "cat"]),
                "b" | "e" | "s" | "f" => has(&["ts", "tid", "id", "cat"]),
                "i" => has(&["ts", "tid", "s"]),
                "C" => assert!(event["args"]["messages"].is_number(), "{event}"),
                other => panic!("phase {other} is none of ours"),
            }
        }
    }

    #[test]
    fn times_only_grow() {
        let times: Vec<_> = events().iter().filter_map(|event| event["ts"].as_u64()).collect();
        assert!(times.len() > 100 && times.windows(2).all(|pair| pair[0] <= pair[1]));
    }

    #[test]
    fn slices_of_a_thread_never_overlap() {
        let mut threads: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
        for slice in of("X") {
            let number = |field: &str| slice[field].as_u64().unwrap();
            threads
                .entry((number("pid"), number("tid")))
                .or_default()
                .push((number("ts"), number("ts") + number("dur")));
        }
        assert!(threads.len() > 10);
        for (thread, mut slices) in threads {
            slices.sort_unstable();
            assert!(slices.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{thread:?}: {slices:?}");
        }
    }

    #[test]
    fn a_wait_and_a_flow_have_both_ends() {
        for (begin, end) in [("b", "e"), ("s", "f")] {
            let ends: BTreeMap<_, _> =
                of(end).iter().map(|event| (event["id"].to_string(), event["ts"].as_u64())).collect();
            let begins = of(begin);
            assert!(!begins.is_empty() && begins.len() == ends.len(), "{begin}");
            for event in begins {
                assert!(ends[&event["id"].to_string()] >= event["ts"].as_u64(), "{event}");
            }
        }
    }

    #[test]
    fn a_flow_leaves_from_within_a_slice() {
        let slices = of("X");
        for flow in of("s") {
            let within = slices.iter().any(|slice| {
                let (ts, dur) = (slice["ts"].as_u64().unwrap(), slice["dur"].as_u64().unwrap());
                let at = flow["ts"].as_u64().unwrap();
                (&slice["pid"], &slice["tid"]) == (&flow["pid"], &flow["tid"]) && ts <= at && at <= ts + dur
            });
            assert!(within, "{flow}");
        }
    }

    #[test]
    fn a_mailbox_empties() {
        let mut last = BTreeMap::new();
        for counter in of("C") {
            let depth = counter["args"]["messages"].as_i64().unwrap();
            assert!(depth >= 0);
            last.insert((counter["pid"].to_string(), counter["name"].to_string()), depth);
        }
        assert!(last.len() >= 6 && last.values().all(|depth| *depth == 0), "{last:?}");
    }
}
