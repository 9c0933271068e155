//! Doing again what a trace says was done: by its seed, under stress, or as a load.

mod commands;
mod minimise;
mod script;
mod seeded;
mod stress;

use std::future::Future;

use resource_actors::trace::ReplayError;
use tokio::task::LocalSet;

pub use commands::{Begun, Commands, Given};
pub use minimise::{Minimal, ddmin, minimise, minimise_plan};
pub use seeded::{Rerun, rerun};
pub use stress::{Stress, StressReport, stress};

/// Runs `body` on one thread whose clock jumps to the next timer when all is quiet.
fn in_virtual_time<F: Future>(body: F) -> Result<F::Output, ReplayError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    Ok(LocalSet::new().block_on(&runtime.map_err(ReplayError::Runtime)?, body))
}
