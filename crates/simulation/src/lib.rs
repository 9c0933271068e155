//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod network;
mod world;

pub use network::SimulatedNetwork;
pub use world::World;
