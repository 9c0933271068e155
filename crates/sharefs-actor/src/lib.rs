//! The share-fs actor: what the guest may see of the host's files.
//!
//! It owns the sandbox's shared directory, the virtiofsd that exports it, and every bind mount in it.
//!
//! Messages: [`SetUpShare`], [`VerifyShare`] (after the VMM has connected), [`ShareRootfs`],
//! [`ShareVolume`], [`AdoptShares`], [`UndoShares`].
//!
//! Host objects, all below the sandbox's directory:
//!
//! * `rw/…`: directories and placeholder files. A plain directory that only the host writes to. It
//!   never carries a mount, so whatever is removed there is a placeholder and never a user's data.
//! * `ro`: a mount of `rw`, read-only and the head of a peer group of its own. This is what the
//!   daemon exports, so a guest can neither make nor rename anything where mount points are made.
//! * mounts on `ro/passthrough/…`: read-only, if they shall be, from the first instant at which they
//!   can be seen. They reach the daemon's mount namespace by propagation; a later remount would not,
//!   which is why none is ever made.
//! * the daemon's process and its socket.
//!
//! A volume that several containers use is shared once for each access mode; each container has a
//! `Hold` on it, and the mount goes with its last hold.

mod actor;
mod hand;
mod host;
mod linux;
mod messages;
mod names;
mod rebuild;
mod serve;
mod shares;

pub use actor::{ShareFsActor, ShareFsSnapshot};
pub use host::*;
pub use linux::LinuxShareFsHost;
pub use messages::*;
