//! The timeline of one sandbox as an SVG, for a document.

use std::fmt::Write;

use super::tone;
use crate::story::layout::{Lane, Layout, Scale, lane_of_actor};
use crate::story::{Change, Life, Story, time};

const WIDTH: f64 = 1200.0;
/// Left of time: names of lanes.
const LABEL: f64 = 92.0;
const RIGHT: f64 = 16.0;
/// Rows, as in the page.
const WAIT_HEIGHT: f64 = 5.0;
const BAR_HEIGHT: f64 = 18.0;
const CALL_HEIGHT: f64 = 13.0;
/// Average width of a letter of 11 px.
const LETTER: f64 = 6.1;

const STYLE: &str = include_str!("svg.css");

/// The picture of one sandbox.
pub(crate) fn of_life(story: &Story, life: &Life) -> String {
    let layout = Layout::new(life);
    let rows = Rows::new(&layout);
    let x = |us: u64| LABEL + layout.scale.place(us) / layout.scale.width().max(1.0) * (WIDTH - LABEL - RIGHT);
    let mut body = String::new();
    let height = rows.height;
    for (index, lane) in layout.lanes.iter().enumerate() {
        let (top, end) = rows.lanes[index];
        if index % 2 == 0 {
            let _ =
                writeln!(body, "<rect class=\"band\" x=\"0\" y=\"{top}\" width=\"{WIDTH}\" height=\"{}\"/>", end - top);
        }
        let base = rows.bar(index) + 13.0;
        let _ = writeln!(body, "<text class=\"lane\" x=\"12\" y=\"{base}\">{}</text>", lane.name);
    }
    for (from, to) in &layout.scale.folds {
        let (left, width) = (x(*from), x(*to) - x(*from));
        let _ =
            writeln!(body, "<rect class=\"fold\" x=\"{left:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{height}\"/>");
    }
    body += &ruler(life, &layout.scale, height, &x);
    body += &arrows(life, &layout, &rows, &x);
    body += &messages(life, &layout, &rows, &x);
    body += &calls(life, &layout, &rows, &x);
    body += &flags(life, &rows, &x);
    for (from, to) in &layout.scale.folds {
        let (middle, base) = ((x(*from) + x(*to)) / 2.0 + 4.0, height - 6.0);
        let text = time(to - from);
        let _ = writeln!(
            body,
            "<text class=\"halo\" transform=\"translate({middle:.1},{base}) rotate(-90)\">{text}</text>"
        );
    }
    let header = &story.header;
    let title = format!(
        "Sandbox {}: {} messages and {} calls in {}; vmm {}, host {}",
        life.sandbox,
        life.messages.len(),
        life.calls.len(),
        time(life.duration_us()),
        header.vmm,
        header.host
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{total}\"/>\n{body}{legend}</svg>\n",
        title = escape(&title),
        legend = legend(height, &title),
        total = height + 44.0,
    )
}

/// Round times, where they are not folded away.
fn ruler(life: &Life, scale: &Scale, height: f64, x: &impl Fn(u64) -> f64) -> String {
    let drawn = (WIDTH - LABEL - RIGHT) / scale.width().max(1.0);
    let wished = (90.0 / drawn).max(1.0);
    let power = 10_f64.powf(wished.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|k| k * power).into_iter().find(|step| *step >= wished).unwrap_or(wished);
    let (step, length) = (step as u64, life.duration_us());
    let mut body = String::new();
    let mut last = f64::MIN;
    let is_folded = |us: u64| scale.folds.iter().any(|(from, to)| *from < us && us < *to);
    // Each straight stretch has its own first round time, so a long fold is not walked through.
    let begins = std::iter::once(life.begun_us).chain(scale.folds.iter().map(|(_, to)| *to));
    for begin in begins {
        let first = (begin - life.begun_us).div_ceil(step) * step;
        for since in (first..=length).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let us = life.begun_us + since;
            if is_folded(us) {
                break;
            }
            let at = x(us);
            let _ = write!(body, "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"20\" y2=\"{height}\"/>");
            if at - last > 56.0 {
                last = at;
                let text = if since == 0 { "0".to_owned() } else { time(since) };
                let _ =
                    writeln!(body, "<text class=\"dim\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"14\">{text}</text>");
            }
        }
    }
    body
}

/// Where lanes are, from top to end.
struct Rows {
    lanes: Vec<(f64, f64)>,
    waiting: Vec<usize>,
    calls: Vec<usize>,
    height: f64,
}

