//! vCPUs and memory of one sandbox: how much its containers need, and getting it.
//!
//! Owns the containers' shares. Takes [`BaseIs`], [`ResizeFor`], [`AdoptCpu`] and [`UndoCpu`]. Makes no host
//! object; a container's share is noted in the ledger so that its release gives it back.

mod adopt;
mod messages;
mod serve;
mod sizing;

pub use messages::{AdoptCpu, BaseIs, CpuError, ResizeFor, Sized, UndoCpu};
pub use serve::CpuActor;
pub use sizing::{Base, Share, Shares};
