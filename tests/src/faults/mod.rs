//! Whatever fails, nothing is left behind: lives on a simulated host, in virtual time, with faults.

mod ground;

pub use ground::{ground, setting};
