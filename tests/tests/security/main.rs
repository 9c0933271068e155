//! What an attacker, an accident or a careless caller may try, and what must come of it.
#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

mod annotations;
mod children;
mod corpora;
mod document;
mod hostile_tree;
mod models;
mod races;
mod secrets;
mod storms;
mod tampered;
