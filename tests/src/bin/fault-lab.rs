//! What runs inside of a lab: its first process, and lives.

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["host", name, programs] => lifecycle_tests::lab::serve(name, programs),
        ["live", world, life, faults] => lifecycle_tests::lab::live(world.as_ref(), life, faults),
        ["resume", world, life, faults] => lifecycle_tests::lab::resume(world.as_ref(), life, faults),
        _ => bail!("this is started by tests"),
    }
}
