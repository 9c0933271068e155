//! One test for each published advisory of this layer that can be told here, named after it. The
//! first line of each says what the cause was. Those that cannot be told here are in
//! `docs/security.md`, each with its reason.
#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]

mod annotations;
mod guest;
mod kernel;
mod paths;
mod shared_tree;
mod state;
