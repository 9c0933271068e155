//! Helper programs: starting and ending the VMM, virtiofsd and the vsock daemon.
//!
//! A helper inherits what its [`HelperSpec`] lists and nothing else: no environment but `PATH` and
//! the tag by which a later run finds it, no descriptor but those passed to it. It is held by pidfd,
//! so that no signal ever reaches a stranger who was given the same pid.
//!
//! * [`HelperProcess`]: a helper that this process started, or adopted from an earlier one. Dropping
//!   it does not end the helper: what ends is decided by the ledger, not by who forgets a handle.
//! * [`end_process`]: ends a helper that an earlier process of ours started.
//!
//! Its host objects: the process and, in this process, one pidfd and one pipe for each helper.

mod end;
mod process;
mod ready;
mod socket;
mod spawn;
mod words;

pub use end::{end_process, identify, is_alive};
pub use process::{HelperExit, HelperProcess};
pub use socket::{SocketFile, remove_socket};
pub use spawn::HelperSpec;
pub use words::LastWords;
