//! Shared helpers of the tests that span crates.

pub mod fake;
pub mod faults;
pub mod fuzz;
pub mod ground;
pub mod invariants;
pub mod killed;
pub mod lab;
pub mod lifecycles;
pub mod real;
pub mod seeds;
pub mod simulated;
pub mod tamper;
pub mod tiers;
