//! One file for each verb.

mod bench;
mod config;
mod doctor;
mod help;
mod inspect;
mod man;
mod recover;
mod run;
mod sandboxes;
mod signals;
mod stress;
mod top;
mod trace;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, Global, TraceCommand};
use crate::output::{Code, Failure, data};

/// Reads the command line and serves it. No thread exists yet, so a verb may still enter namespaces.
pub(crate) fn dispatch() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli.global);
    let Some(command) = cli.command else {
        data(&help::overview());
        return ExitCode::SUCCESS;
    };
    match command {
        Command::Run(args) => run::run(&cli.global, &args),
        Command::List(flags) => finish(sandboxes::list(&cli.global, flags.json), flags.json),
        Command::Inspect(args) => finish(inspect::inspect(&cli.global, &args), args.json.json),
        Command::Top(args) => finish(top::top(&cli.global, &args), args.json.json),
        Command::Cleanup(args) => finish(sandboxes::cleanup(&cli.global, &args), args.json.json),
        Command::Recover(args) => finish(recover::recover(&cli.global, &args), args.json.json),
        Command::Trace(command) => {
            let json = match &command {
                TraceCommand::Replay(args) | TraceCommand::Minimise { stress: args, .. } => args.json.json,
                TraceCommand::Diff { json, .. } | TraceCommand::Explain { json, .. } => json.json,
                TraceCommand::Timeline(_) => false,
            };
            finish(trace::trace(&command), json)
        }
        Command::Stress(args) => finish(stress::stress(&cli.global, &args), args.json.json),
        Command::Bench(args) => finish(bench::bench(&args), args.json.json),
        Command::Doctor(flags) => finish(doctor::doctor(&cli.global, flags.json), flags.json),
        Command::Config(command) => finish(config::config(&cli.global, &command), false),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sandboxctl", &mut script);
            data(&String::from_utf8_lossy(&script));
            ExitCode::SUCCESS
        }
        Command::Man { dir } => finish(man::man(dir.as_deref()), false),
        Command::Help { topic } => help::help(topic.as_deref()),
    }
}

/// Reports a failure and gives the exit code.
fn finish(result: Result<(), Failure>, json: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.exit.number())
        }
    }
}

/// Four lines on standard error; with `--json` also a document on standard output.
fn report(failure: &Failure, json: bool) {
    if json && !failure.documented {
        data(&format!("{}\n", failure.to_json()));
    }
    drop(write!(anstream::stderr(), "{failure}"));
}

/// Warnings by default; `SANDBOXCTL_LOG` or `RUST_LOG` counts more than `-v`.
fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let wished = ["SANDBOXCTL_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let filter = EnvFilter::builder().parse_lossy(wished.as_deref().unwrap_or(level));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .init();
}

/// The runtime of a run in which all is simulated: its clock jumps to the next timer when all is quiet.
fn virtual_time() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    built.map_err(|error| Failure::early(Code::HOST, "cannot start", error, "sandboxctl doctor"))
}

/// The runtime of a verb that talks to sandboxes; their actors live on threads of their own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::early(Code::HOST, "cannot start", error, "sandboxctl doctor"))
}
