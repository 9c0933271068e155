//! Boots the guest in a virtual machine and goes through the protocol with it.

mod call;
mod hotplug;
mod isolation;
mod lifecycle;
mod vm;
