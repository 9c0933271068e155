//! Stand-ins for the VMM and the guest: programs of their own that speak the real protocols.
//!
//! A life with them takes a tenth of a second, and everything else in it is real: mounts, network
//! namespaces, taps, filters, cgroups, processes, virtiofsd. `fake-vmm` takes QEMU's place and
//! `fake-vsock` that of the vsock daemon, with a Kata agent behind it. Whether QEMU speaks as
//! `fake-vmm` does is tested in `tests/tests/fakes.rs`.

mod agent;
mod qmp;
mod vhost_user;
mod vmm;
mod vsock;

pub use qmp::serve as serve_qmp;
pub use vmm::{Machine, Options};
pub use vsock::serve as serve_vsock;
