//! Progress: one line for each step, as it ends.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

/// Where lines go, and in which form. Cheap to copy; holds no state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    /// On standard error, with or without colour and marks.
    Lines {
        fancy: bool,
    },
    /// JSON lines on standard output.
    Json,
}

impl Progress {
    /// By the flags, the terminal and `NO_COLOR`.
    pub(crate) fn new(quiet: bool, json: bool) -> Self {
        let style = match (json, quiet) {
            (true, _) => Style::Json,
            (false, true) => Style::Silent,
            (false, false) => Style::Lines { fancy: std::io::stderr().is_terminal() },
        };
        Self { style }
    }

    /// Whether everything is to be JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.style == Style::Json
    }

    /// Whether steps are shown at all.
    pub(crate) fn shows_steps(&self) -> bool {
        self.style != Style::Silent
    }

    /// A step has ended. `objects` are those that it made, or with a minus took away; `problem` says
    /// how it failed.
    pub(crate) fn step(&self, actor: &str, step: &str, took: Duration, objects: &[String], problem: Option<&str>) {
        let milliseconds = took.as_secs_f64() * 1000.0;
        match self.style {
            Style::Silent => {}
            Style::Json => self.event(json!({
                "event": "step", "actor": actor, "step": step, "us": took.as_micros() as u64, "objects": objects,
                "error": problem,
            })),
            Style::Lines { fancy } => {
                let tail =
                    [objects.join(", "), problem.unwrap_or_default().to_owned()].map(|part| part.trim().to_owned());
                let tail: Vec<_> = tail.into_iter().filter(|part| !part.is_empty()).collect();
                let line = render(actor, step, milliseconds, &tail.join("  "), problem.is_some(), fancy);
                // anstream leaves colours out where NO_COLOR or a pipe says so.
                drop(writeln!(anstream::stderr(), "{line}"));
            }
        }
    }

    /// A remark.
    pub(crate) fn note(&self, text: &str) {
        match self.style {
            Style::Silent => {}
            Style::Json => self.event(json!({"event": "note", "text": text})),
            Style::Lines { .. } => drop(writeln!(anstream::stderr(), "{text}")),
        }
    }

    /// A JSON line, if everything is JSON.
    pub(crate) fn event(&self, mut event: Value) {
        if self.is_json() {
            event["v"] = json!(1);
            super::data(&format!("{event}\n"));
        }
    }
}

fn render(actor: &str, step: &str, milliseconds: f64, tail: &str, failed: bool, fancy: bool) -> String {
    let mark = match (failed, fancy) {
        (false, true) => "\u{1b}[32m✓\u{1b}[0m",
        (true, true) => "\u{1b}[31m✗\u{1b}[0m",
        (false, false) => "ok  ",
        (true, false) => "FAIL",
    };
    format!("{mark} {actor:<10} {step:<24} {milliseconds:>8.1} ms  {tail}").trim_end().to_owned()
}

/// `PrepareBeforeStartVm` as people write it: `prepare before start vm`.
pub(crate) fn in_words(message: &str) -> String {
    let mut words = String::new();
    for letter in message.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line() {
        assert_eq!(
            render("network", "set up network", 4.12, "netns, tap0_kata", false, false),
            "ok   network    set up network                4.1 ms  netns, tap0_kata"
        );
        assert!(render("device", "attach", 0.0, "EBUSY", true, true).ends_with("0.0 ms  EBUSY"));
        assert_eq!(in_words("PrepareBeforeStartVm"), "prepare before start vm");
    }
}
