//! Whatever fails, nothing is left behind and no rule is broken: the part that every test run does.
//! `cargo xtask faults` does all of it.

use lifecycle_tests::faults::enumerate::dry_runs;
use lifecycle_tests::faults::{Reference, run, setting};
use lifecycle_tests::lifecycles::lifecycle;
use simulation::fault::FaultPlan;

#[test]
fn a_life_without_a_fault_keeps_every_rule() {
    for dry in dry_runs() {
        assert!(dry.report.breaks.is_empty(), "{}: {:#?}", dry.life.id, dry.report.breaks);
        let again = run(&dry.life, &FaultPlan::default(), Some(&dry.reference));
        assert_eq!((again.sites.len(), again.breaks), (dry.sites.len(), vec![]), "{}", dry.life.id);
        println!("{}: {} sites, {} events", dry.life.id, dry.sites.len(), dry.report.events);
    }
}

/// One run, by hand: what a failure's line says.
#[test]
fn one_run() {
    let Ok(id) = std::env::var("SIM_LIFECYCLE") else { return };
    let plan: FaultPlan = std::env::var("SIM_FAULT").unwrap_or_default().parse().unwrap();
    let life = lifecycle(&id, &setting()).unwrap();
    let reference: Reference = run(&life, &FaultPlan::default(), None).reference;
    let report = run(&life, &plan, Some(&reference));
    println!("struck: {:?}", report.struck);
    assert!(report.breaks.is_empty(), "{:#?}", report.breaks);
}
