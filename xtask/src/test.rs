//! `cargo xtask test`: every check and every test, in the order in which failures are cheapest.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::summary::Summary;
use crate::{packages, run, tool};

/// Runs all of it. The last line of output adds up the tests.
///
/// # Errors
/// The first check that fails, by name, or the tests.
pub(crate) fn test() -> Result<ExitCode> {
    packages::for_tests()?;
    step("formatting", tool::cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", tool::cargo().args(lints))?;
    let documentation = ["doc", "--workspace", "--no-deps"];
    step("documentation", tool::cargo().args(documentation).env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("== guest and tools");
    run::prepare()?;
    tests()
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("== {name}");
    tool::run(command).with_context(|| format!("{name}: failed"))
}

/// All tests as one `cargo test`, on to the end whatever fails; its output passes through.
fn tests() -> Result<ExitCode> {
    println!("== tests");
    let tools = tool::target("tools").join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(tools.clone()).chain(std::env::split_paths(&path));
    let mut command = tool::cargo();
    // Two at a time: each may hold a virtual machine.
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--test-threads=2"]);
    command.env("PATH", std::env::join_paths(places)?);
    command.env("RESOURCE_ACTORS_GUEST", tool::target("guest")).env("RESOURCE_ACTORS_TOOLS", tools);
    // What a test needs is there: one that would skip itself fails instead.
    command.env("CI", "true");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the tests")?;
    let output = child.stdout.take().context("output of the tests")?;
    let summary = pass_through(BufReader::new(output))?;
    let status = child.wait()?;
    if !status.success() {
        eprintln!("tests: failed");
    }
    println!("\n{summary}");
    Ok(tool::exit_code(status))
}

fn pass_through(mut output: impl BufRead) -> Result<Summary> {
    let mut summary = Summary::default();
    let (mut line, mut stdout) = (Vec::new(), std::io::stdout());
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line)? == 0 {
            return Ok(summary);
        }
        summary.add(&String::from_utf8_lossy(&line));
        if stdout.write_all(&line).and_then(|()| stdout.flush()).is_err() {
            bail!("nobody reads the output");
        }
    }
}
