//! The timeline as one page that needs nothing else.
//!
//! A page of thousands of sandboxes must open at once, so each sandbox's records are a text of their
//! own that is parsed when it is looked at, and contents of messages are in the page only as far as
//! [`CONTENTS_BYTES_MAX`] goes: first those of the sandboxes that failed, then of those that took long.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::tone;
use crate::story::layout::{Layout, lane_of_actor};
use crate::story::{Change, Life, Outcome, Story};

/// All contents of one page.
const CONTENTS_BYTES_MAX: usize = 24 << 20;
/// One content.
const CONTENT_BYTES_MAX: usize = 6 << 10;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Writes the page of a trace that is called `file`.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(story: &Story, file: &str, out: &mut impl Write) -> io::Result<()> {
    let mut names = Names::default();
    let lives: Vec<_> = story.lives.iter().map(|life| self::life(life, &mut names)).collect();
    let page = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let (head, tail) = page.split_once("<!--DATA-->").unwrap_or((&page, ""));
    out.write_all(head.as_bytes())?;
    let rows: Vec<_> = story.lives.iter().map(row).collect();
    let header = &story.header;
    let about = json!({"file": file, "vmm": header.vmm, "host": header.host, "names": names.list, "lives": rows});
    data(out, "story", &about)?;
    for (number, life) in lives.iter().enumerate() {
        data(out, &format!("life-{number}"), life)?;
    }
    contents(story, out)?;
    out.write_all(tail.as_bytes())
}

/// A text that the script parses when it needs it. `<` is never written, so nothing ends it early.
fn data(out: &mut impl Write, id: &str, value: &Value) -> io::Result<()> {
    let text = value.to_string().replace('<', "\\u003c");
    writeln!(out, "<script type=\"application/json\" id=\"{id}\">{text}</script>")
}

/// A sandbox in the list.
fn row(life: &Life) -> Value {
    let records = life.messages.len() + life.calls.len();
    json!([life.sandbox, life.begun_us, life.ended_us, records, life.failed_commands(), life.failures()])
}

/// Texts that come again and again, by number.
#[derive(Default)]
struct Names {
    list: Vec<String>,
    numbers: BTreeMap<String, usize>,
}

impl Names {
    fn number(&mut self, name: &str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.list.push(name.to_owned());
        self.numbers.insert(name.to_owned(), self.list.len() - 1);
        self.list.len() - 1
    }
}

fn why(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Failed(why) => Some(why),
        _ => None,
    }
}

/// A sandbox's records, each an array in the order that the script names at its top.
fn life(life: &Life, names: &mut Names) -> Value {
    let layout = Layout::new(life);
    let mut records = Vec::new();
    for (message, place) in life.messages.iter().zip(&layout.messages) {
        let (sent, from, to) = (message.sent_us, message.taken_us, message.ended_us);
        let record = json!([
            message.seq,
            message.reply_seq,
            message.cause,
            0,
            place.lane,
            place.waiting.map_or(-1, |row| i64::try_from(row).unwrap_or(-1)),
            sent,
            from,
            to,
            names.number(&message.name),
            tone(&message.outcome, message.purpose),
            null,
            why(&message.outcome),
        ]);
        records.push((from, message.seq, record));
    }
    for (call, place) in life.calls.iter().zip(&layout.calls) {
        let (from, to) = (call.begun_us, call.ended_us);
        let (name, tone) = (names.number(&call.method), tone(&call.outcome, call.purpose));
        let (lane, row, why) = (place.lane, place.row, why(&call.outcome));
        let record = json!([call.seq, null, call.cause, 1, lane, row, from, from, to, name, tone, null, why]);
        records.push((from, call.seq, record));
    }
    for event in &life.events {
        let (name, lane) = (names.number(&event.what), lane_of_actor(event.actor));
        let (at, tone) = (event.at_us, if event.is_bad { 3 } else { 0 });
        let record = json!([event.seq, null, event.cause, 2, lane, 0, at, at, at, name, tone, null, null]);
        records.push((at, event.seq, record));
    }
    for mark in &life.marks {
        let (name, lane, at) = (names.number("ledger"), lane_of_actor(mark.actor), mark.at_us);
        let tone = if matches!(mark.change, Change::Left(_)) { 3 } else { 0 };
        let record = json!([mark.seq, null, mark.cause, 3, lane, 0, at, at, at, name, tone, mark.text(), null]);
        records.push((at, mark.seq, record));
    }
    records.sort_by_key(|(from, seq, _)| (*from, *seq));
    let lanes = layout.lanes.iter().enumerate().map(|(index, lane)| {
        let serves = layout.messages.iter().any(|place| place.lane == index);
        let used = if serves { 2 } else { u8::from(lane.calls > 0) };
        json!([lane.name, lane.waiting, lane.calls, used])
    });
    json!({
        "begun": life.begun_us,
        "ended": life.ended_us,
        "lanes": lanes.collect::<Vec<_>>(),
        "folds": layout.scale.folds,
        "foldWidth": layout.scale.fold_width(),
        "records": records.into_iter().map(|(_, _, record)| record).collect::<Vec<_>>(),
    })
}

