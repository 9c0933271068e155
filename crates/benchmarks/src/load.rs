//! Many lives at once.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use resource_actors::{ResourceSystem, SandboxHandle};
use sandbox_model::SandboxId;

use crate::Usage;
use crate::life::{Life, Times};

/// How many, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Sandboxes in all.
    pub sandboxes: usize,
    /// Of which so many are being started or ended at one time.
    pub at_once: usize,
    /// Starts per second; as fast as it goes without.
    pub rate: Option<f64>,
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long each step took.
    pub times: Times,
    /// What failed, each with the sandbox's name.
    pub failures: Vec<String>,
    /// From the first to the last.
    pub wall: Duration,
    /// Of all threads of this process.
    pub cpu: Duration,
}

impl Outcome {
    /// Sandboxes per second, those that failed left out.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn rate(&self, sandboxes: usize) -> f64 {
        sandboxes.saturating_sub(self.failures.len()) as f64 / self.wall.as_secs_f64().max(1e-9)
    }
}

/// The name of sandbox number `index`.
pub fn name(prefix: &str, index: usize) -> SandboxId {
    SandboxId::new(format!("{prefix}-{index}")).expect("a prefix of letters and a number")
}

/// Waits until number `index` of a load that has begun then is due.
pub(crate) async fn pace(begun: Instant, load: Load, index: usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    if let Some(rate) = load.rate {
        tokio::time::sleep_until((begun + Duration::from_secs_f64(index as f64 / rate)).into()).await;
    }
}

/// Starts sandboxes and lets them live. `progress` hears of each that has started or failed.
pub async fn start(
    system: &ResourceSystem,
    lives: impl Fn(usize) -> Life,
    load: Load,
    prefix: &str,
    mut progress: impl FnMut(usize),
) -> (Vec<SandboxHandle>, Outcome) {
    let (begun, used) = (Instant::now(), Usage::now());
    let starts = stream::iter(0..load.sandboxes).map(|index| {
        let life = lives(index);
        async move {
            pace(begun, load, index).await;
            let (id, mut times) = (name(prefix, index), Times::default());
            let started = life.start(system, id.clone(), &mut times).await;
            (started.map_err(|error| format!("{id}: {error}")), times)
        }
    });
    let mut starts = std::pin::pin!(starts.buffer_unordered(load.at_once.max(1)));
    let (mut handles, mut outcome) = (Vec::new(), Outcome::default());
    while let Some((started, times)) = starts.next().await {
        outcome.times.extend(&times);
        match started {
            Ok(handle) => handles.push(handle),
            Err(failure) => outcome.failures.push(failure),
        }
        progress(handles.len() + outcome.failures.len());
    }
    (outcome.wall, outcome.cpu) = (begun.elapsed(), Usage::now().cpu - used.cpu);
    (handles, outcome)
}

/// Ends sandboxes. `progress` hears of each.
pub async fn end(handles: Vec<SandboxHandle>, life: &Life, at_once: usize, mut progress: impl FnMut(usize)) -> Outcome {
    let (begun, used) = (Instant::now(), Usage::now());
    let ends = stream::iter(handles).map(|handle| async move {
        let mut times = Times::default();
        let ended = life.end(&handle, &mut times).await;
        (ended.map_err(|error| format!("{}: {error}", handle.id())), times)
    });
    let mut ends = std::pin::pin!(ends.buffer_unordered(at_once.max(1)));
    let (mut outcome, mut count) = (Outcome::default(), 0);
    while let Some((ended, times)) = ends.next().await {
        outcome.times.extend(&times);
        outcome.failures.extend(ended.err());
        count += 1;
        progress(count);
    }
    (outcome.wall, outcome.cpu) = (begun.elapsed(), Usage::now().cpu - used.cpu);
    outcome
}

/// Runs whole lives, one after the other in each of `load.at_once` places. `life` is told its place.
pub async fn lives(system: &ResourceSystem, life: impl Fn(usize) -> Life, load: Load, prefix: &str) -> Outcome {
    let (begun, used) = (Instant::now(), Usage::now());
    let count = load.at_once.max(1);
    let places = (0..count).map(|place| {
        let life = life(place);
        async move {
            let mut lived = Outcome::default();
            for index in (place..load.sandboxes).step_by(count) {
                one_life(system, &life, name(prefix, index), &mut lived).await;
            }
            lived
        }
    });
    let mut outcome = Outcome::default();
    for lived in futures::future::join_all(places).await {
        outcome.times.extend(&lived.times);
        outcome.failures.extend(lived.failures);
    }
    (outcome.wall, outcome.cpu) = (begun.elapsed(), Usage::now().cpu - used.cpu);
    outcome
}

async fn one_life(system: &ResourceSystem, life: &Life, id: SandboxId, outcome: &mut Outcome) {
    let begun = Instant::now();
    let lived = match life.start(system, id.clone(), &mut outcome.times).await {
        Ok(handle) => life.end(&handle, &mut outcome.times).await,
        Err(error) => Err(error.to_string()),
    };
    outcome.times.wholes.add(begun.elapsed());
    outcome.failures.extend(lived.err().map(|error| format!("{id}: {error}")));
}
