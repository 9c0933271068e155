//! The device actor.
#![forbid(unsafe_code)]

mod messages;

pub use messages::*;
