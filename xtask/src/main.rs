//! Entry points: `cargo xtask <command>`.

mod cpio;
mod example_bundle;
mod guest_image;
mod kernel;
mod tool;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <command>

  guest-image     build the test guest: target/guest/{vmlinux,initrd.cpio}
  example-bundle  build a small container: target/example/bundle/{config.json,rootfs}";

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("guest-image") => guest_image::build(),
        Some("example-bundle") => example_bundle::build(),
        _ => bail!("{USAGE}"),
    }
}