impl Rows {
    fn new(layout: &Layout) -> Self {
        let mut top = 24.0;
        let mut lanes = Vec::new();
        for (index, Lane { waiting, calls, .. }) in layout.lanes.iter().enumerate() {
            // The other side of a peer port serves no messages.
            let bar = if layout.messages.iter().any(|place| place.lane == index) { BAR_HEIGHT + 3.0 } else { 0.0 };
            let inside = *waiting as f64 * WAIT_HEIGHT + bar + *calls as f64 * CALL_HEIGHT;
            let height = 8.0 + inside.max(BAR_HEIGHT) + 14.0;
            lanes.push((top, top + height));
            top += height;
        }
        let waiting = layout.lanes.iter().map(|lane| lane.waiting).collect();
        let calls = layout.lanes.iter().enumerate().map(|(index, lane)| {
            let serves = layout.messages.iter().any(|place| place.lane == index);
            // Where there is no message, calls begin where messages would.
            if serves { lane.calls } else { usize::MAX }
        });
        Self { lanes, waiting, calls: calls.collect(), height: top }
    }

    fn bar(&self, lane: usize) -> f64 {
        self.lanes[lane].0 + 6.0 + self.waiting[lane] as f64 * WAIT_HEIGHT
    }

    fn call(&self, lane: usize, row: usize) -> f64 {
        let below = if self.calls[lane] == usize::MAX { 0.0 } else { BAR_HEIGHT + 3.0 };
        self.bar(lane) + below + row as f64 * CALL_HEIGHT
    }
}

fn messages(life: &Life, layout: &Layout, rows: &Rows, x: &impl Fn(u64) -> f64) -> String {
    let mut body = String::new();
    for (n, (message, place)) in life.messages.iter().zip(&layout.messages).enumerate() {
        let (left, right, top) = (x(message.taken_us), x(message.ended_us), rows.bar(place.lane));
        if let Some(row) = place.waiting {
            let (from, y) = (x(message.sent_us), rows.lanes[place.lane].0 + 4.0 + row as f64 * WAIT_HEIGHT);
            let width = (left - from).max(1.0);
            let _ =
                writeln!(body, "<rect class=\"wait\" x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"4\"/>");
        }
        let tone = tone(&message.outcome, message.purpose);
        let bar = Bar { left, right, top, height: BAR_HEIGHT, class: format!("m{tone}"), name: &message.name };
        let later = life.messages.iter().zip(&layout.messages).skip(n + 1).find(|(_, other)| other.lane == place.lane);
        body += &bar.draw(later.map_or(WIDTH, |(other, _)| x(other.taken_us)));
    }
    body
}

fn calls(life: &Life, layout: &Layout, rows: &Rows, x: &impl Fn(u64) -> f64) -> String {
    let mut body = String::new();
    for (n, (call, place)) in life.calls.iter().zip(&layout.calls).enumerate() {
        let (left, right, top) = (x(call.begun_us), x(call.ended_us), rows.call(place.lane, place.row));
        let tone = tone(&call.outcome, call.purpose);
        let bar = Bar { left, right, top, height: 11.0, class: format!("c{tone}"), name: &call.method };
        let later = life.calls.iter().zip(&layout.calls).skip(n + 1).find(|(_, other)| *other == place);
        body += &bar.draw(later.map_or(WIDTH, |(other, _)| x(other.begun_us)));
    }
    body
}

/// Where objects are made and go. Flags that would hide each other are drawn once.
fn flags(life: &Life, rows: &Rows, x: &impl Fn(u64) -> f64) -> String {
    let mut body = String::new();
    let mut last = std::collections::BTreeMap::new();
    for mark in &life.marks {
        let (lane, at) = (lane_of_actor(mark.actor), x(mark.at_us));
        if last.get(&(lane, mark.sign())).is_some_and(|before| at - before < 8.0) {
            continue;
        }
        last.insert((lane, mark.sign()), at);
        let class = match mark.change {
            Change::Born => "born",
            Change::Gone => "gone",
            Change::Left(_) => "left",
        };
        let (left, y) = (at - 5.0, rows.lanes[lane].1 - 3.0);
        let _ = writeln!(body, "<text class=\"{class}\" x=\"{left:.1}\" y=\"{y}\">{}</text>", mark.sign());
    }
    body
}

/// A message or call.
struct Bar<'a> {
    left: f64,
    right: f64,
    top: f64,
    height: f64,
    class: String,
    name: &'a str,
}

