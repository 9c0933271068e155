//! Shared helpers of the tests that span crates.

pub mod real;
pub mod simulated;
