//! The wire protocol of the Kata agent, for both of its ends.
//!
//! The messages and services of `proto/` as Rust: [`agent_ttrpc`] and [`health_ttrpc`] hold the
//! asynchronous ttrpc clients (host) and service traits (guest), the other modules the messages.
//! Field numbers are those of the Kata agent 4.1; names of fields follow its files too, which is
//! why some are not in snake case. Nothing here does any I/O, and nothing converts: what the
//! host puts into a message is the host's business.

/// The generated code; a room of its own so that lints stop at its door.
mod generated {
    #![expect(
        missing_debug_implementations,
        clippy::allow_attributes,
        clippy::unwrap_used,
        reason = "not ours to write"
    )]
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use generated::{agent, agent_ttrpc, csi, health, health_ttrpc, oci, types};
/// The empty answer of most calls.
pub use protobuf::well_known_types::empty::Empty;

/// The vsock port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;
