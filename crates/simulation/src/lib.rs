//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod world;

pub use world::World;
