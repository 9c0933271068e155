//! The network actor: the host side of a sandbox's network.
//!
//! It **owns** the taps of one sandbox, the redirects between them and the pod's links, and the
//! namespace of a sandbox that has none from outside. It **takes** [`SetUpNetwork`], which answers
//! with the NICs to be plugged and what the guest must be told, [`AdoptNetwork`] and [`UndoNetwork`]. It **makes**
//! these host objects, each with an entry in the ledger:
//!
//! | object | identity | goes away |
//! |---|---|---|
//! | `File`, `NetNamespace` (own namespaces only) | device and inode | unmounted, unlinked |
//! | `Tap` | index, namespace's inode, [alias](Mark::alias) | deleted; by itself with its last descriptor |
//! | `IngressQdisc` of a pod's link | index, namespace's inode, [cookie](Mark::cookie) | deleted with the filters below it |
//!
//! The ingress qdisc of a tap has no entry of its own: it cannot outlive its tap.
//!
//! # In a namespace without living there
//!
//! A namespace is entered once, on a thread that ends right after: a netlink socket and
//! descriptors of `/dev/net/tun` stay bound to the namespace they were opened in. Everything else
//! goes through these, so no thread that lives on ever changes its namespace, and links are born
//! where they belong.
//!
//! # Where to read
//!
//! [`view`] is what a namespace looks like, [`endpoints`] decides what becomes of it, [`own`] does
//! so for a namespace of ours; all three are plain code. [`host`] is the port, [`linux`] its real
//! implementation.

pub mod adopt;
pub mod endpoints;
pub mod host;
pub mod linux;
mod mark;
mod messages;
pub mod own;
mod serve;
mod set_up;
mod undo;
pub mod view;

pub use host::{NetworkHost, NetworkHostProxy};
pub use linux::LinuxNetworkHost;
pub use mark::Mark;
pub use messages::*;
pub use serve::{NetworkActor, NetworkSnapshot};
