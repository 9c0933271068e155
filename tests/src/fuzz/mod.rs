//! What must hold for any bytes: each target is a function of bytes that panics when something does
//! not. The corpora test and `cargo fuzz` (in `fuzz/`) call the same functions.

mod agent;
mod configuration;
mod control;
mod faults;
mod ledger;
mod spec;
mod trace;

pub mod mutate;
pub mod seeds;

pub use agent::z5_agent_replies;
pub use configuration::z2_configuration;
pub use control::z4_control_channel;
pub use faults::z9_life_with_faults;
pub use ledger::z3_ledger;
pub use spec::z1_spec;
pub use trace::z6_trace;

/// A target: its name, which is that of its corpus and of its program, and its function.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// `z1_spec` and so on.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "z1_spec", run: z1_spec },
    Target { name: "z2_configuration", run: z2_configuration },
    Target { name: "z3_ledger", run: z3_ledger },
    Target { name: "z4_control_channel", run: z4_control_channel },
    Target { name: "z5_agent_replies", run: z5_agent_replies },
    Target { name: "z6_trace", run: z6_trace },
    Target { name: "z9_life_with_faults", run: z9_life_with_faults },
];

/// One thread with a clock of its own.
fn on_one_thread<F: std::future::Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs only memory").block_on(future)
}
