//! A sample of the faults on a real kernel (`fault-tiers` has all of them): system calls that
//! fail, processes that are killed, hang or are told to end. Nothing is left behind.
//!
//! `FAULT_SEED` draws another sample.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use lifecycle_tests::lab::Programs;
use lifecycle_tests::tiers::{Extent, Report, host, machine, syscalls};

/// A part of the tests' time for each tier.
fn sample(seconds: u64) -> Extent {
    let seed = std::env::var("FAULT_SEED").map_or(1, |seed| seed.parse().unwrap());
    Extent::Sample { seed, budget: Duration::from_secs(seconds) }
}

fn check(report: &Report) {
    println!("{report}");
    assert!(report.is_clean(), "{}", report.failures.join("\n"));
    assert!(report.runs > 0 && report.struck > 0, "{report}");
}

#[test]
fn calls_that_fail_and_crashes_leave_nothing() {
    let Some(programs) = Programs::or_skip(Programs::stand_ins()) else { return };
    check(&host::run(&programs, &host::LIVES, &sample(30)).unwrap());
}

#[test]
fn system_calls_that_fail_leave_nothing() {
    let Some(programs) = Programs::or_skip(Programs::stand_ins()) else { return };
    check(&syscalls::run(&programs, &sample(25)).unwrap());
}

#[test]
fn whoever_is_killed_hangs_or_is_told_to_end_leaves_nothing() {
    let Some(programs) = Programs::or_skip(Programs::stand_ins()) else { return };
    check(&machine::run_with_stand_ins(&programs, &sample(20)).unwrap());
}

#[test]
fn a_real_vm_that_is_left_alone_or_killed_leaves_nothing() {
    let Some(programs) = Programs::or_skip(Programs::real()) else { return };
    check(&machine::run(&programs, &sample(30)).unwrap());
}
