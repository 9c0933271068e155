//! Whole lives on the real kernel, with simulated VMs.

use std::sync::Arc;
use std::time::Duration;

use resource_actors::ResourceSystem;
use simulation::World;

use super::{Row, Target};
use crate::Samples;
use crate::calls::counted;
use crate::kernel::{Pods, in_private_namespaces, ports};
use crate::load::{self, Load, Outcome};

const LIVES: usize = 120;
/// Lives whose system calls are counted: each call then costs two switches to another process.
const COUNTED: usize = 20;
/// Pods, and so the lives that there can be at one time.
const PODS: usize = 32;

pub(super) fn run() -> Result<Vec<Row>, String> {
    in_private_namespaces(|| {
        let pods = Pods::make(PODS)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let world = Arc::new(World::new());
        let system = ResourceSystem::builder(ports(&world)).threads(2).start().map_err(|error| error.to_string())?;
        let mut round = 0;
        let mut lives = |sandboxes, at_once| {
            round += 1;
            let load = Load { sandboxes, at_once, rate: None };
            let outcome =
                runtime.block_on(load::lives(&system, |place| pods.life(place), load, &format!("life{round}")));
            match outcome.failures.first() {
                None => Ok(outcome),
                Some(failure) => Err(failure.clone()),
            }
        };
        lives(10, 1)?;
        let mut rows = one(&lives(LIVES, 1)?);
        rows.push(calls(counted(|| lives(COUNTED, 1))?.1));
        for at_once in [2, 4, 8, 16, 32] {
            rows.push(many(&lives(LIVES * 2, at_once)?, at_once));
        }
        runtime.block_on(system.shutdown());
        let left = pods.leftovers()?;
        let detail = left.first().cloned().unwrap_or_else(|| "pods and mounts are as they were".to_owned());
        rows.push(Row::new("objects left on the real kernel", left.len() as f64, "", Target::AtMost(0.0), detail));
        Ok(rows)
    })
}

/// Half of what Kata 4.1's resource crate takes for the same on cgroup v1.
const WALL_MS_MAX: f64 = 8.9 / 2.0;
/// Nobody recorded its CPU time. One life after the other hardly waits, so it is held to the same.
const CPU_MS_MAX: f64 = WALL_MS_MAX;
/// Half of its system calls.
const CALLS_MAX: f64 = 660.0 / 2.0;
/// Three times its rate with as many at once, by the number at once.
const RATES_MIN: [(usize, f64); 5] = [(2, 525.0), (4, 471.0), (8, 501.0), (16, 504.0), (32, 429.0)];

fn one(outcome: &Outcome) -> Vec<Row> {
    let whole = whole(outcome);
    let per_life = millis(outcome.cpu) / LIVES as f64;
    let detail = format!("{}; {}", whole.describe(), steps(outcome));
    vec![
        Row::new("life on the real kernel", millis(whole.median()), "ms", Target::AtMost(WALL_MS_MAX), detail),
        Row::new(
            "its CPU time",
            per_life,
            "ms",
            Target::AtMost(CPU_MS_MAX),
            format!("all threads, the kernel's part included; mean of {LIVES}"),
        ),
    ]
}

fn calls(sum: u64) -> Row {
    let detail = format!("{sum} calls of all threads in {COUNTED} lives, counted by strace");
    Row::new("its system calls", sum as f64 / COUNTED as f64, "", Target::AtMost(CALLS_MAX), detail)
}

fn many(outcome: &Outcome, at_once: usize) -> Row {
    let rate = outcome.rate(LIVES * 2);
    let target = RATES_MIN.iter().find(|(count, _)| *count == at_once).map_or(0.0, |(_, rate)| *rate);
    let detail = format!("{}; CPU {:.2} ms each", whole(outcome).describe(), millis(outcome.cpu) / (LIVES * 2) as f64);
    Row::new(&format!("lives on the real kernel, {at_once} at once"), rate, "/s", Target::AtLeast(target), detail)
}

fn whole(outcome: &Outcome) -> Samples {
    outcome.times.wholes.clone()
}

fn steps(outcome: &Outcome) -> String {
    let steps = crate::life::STEPS.iter().zip(&outcome.times.steps);
    let each = steps.map(|(name, samples)| format!("{name} {:.2}", millis(samples.median())));
    each.collect::<Vec<_>>().join(", ")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
