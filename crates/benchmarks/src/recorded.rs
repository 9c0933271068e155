//! The commands of a recorded trace as a load.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::stream::{self, StreamExt};
use resource_actors::ResourceSystem;
use simulation::rerun::{Begun, Commands, Given};

use crate::load::{Load, Outcome, pace};
use crate::{Samples, Usage};

/// How long each command took, by its name.
pub type ByCommand = BTreeMap<String, Samples>;

impl Outcome {
    fn take(&mut self, given: Given, times: &mut ByCommand) {
        self.failures.extend(given.failures);
        for (command, took) in given.times {
            times.entry(command).or_default().add(took);
        }
    }
}

/// Lets copies of the trace's sandboxes live up to where they are stopped. It runs on a `LocalSet`.
pub async fn start(
    system: &ResourceSystem,
    commands: &Commands,
    load: Load,
    times: &mut ByCommand,
    mut progress: impl FnMut(usize),
) -> (Vec<Begun>, Outcome) {
    let (begun, used) = (Instant::now(), Usage::now());
    let starts = stream::iter(0..load.sandboxes).map(|copy| async move {
        pace(begun, load, copy).await;
        commands.begin(copy, system).await
    });
    let mut starts = std::pin::pin!(starts.buffer_unordered(load.at_once.max(1)));
    let (mut alive, mut outcome) = (Vec::new(), Outcome::default());
    while let Some((copy, given)) = starts.next().await {
        outcome.take(given, times);
        alive.push(copy);
        progress(alive.len());
    }
    (outcome.wall, outcome.cpu) = (begun.elapsed(), Usage::now().cpu - used.cpu);
    (alive, outcome)
}

/// Lets them come to their ends.
pub async fn end(
    system: &ResourceSystem,
    commands: &Commands,
    alive: Vec<Begun>,
    at_once: usize,
    times: &mut ByCommand,
    mut progress: impl FnMut(usize),
) -> Outcome {
    let (begun, used) = (Instant::now(), Usage::now());
    let ends = stream::iter(alive).map(|copy| commands.end(copy, system));
    let mut ends = std::pin::pin!(ends.buffer_unordered(at_once.max(1)));
    let (mut outcome, mut count) = (Outcome::default(), 0);
    while let Some(given) = ends.next().await {
        outcome.take(given, times);
        count += 1;
        progress(count);
    }
    (outcome.wall, outcome.cpu) = (begun.elapsed(), Usage::now().cpu - used.cpu);
    outcome
}
