//! Shared helpers of the tests that span crates.

pub mod faults;
pub mod invariants;
pub mod lifecycles;
pub mod real;
pub mod simulated;
