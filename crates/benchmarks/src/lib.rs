//! Loads of many sandboxes, and what they cost.
//!
//! `sandboxctl stress` drives one load; `sandboxctl bench` measures every [row](rows) that has a
//! target. Times under load are noise, so a row compares two things in turns and takes the middle of
//! their ratios, or counts what does not depend on the load: system calls, messages, threads.

mod calls;
mod floor;
pub mod kernel;
pub mod life;
pub mod load;
pub mod recorded;
pub mod rows;
mod samples;
mod usage;

pub use samples::{Pairs, Samples, in_turns, middle};
pub use usage::Usage;
