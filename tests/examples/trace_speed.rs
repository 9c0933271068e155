//! Figures of traces: `digest N` of the first N seeds; `replay FILE…` events per second;
//! `recording N` what recording adds to N simulated lifecycles.
#![expect(clippy::unwrap_used, reason = "whoever measures wants to see what fails")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifecycle_tests::seeds::{digest, header};
use lifecycle_tests::simulated::{create, in_virtual_time, lifecycle, system};
use resource_actors::trace::{TraceFile, read_trace, replay};
use sandbox_model::trace::TraceSink;
use simulation::World;
use simulation::fault::FaultPlan;

/// A measurement goes on for so long.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        Some(("digest", [count])) => println!("{}", digest(1..=count.parse().unwrap())),
        Some(("replay", files)) => files.iter().for_each(|file| replay_speed(Path::new(file))),
        Some(("recording", [count])) => recording_cost(count.parse().unwrap()),
        _ => eprintln!("digest N | replay FILE… | recording N"),
    }
}

fn replay_speed(path: &Path) {
    let (_, events) = read_trace(path).unwrap();
    let (begun, mut replayed) = (Instant::now(), 0);
    while begun.elapsed() < LONG_ENOUGH {
        let report = replay(&events).unwrap();
        assert_eq!(report.divergence, None);
        replayed += report.events;
    }
    println!("{}: {:.0} events/s", path.display(), replayed as f64 / begun.elapsed().as_secs_f64());
}

/// Processor time of this process, all threads.
fn processor_time() -> Duration {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let spent = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    spent(used.user_time()) + spent(used.system_time())
}

fn lifecycles(count: u32, sink: Option<Arc<dyn TraceSink>>) {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, sink, None);
        for n in 0..count {
            let sandbox = create(&system, &format!("s{n}")).await.unwrap();
            lifecycle(&sandbox).await.unwrap();
            assert!(sandbox.cleanup().await.unwrap().is_clean());
        }
    });
}

fn recording_cost(count: u32) {
    lifecycles(count, None);
    for _ in 0..3 {
        let (begun, used) = (Instant::now(), processor_time());
        lifecycles(count, None);
        let bare = (begun.elapsed() / count, (processor_time() - used) / count);
        let path = std::env::temp_dir().join(format!("trace-speed-{}.jsonl", std::process::id()));
        let file = TraceFile::create(&path, header(0, &FaultPlan::default())).unwrap();
        let (begun, used) = (Instant::now(), processor_time());
        lifecycles(count, Some(file.sink()));
        let recorded = begun.elapsed() / count;
        file.finish().unwrap();
        let all = (processor_time() - used) / count;
        std::fs::remove_file(path).unwrap();
        println!(
            "a lifecycle: {:?} bare; recorded {recorded:?} until its end, {all:?} of processor time against {:?}",
            bare.0, bare.1
        );
    }
}
