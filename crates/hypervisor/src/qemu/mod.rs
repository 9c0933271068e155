//! QEMU.
#![allow(dead_code, clippy::allow_attributes)]
mod qmp;
mod ticket;
