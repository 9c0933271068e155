//! `cargo bench -p benchmarks [-- NAME ...]`: the rows of `sandboxctl bench`.

use std::process::ExitCode;

use benchmarks::rows::ALL;

fn main() -> ExitCode {
    // Cargo adds flags of its own, as `--bench`.
    let wished: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = false;
    for measurement in ALL.iter().filter(|one| wished.is_empty() || wished.iter().any(|name| name == one.name)) {
        println!("{}: {}", measurement.name, measurement.about);
        match (measurement.run)() {
            Ok(rows) => rows.iter().for_each(|row| println!("  {row}")),
            Err(why) => {
                failed = true;
                println!("  failed: {why}");
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
