//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod share;
mod world;

pub use share::{RealMountsSimulatedDaemon, SimulatedShareFs};
pub use world::World;
