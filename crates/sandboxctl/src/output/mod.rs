//! What people and programs see: errors in four lines, progress, tables.
//!
//! Data goes to standard output, everything else to standard error.

pub(crate) mod codes;
pub(crate) mod failure;
pub(crate) mod progress;
#[cfg(test)]
pub(crate) mod schema;
pub(crate) mod steps;
pub(crate) mod table;

pub(crate) use codes::Code;
pub(crate) use failure::{Exit, Failure};

/// Prints to standard output; a reader that has gone away (`| head`) is no error.
pub(crate) fn data(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Prints one JSON document to standard output.
pub(crate) fn json(document: &serde_json::Value) {
    data(&format!("{document:#}\n"));
}
