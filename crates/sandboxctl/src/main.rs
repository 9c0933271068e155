//! sandboxctl
fn main() {}
