//! The network actor on the real kernel, in namespaces of its own making. Needs root, `ip`, `tc`
//! and `ping`.
#![expect(clippy::unwrap_used, reason = "a test ends where a helper meets what it did not expect")]

#[path = "../shared/ledger.rs"]
mod ledger;
mod pod;
mod support;
mod traffic;
