//! An event as a line of the file, written without building a tree.
//!
//! The bytes are those of the derived `Serialize`, which a test holds. That would need content that
//! can be serialised by any serialiser, and goes through a map for what is flattened.

use super::{Content, Ended, Event, Place};

impl<V: Content, N: AsRef<str>> Event<V, N> {
    /// Appends the event as one line of JSON, with its line break.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        let mut line = Line(out);
        match self {
            Self::Header(header) => line.begin("header", header),
            Self::Created { place, spec } => {
                line.at("created", place);
                line.field("spec", spec);
            }
            Self::Opened { place, how, spec } => {
                line.at("opened", place);
                line.field("how", how);
                line.field("spec", spec);
            }
            Self::Interrupted { place } => line.at("interrupted", place),
            Self::Received { place, message, request, queue_us } => {
                line.at("received", place);
                line.field("message", &message.as_ref());
                line.field("request", request);
                line.field("queue_us", queue_us);
            }
            Self::Replied { place, message, reply, service_us } => {
                line.at("replied", place);
                line.field("message", &message.as_ref());
                line.field("reply", reply);
                line.field("service_us", service_us);
            }
            Self::Called { place, port, method, request, result, took_us } => {
                line.at("called", place);
                line.field("port", &port.as_ref());
                line.field("method", &method.as_ref());
                line.field("request", request);
                line.result(result);
                line.field("took_us", took_us);
            }
            Self::Noted { place, record, refused } => {
                line.at("noted", place);
                line.field("record", record);
                if let Some(refused) = refused {
                    line.field("refused", refused);
                }
            }
            Self::Died { place, reason } => {
                line.at("died", place);
                line.field("reason", reason);
            }
            Self::Lost { count } => {
                line.begin("lost", &serde_json::Map::new());
                line.field("count", count);
            }
        }
        line.text("}\n");
    }
}

struct Line<'a>(&'a mut Vec<u8>);

impl Line<'_> {
    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn at(&mut self, kind: &str, place: &Place) {
        self.begin(kind, place);
    }

    /// The event's kind, and the fields of `flattened`, which is an object.
    fn begin(&mut self, kind: &str, flattened: &impl Content) {
        self.text("{\"event\":\"");
        self.text(kind);
        self.text("\"");
        let brace = self.0.len();
        flattened.write_json(self.0);
        self.0.pop();
        if self.0.len() > brace + 1 {
            self.0[brace] = b',';
        } else {
            self.0.truncate(brace);
        }
    }

    fn field(&mut self, name: &str, content: &impl Content) {
        self.text(",\"");
        self.text(name);
        self.text("\":");
        content.write_json(self.0);
    }

    fn result(&mut self, result: &Ended<impl Content>) {
        match result {
            Ended::Ok(reply) => {
                self.text(",\"result\":{\"Ok\":");
                reply.write_json(self.0);
                self.text("}");
            }
            Ended::Err(error) => {
                self.text(",\"result\":{\"Err\":");
                error.write_json(self.0);
                self.text("}");
            }
            Ended::Dropped => self.field("result", &"Dropped"),
            Ended::Panicked => self.field("result", &"Panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::{EntryId, Record};
    use crate::lifecycle::ActorName;
    use crate::trace::{Header, Opening};
    use crate::{ErrorKind, PortError, SandboxId};

    #[test]
    fn a_line_has_the_bytes_of_the_derived_serialisation() {
        let sandbox = SandboxId::new("pod-1").unwrap();
        let at = |generation| Place {
            seq: 7,
            cause: Some(6),
            sandbox: sandbox.clone(),
            actor: ActorName::ShareFs,
            generation,
            at_us: 12,
        };
        let place = at(1);
        let error = PortError::new(ErrorKind::NotFound, "look", "a \"quoted\"\nobject", "gone");
        let content = json!({"b": [1, "\u{1}ü"], "a": null});
        let called = |result| Event::Called {
            place: at(2),
            port: "share-fs-host".to_owned(),
            method: "look".to_owned(),
            request: content.clone(),
            result,
            took_us: 3,
        };
        let (message, record) = ("Stop".to_owned(), Record::Undone { entry: EntryId(3) });
        let faults = Some(json!({"one": 1}));
        let events: Vec<Event> = vec![
            Event::Header(Header { seed: Some(3), faults, part: 2, ..Header::new("simulated", "real") }),
            Event::Created { place: place.clone(), spec: content.clone() },
            Event::Opened { place: place.clone(), how: Opening::Adopt, spec: content.clone() },
            Event::Interrupted { place: Place { cause: None, ..place.clone() } },
            Event::Received { place: place.clone(), message: message.clone(), request: content.clone(), queue_us: 1 },
            Event::Replied { place: place.clone(), message, reply: content.clone(), service_us: 1 },
            called(Ended::Ok(content.clone())),
            called(Ended::Err(error.clone())),
            called(Ended::Dropped),
            called(Ended::Panicked),
            Event::Noted { place: place.clone(), record: record.clone(), refused: None },
            Event::Noted { place: place.clone(), record, refused: Some(error) },
            Event::Died { place, reason: "a \"reason\"".to_owned() },
            Event::Lost { count: 4 },
        ];
        for event in events {
            let mut line = Vec::new();
            event.write_line(&mut line);
            assert_eq!(String::from_utf8(line).unwrap(), serde_json::to_string(&event).unwrap() + "\n");
        }
    }

    #[test]
    fn what_was_written_down_is_told_as_it_was() {
        let content = json!({"a": [1, 2]});
        let written = super::super::Written::of(&content);
        let mut json = Vec::new();
        written.write_json(&mut json);
        assert_eq!((json.as_slice(), written.to_value()), (br#"{"a":[1,2]}"#.as_slice(), content));
        let unfit = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(Content::to_value(&unfit).as_str().is_some_and(|text| text.starts_with("not recordable")));
    }
}
