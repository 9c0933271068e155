//! The vocabulary of resource-actors: ids, requests, host objects, ledger records, errors.
//!
//! Every other crate speaks in these types; this one performs no I/O and names no actor library.
//! What a reader finds here:
//!
//! * [`id`]: validated names of sandboxes, containers and devices.
//! * [`config`]: Kata's `configuration.toml`, as far as we support it.
//! * [`request`]: what a runtime asks of a sandbox.
//! * [`device`], [`network`], [`storage`]: plain data that the actors hand to each other through
//!   the supervisor.
//! * [`ledger`]: what has been made on the host, so that it can be unmade.
//! * [`secret`]: what is used and never shown.
//! * [`mod@port`]: the macro that declares a port once and gives it recording, replay and faults.
//! * [`trace`]: what happened, one record for each message and port call.
//! * [`status`]: what a reader sees without waiting.
#![forbid(unsafe_code)]

pub mod adopt;
pub mod config;
pub mod device;
pub mod error;
pub mod id;
pub mod layout;
pub mod ledger;
pub mod lifecycle;
pub mod live;
pub mod network;
pub mod port;
pub mod request;
pub mod secret;
pub mod status;
pub mod storage;
pub mod trace;

pub use error::{ErrorKind, Outcome, PortError, PortResult};
pub use id::{ContainerId, DeviceId, InvalidId, SandboxId};
pub use live::{Live, PassedFd};
pub use secret::Secret;
pub use tokio::time::Instant;
