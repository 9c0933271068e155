//! Whatever fails, nothing is left behind and no rule is broken: the part that every test run does.
//! `cargo xtask faults` does all of it.
#![expect(clippy::unwrap_used, reason = "a test ends where a helper meets what it did not expect")]

use std::collections::BTreeSet;

use lifecycle_tests::faults::enumerate::{
    Dry, SECOND, Tally, dry_runs, followed_by, sample, singles, slowed, swarm, unmet,
};
use lifecycle_tests::faults::mutants::MUTANTS;
use lifecycle_tests::faults::{Reference, from_bytes, prefix, run, run_on, setting};
use lifecycle_tests::lifecycles::lifecycle;
use simulation::fault::{FaultPlan, Mode, PlannedFault, Seed};

fn assert_none_broken(tally: &Tally) {
    println!("{} runs, {} events, {:?}", tally.count(), tally.events, tally.took);
    assert_eq!(tally.broken, 0, "{}", tally.told());
}

fn dry(id: &str) -> Dry {
    dry_runs().into_iter().find(|dry| dry.life.id == id).unwrap()
}

#[test]
fn a_life_without_a_fault_keeps_every_rule() {
    for dry in dry_runs() {
        assert!(dry.report.breaks.is_empty(), "{}: {:#?}", dry.life.id, dry.report.breaks);
        let again = run(&dry.life, &FaultPlan::default(), Some(&dry.reference));
        assert_eq!((again.sites.len(), again.breaks), (dry.sites.len(), vec![]), "{}", dry.life.id);
        println!("{}: {} sites, {} events", dry.life.id, dry.sites.len(), dry.report.events);
    }
}

#[test]
fn every_method_of_every_port_is_a_site_of_some_life() {
    let unmet = unmet(&dry_runs());
    assert!(unmet.is_empty(), "no life calls {unmet:?}");
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

#[test]
fn one_fault_anywhere_leaves_nothing_behind() {
    let mut tally = Tally::default();
    for (seed, dry) in (0..).zip(dry_runs()) {
        tally.run_all(&dry, sample(singles(&dry), 8, seed));
    }
    assert_none_broken(&tally);
}

#[test]
fn interruptions_anywhere_leave_nothing_behind() {
    let (dry, mut tally) = (dry("L11"), Tally::default());
    tally.run_all(&dry, sample(singles(&dry), 16, 11));
    assert_none_broken(&tally);
}

#[test]
fn many_faults_leave_nothing_behind() {
    let mut tally = Tally::default();
    for dry in dry_runs().iter().filter(|dry| !dry.life.is_interrupted) {
        tally.run_all(dry, (0..4).map(|seed| swarm(dry, seed)));
    }
    assert_none_broken(&tally);
}

#[test]
fn a_fault_in_the_undo_of_a_fault_and_a_crash_in_the_recovery_of_a_crash_leave_nothing_behind() {
    let (dry, mut tally, mut seed) = (dry("L3"), Tally::default(), Seed(3));
    for mode in [Mode::Error, Mode::CrashAfter] {
        let site = seed.one_of(&dry.sites[40..]).unwrap().clone();
        let first = PlannedFault { site, mode };
        tally.run_all(&dry, sample(followed_by(&dry, &first, &SECOND), 10, seed.draw()));
    }
    assert_none_broken(&tally);
}

#[test]
fn slow_parties_change_nothing_but_the_time() {
    let mut tally = Tally::default();
    for dry in dry_runs().iter().filter(|dry| !dry.life.is_interrupted) {
        tally.run_all(dry, (0..2).map(|seed| slowed(dry, seed)));
    }
    assert_none_broken(&tally);
}

#[test]
fn any_part_of_a_ledger_can_be_released() {
    let life = lifecycle("L12", &setting()).unwrap();
    let ledger = prefix::ledger_of(&life);
    let ends: BTreeSet<usize> = ledger.match_indices('\n').flat_map(|(end, _)| [end + 1, end - 7]).collect();
    assert!(ends.len() > 200, "{} records", ends.len());
    for end in ends.into_iter().step_by(9) {
        prefix::release(&life, &ledger[..end]).unwrap_or_else(|why| panic!("the first {end} bytes: {why}"));
    }
}

#[test]
fn every_broken_wrapper_is_noticed() {
    for mutant in MUTANTS {
        let life = lifecycle(mutant.life, &setting()).unwrap();
        let reference = run(&life, &FaultPlan::default(), None).reference;
        let plan = mutant.fault.parse().unwrap();
        let report = run_on(&life, &plan, Some(&reference), |host| mutant.put_into(host));
        let rules: BTreeSet<&str> = report.breaks.iter().map(|broken| broken.rule).collect();
        assert!(rules.contains(mutant.rule), "{}: {} did not notice, {:#?}", mutant.name, mutant.rule, report.breaks);
    }
}

#[test]
fn any_requests_with_any_faults_keep_every_rule() {
    let mut seed = Seed(9);
    for _ in 0..24 {
        let length = seed.below(48);
        let bytes: Vec<u8> = (0..length).map(|_| seed.draw().to_le_bytes()[0]).collect();
        let report = from_bytes(&bytes);
        assert!(report.breaks.is_empty(), "{bytes:?} ({}): {:#?}", report.plan, report.breaks);
    }
}
