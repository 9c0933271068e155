//! Boots the guest in a virtual machine and goes through the protocol with it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod call;
mod hotplug;
mod isolation;
mod lifecycle;
mod vm;