/// What messages and calls contain, the most interesting sandboxes first, as far as there is room.
fn contents(story: &Story, out: &mut impl Write) -> io::Result<()> {
    let mut order: Vec<_> = (0..story.lives.len()).collect();
    order.sort_by_key(|n| {
        let life = &story.lives[*n];
        std::cmp::Reverse((life.failed_commands() > 0, life.duration_us()))
    });
    let mut left = CONTENTS_BYTES_MAX;
    for number in order {
        let details = details(&story.lives[number]);
        let length: usize = details.values().flatten().map(String::len).sum();
        if length > left {
            break;
        }
        left -= length;
        data(out, &format!("detail-{number}"), &json!(details))?;
    }
    Ok(())
}

fn details(life: &Life) -> BTreeMap<u64, [String; 2]> {
    let message = life
        .messages
        .iter()
        .map(|message| (message.seq, [shown(&message.request), message.reply.as_ref().map(shown).unwrap_or_default()]));
    let call = life.calls.iter().map(|call| (call.seq, [shown(&call.request), shown(&json!(call.result))]));
    message.chain(call).collect()
}

fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > CONTENT_BYTES_MAX {
        let end = (0..=CONTENT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::story::sample;

    fn page(story: &Story) -> String {
        let mut page = Vec::new();
        write(story, "a<b>.jsonl", &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// The texts in a page by their ids.
    fn texts(page: &str) -> BTreeMap<&str, Value> {
        let part = |text: &'static str| page.split(text).skip(1);
        part("<script type=\"application/json\" id=\"")
            .map(|part| {
                let (id, rest) = part.split_once("\">").unwrap();
                (id, serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap())
            })
            .collect()
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let page = page(&sample::story());
        for outside in ["http:", "https:", "src=", "@import", "url(h", "fetch(", "eval("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        assert!(!page.contains("/*S") && !page.contains("<!--DATA"), "every place is filled");
    }

    #[test]
    fn every_record_is_in_the_page() {
        let story = sample::story();
        let page = page(&story);
        let texts = texts(&page);
        assert_eq!(texts["story"]["file"], "a<b>.jsonl");
        for (number, life) in story.lives.iter().enumerate() {
            let records = texts[&*format!("life-{number}")]["records"].as_array().unwrap();
            assert_eq!(records.len(), life.messages.len() + life.calls.len() + life.marks.len() + life.events.len());
            assert!(records.iter().all(|record| record.as_array().unwrap().len() == 13));
            let details = texts[&*format!("detail-{number}")].as_object().unwrap();
            assert_eq!(details.len(), life.messages.len() + life.calls.len());
        }
    }

    #[test]
    fn a_long_content_is_cut_between_characters() {
        let text = shown(&json!("é".repeat(CONTENT_BYTES_MAX)));
        assert!(text.len() <= CONTENT_BYTES_MAX + '…'.len_utf8() && text.ends_with('…'));
    }
}
