//! What messages and calls carry, told to a sink by reference: it makes of it what it needs.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Something that can be recorded: whatever can be serialised. What cannot is told as a text that says
/// why.
pub trait Content {
    /// Appends it as JSON.
    fn write_json(&self, out: &mut Vec<u8>);

    /// It as a tree.
    fn to_value(&self) -> Value;
}

impl<T: Serialize> Content for T {
    fn write_json(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        if let Err(error) = serde_json::to_writer(&mut *out, self) {
            out.truncate(begin);
            unrecordable(&error).write_json(out);
        }
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|error| unrecordable(&error))
    }
}

fn unrecordable(error: &serde_json::Error) -> Value {
    Value::String(format!("not recordable: {error}"))
}

impl Content for &dyn Content {
    fn write_json(&self, out: &mut Vec<u8>) {
        (**self).write_json(out);
    }

    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl fmt::Debug for dyn Content + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

/// Content that is written down already, because what it was told of does not last as long: the request
/// of a call whose end is awaited.
#[derive(Clone, Default)]
pub struct Written(Vec<u8>);

impl Written {
    /// Writes `content` down.
    pub fn of(content: &dyn Content) -> Self {
        let mut json = Vec::with_capacity(128);
        content.write_json(&mut json);
        Self(json)
    }
}

impl Content for Written {
    fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn to_value(&self) -> Value {
        serde_json::from_slice(&self.0).unwrap_or_else(|error| unrecordable(&error))
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
