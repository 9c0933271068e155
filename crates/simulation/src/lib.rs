//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod device;
mod ledger;
mod vmm;
mod world;

pub use device::SimulatedDeviceHost;
pub use ledger::MemoryLedger;
pub use vmm::{SimulatedVmm, SimulatedVmmFactory};
pub use world::World;
