//! Entry points: `cargo xtask <command>`.
#![expect(clippy::disallowed_methods, reason = "what is removed was made here, below target/, and holds no mount")]

mod cpio;
mod example_bundle;
mod faults;
mod guest_image;
mod kernel;
mod mutants;
mod packages;
mod run;
mod summary;
mod test;
mod tool;
mod vsock_daemon;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <command>

  run [-- ARGUMENTS]  run the example in a virtual machine, or sandboxctl with ARGUMENTS
  test                run every check and every test
  faults              let everything fail, tier by tier: [--tier S|H|K|V|mutants]...
                      [--quick] [--record]

  guest-image         build the guest: target/guest/{vmlinux,initrd.cpio}
  example-bundle      build a small container: target/example/bundle/{config.json,rootfs}";

fn main() -> Result<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|command| command.to_str()) {
        Some("run") => {
            let rest = &arguments[1..];
            return run::run(rest.strip_prefix(&[OsString::from("--")]).unwrap_or(rest));
        }
        Some("test") => return test::test(),
        Some("faults") => {
            let rest: Vec<String> = arguments[1..].iter().map(|word| word.to_string_lossy().into_owned()).collect();
            return faults::faults(&rest);
        }
        Some("guest-image") => {
            let (kernel, initrd) = guest_image::build()?;
            println!("{}\n{}", kernel.display(), initrd.display());
        }
        Some("example-bundle") => println!("{}", example_bundle::build()?.display()),
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}
