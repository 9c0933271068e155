//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod device;
mod fault;
mod ledger;
mod vmm;
mod world;

pub use device::SimulatedDeviceHost;
pub use fault::{Fault, Faults};
pub use ledger::MemoryLedger;
pub use vmm::{SimulatedVmm, SimulatedVmmFactory};
mod network;
mod world;

pub use network::SimulatedNetwork;
mod share;
mod world;

pub use share::{RealMountsSimulatedDaemon, SimulatedShareFs};
pub use world::World;
