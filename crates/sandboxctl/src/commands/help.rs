//! `help`, and what is printed when nothing was asked.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::Cli;
use crate::output::{Code, data};

/// Twelve lines: what it is, what to try, where to read on.
pub(crate) fn overview() -> String {
    format!(
        "sandboxctl {} - runs OCI bundles in microVM sandboxes

Each resource of a sandbox (devices, network, shared files, cgroups, vCPUs and memory) is set up in
the right order, written down before it is made, and taken away again without a trace.

Try:
  sandboxctl doctor          what this host can do, and how to fix what it cannot
  sandboxctl run BUNDLE      run a bundle; without root or QEMU in throw-away namespaces, simulated

Then:   sandboxctl list | inspect ID | top | cleanup ID | trace timeline FILE -o t.html
Help:   sandboxctl --help, sandboxctl help E0202 explains an error
Docs:   README.md and ARCHITECTURE.md of the project
",
        env!("CARGO_PKG_VERSION")
    )
}

/// Explains an error code or a command.
pub(crate) fn help(topic: Option<&str>) -> ExitCode {
    let mut command = Cli::command();
    let Some(topic) = topic else {
        data(&command.render_long_help().to_string());
        return ExitCode::SUCCESS;
    };
    if let Some(code) = Code::find(topic) {
        data(&format!("{}: {}\n\n{}\n", code.number, code.title, code.explanation));
        return ExitCode::SUCCESS;
    }
    command.build();
    if let Some(verb) = command.find_subcommand_mut(topic) {
        data(&verb.render_long_help().to_string());
        return ExitCode::SUCCESS;
    }
    let codes: Vec<_> = Code::ALL.iter().map(|code| format!("  {}  {}", code.number, code.title)).collect();
    eprintln!("there is no command and no error code {topic:?}; the codes are\n{}", codes.join("\n"));
    ExitCode::from(2)
}
