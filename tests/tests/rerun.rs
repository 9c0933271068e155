//! The same seed gives the same trace; whatever a trace's commands are put through, the rules hold.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lifecycle_tests::seeds::{digest, header, lines, lived};
use resource_actors::trace::read_trace;
use sandbox_model::trace::Event;
use simulation::fault::FaultPlan;
use simulation::rerun::{Stress, StressReport, minimise, minimise_plan, rerun, stress};

#[test]
fn a_trace_is_made_again_from_its_seed_to_the_byte() {
    let failing: FaultPlan =
        "one/network:network-host.create_tap#1=E;two/cpu:guest-agent.online_cpu_mem#1=T".parse().unwrap();
    for (seed, plan) in [(1, FaultPlan::default()), (2, FaultPlan::default()), (3, FaultPlan::default()), (7, failing)]
    {
        let recorded = lines(seed, &plan);
        let again = rerun(&header(seed, &plan), &lived(seed, &plan), &recorded).unwrap();
        assert_eq!(again.difference, None, "seed {seed}, faults {plan}");
        assert!(again.lines == recorded);
    }
    let none = FaultPlan::default();
    let wrong = rerun(&header(2, &none), &lived(1, &none), &lines(1, &none)).unwrap();
    assert!(wrong.difference.is_some_and(|(line, _)| line > 0), "another seed is another order of things");
}

/// The recorded traces that begin with a sandbox's creation and are not packed, and a simulated one.
fn scripts() -> Vec<(String, Vec<Event>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    let mut scripts = vec![("simulated".to_owned(), lived(1, &FaultPlan::default()))];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".jsonl") {
            let (_, events) = read_trace(&path).unwrap();
            if matches!(events.first(), Some(Event::Created { .. })) {
                scripts.push((name, events));
            }
        }
    }
    scripts
}

#[test]
fn whatever_a_trace_is_put_through_no_rule_is_broken() {
    let mut struck = 0;
    for (name, events) in scripts() {
        for seed in 1..=4 {
            let faults = (seed % 4 != 0).then_some(seed);
            let stressed = Stress { seed, sandboxes: 1 + (seed as usize % 3), speed: 10.0, faults };
            let report = stress(&events, &stressed).unwrap();
            let again = format!("sandboxctl trace replay tests/traces/{name} --seed {seed} --faults {faults:?}");
            assert_eq!(report.violations, [""; 0], "{again} --sandboxes {} --speed 10", stressed.sandboxes);
            assert!(report.commands > 0 && !report.states.is_empty());
            struck += report.struck;
        }
    }
    assert!(struck > 3, "{struck} faults struck");
}

#[test]
fn what_fails_is_reduced_to_what_is_needed() {
    let events = lived(1, &FaultPlan::default());
    // Two of the three faults have nothing to do with it.
    let plan: FaultPlan = "two/supervisor:hypervisor.start_vm#1=E;one/cpu:guest-agent.online_cpu_mem#1=E;\
        one/share-fs:share-fs-host.make_directory#1=E"
        .parse()
        .unwrap();
    let is_failure = |report: &StressReport| {
        report.events.iter().any(|event| {
            matches!(event, Event::Replied { message, reply, .. }
                if message == "StartVm" && reply["Ok"]["Err"].to_string().contains("injected"))
        })
    };
    let least = minimise_plan(&events, &Stress::default(), plan, &is_failure).unwrap().expect("a VM does not start");
    assert_eq!(least.report.faults.to_string(), "two/supervisor:hypervisor.start_vm#1=E");
    assert_eq!((least.commands.1, least.faults), (2, (3, 1)), "it is prepared and started: {:?}", least.commands);
    // The reduced run is a trace of its own.
    let (header, events) = (least.report.header.clone(), least.report.events.clone());
    assert_eq!(rerun(&header, &events, &least.report.file()).unwrap().difference, None);
    assert!(minimise(&events, &Stress::default()).unwrap().is_none(), "no rule is broken");
}

/// Set in the process that is to give the digest.
const CHILD: &str = "TRACE_DIGEST_CHILD";
const SEEDS: std::ops::RangeInclusive<u64> = 1..=6;

#[test]
fn seeds_give_the_same_digest_in_another_process() {
    let digest = digest(SEEDS);
    println!("digest of seeds {SEEDS:?}: {digest}");
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", "seeds_give_the_same_digest_in_another_process", "--nocapture"]).env(CHILD, "1");
    let said = String::from_utf8(other.output().unwrap().stdout).unwrap();
    assert!(said.contains(&digest), "{said}");
    let runs: BTreeSet<Vec<u8>> = (1..=3).map(|seed| lines(seed, &FaultPlan::default())).collect();
    assert_eq!(runs.len(), 3, "each seed is another run");
}