impl Bar<'_> {
    /// With its name inside, or beside it up to `next` if it is narrow.
    fn draw(&self, next: f64) -> String {
        let Self { left, top, height, class, name, .. } = self;
        let width = (self.right - left).max(2.0);
        let mut drawn = format!(
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" rx=\"{:.1}\"/>",
            (width / 2.0).min(2.5)
        );
        let is_narrow = width < 34.0;
        let (from, room) =
            if is_narrow { (left + width + 3.0, next - left - width - 6.0) } else { (left + 4.0, width - 6.0) };
        let fits = (room.max(0.0) / LETTER) as usize;
        // What would not be readable is left out.
        if fits >= name.len() || fits >= 6 {
            let shown: String = if name.len() > fits {
                name.chars().take(fits - 1).chain(['…']).collect()
            } else {
                (*name).to_owned()
            };
            let base = top + height - if *height > 12.0 { 5.0 } else { 2.0 };
            let class = if !is_narrow && *height > 12.0 { "on" } else { "by" };
            let _ = write!(drawn, "<text class=\"{class}\" x=\"{from:.1}\" y=\"{base}\">{}</text>", escape(&shown));
        }
        drawn + "\n"
    }
}

fn arrows(life: &Life, layout: &Layout, rows: &Rows, x: &impl Fn(u64) -> f64) -> String {
    let mut body = String::new();
    let lanes: std::collections::BTreeMap<_, _> =
        life.messages.iter().zip(&layout.messages).map(|(message, place)| (message.seq, place.lane)).collect();
    let messages = life.messages.iter().zip(&layout.messages);
    let ends =
        messages.map(|(message, place)| (message.cause, place.lane, x(message.sent_us), rows.bar(place.lane) + 9.0));
    let calls = life.calls.iter().zip(&layout.calls);
    let calls =
        calls.map(|(call, place)| (call.cause, place.lane, x(call.begun_us), rows.call(place.lane, place.row) + 5.0));
    for (cause, lane, at, y) in ends.chain(calls) {
        let Some(from) = cause.and_then(|cause| lanes.get(&cause)).filter(|from| **from != lane) else { continue };
        let down = *from < lane;
        let begin = rows.bar(*from) + if down { BAR_HEIGHT } else { 0.0 };
        let bend = if down { -18.0 } else { 18.0 };
        let _ = writeln!(
            body,
            "<path class=\"arrow\" d=\"M{:.1},{begin} C{:.1},{} {:.1},{y} {:.1},{y} m-5,-3 l5,3 l-5,3\"/>",
            at - 7.0,
            at - 7.0,
            y + bend,
            at - 12.0,
            at - 1.0
        );
    }
    body
}

fn legend(top: f64, title: &str) -> String {
    let mut body = String::new();
    let mut left = 12.0;
    let boxes = [
        ("wait", "waiting"),
        ("m0", "handling"),
        ("c0", "call through a port"),
        ("m1", "taking away"),
        ("m3", "failed or undone"),
    ];
    for (class, text) in boxes {
        let _ = write!(
            body,
            "<rect class=\"{class}\" x=\"{left}\" y=\"{}\" width=\"14\" height=\"9\"/><text class=\"dim\" x=\"{}\" y=\"{}\">{text}</text>",
            top + 8.0,
            left + 19.0,
            top + 17.0
        );
        left += 37.0 + text.len() as f64 * LETTER;
    }
    for (class, sign, text) in [("born", "▲", "object made"), ("gone", "▼", "object gone")] {
        let _ = write!(
            body,
            "<text class=\"{class}\" x=\"{left}\" y=\"{0}\">{sign}</text><text class=\"dim\" x=\"{1}\" y=\"{0}\">{text}</text>",
            top + 17.0,
            left + 15.0
        );
        left += 33.0 + text.len() as f64 * LETTER;
    }
    let _ = writeln!(body, "\n<text class=\"dim\" x=\"12\" y=\"{}\">{}</text>", top + 36.0, escape(title));
    body
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::story::sample;

    /// Each element that is opened is closed, and no text opens one.
    fn check_nesting(picture: &str) {
        let mut open = Vec::new();
        for part in picture.split('<').skip(1) {
            let (element, _) = part.split_once('>').expect("an element ends");
            let name = element.trim_start_matches('/').split_whitespace().next().unwrap_or_default();
            if element.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{element}");
            } else if !element.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_picture_is_well_formed_and_shows_every_record() {
        let story = sample::story();
        for life in &story.lives {
            let picture = of_life(&story, life);
            check_nesting(&picture);
            let bars = |class: char| picture.matches(&format!("<rect class=\"{class}")).count();
            // Five of the legend: three for messages, one each for calls and waiting.
            assert!(bars('m') >= life.messages.len() && bars('c') > life.calls.len());
            assert!(!picture.contains("NaN") && !picture.contains("inf"));
        }
    }

    #[test]
    fn the_documents_picture_is_one_of_ours() {
        let picture = include_str!("../../../../docs/timeline.svg");
        check_nesting(picture);
        assert!(picture.contains(STYLE), "draw docs/timeline.svg again: `sandboxctl trace timeline FILE --svg`");
        assert!(picture.contains("vmm qemu, host real"), "it shows a real run");
    }

    #[test]
    fn texts_are_no_elements() {
        assert_eq!(escape("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
