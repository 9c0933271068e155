//! Simulated hypervisor, guest agent and kernel: for determinism and scale, never the only proof.
#![forbid(unsafe_code)]

mod agent;
mod cgroup;
mod delays;
mod device;
pub mod fault;
mod host;
mod ledger;
mod network;
mod ports;
pub mod rerun;
mod share;
mod store;
mod vmm;
mod world;

pub use agent::{SimulatedAgent, SimulatedAgentFactory};
pub use cgroup::SimulatedCgroupHost;
pub use delays::SeededDelays;
pub use device::SimulatedDeviceHost;
pub use fault::{Fault, Faults, Injector};
pub use host::{SimulatedHost, WrapLedger, pod_view};
pub use ledger::MemoryLedger;
pub use network::SimulatedNetwork;
pub use ports::{SimulatedFacts, simulated_ports};
pub use share::{RealMountsSimulatedDaemon, SimulatedShareFs};
pub use store::{Kept, SimulatedStore};
pub use vmm::{SimulatedVmm, SimulatedVmmFactory};
pub use world::World;
