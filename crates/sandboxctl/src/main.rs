//! `sandboxctl`: runs an OCI bundle in a microVM sandbox, and shows what a sandbox is made of.
//!
//! An embedder of `resource-actors` like any other. Where a reader finds what:
//!
//! * [`cli`]: the command line. [`commands`]: one file for each verb.
//! * [`settings`]: which configuration counts. [`mode`]: which VMM, and whose host objects.
//! * [`world`]: the ports of each mode. [`owner`]: whether a sandbox is run by a living process.
//! * [`private`]: throw-away namespaces. [`doctor`]: what this host can do.
//! * [`bundle`] and [`amend`]: the OCI spec on its way into the guest.
//! * [`telling`]: what a sandbox's process tells of it to others.
//! * [`look`]: what the kernel shows of a sandbox.
//! * [`story`]: what a trace tells. [`pictures`]: how that is drawn and said.
//! * [`output`]: errors, progress, tables.

mod amend;
mod bundle;
mod cli;
mod commands;
mod doctor;
mod look;
mod mode;
mod output;
mod owner;
mod pictures;
mod private;
mod settings;
mod story;
mod telling;
mod world;

fn main() -> std::process::ExitCode {
    commands::dispatch()
}
