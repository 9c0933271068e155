//! The fuzz targets on their corpora, and on a few changes to each that are the same in every run.
//!
//! `RESOURCE_ACTORS_FUZZ_ROUNDS` says how many; `RESOURCE_ACTORS_WRITE_CORPORA=1` writes the seeds anew.

use std::fs;
use std::path::{Path, PathBuf};

use lifecycle_tests::fuzz::mutate::{Dice, mutate};
use lifecycle_tests::fuzz::{TARGETS, Target, seeds};

/// The largest file of a corpus.
const BYTES_MAX: usize = 256 << 10;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

fn files(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpora().join(target.name)).unwrap_or_else(|_| panic!("{} has no corpus", target.name));
    let mut files: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// Tells which input it was when a target panics.
fn run(target: &Target, bytes: &[u8], what: &str) {
    let caught = std::panic::catch_unwind(|| (target.run)(bytes));
    if let Err(panic) = caught {
        let kept = std::env::temp_dir().join(format!("{}-failed", target.name));
        fs::write(&kept, bytes).unwrap();
        eprintln!("{} fails on {what}, kept in {}", target.name, kept.display());
        std::panic::resume_unwind(panic);
    }
}

fn fuzz(name: &str, rounds_by_default: usize) {
    static SEEDS: std::sync::Once = std::sync::Once::new();
    if std::env::var_os("RESOURCE_ACTORS_WRITE_CORPORA").is_some() {
        SEEDS.call_once(|| seeds::write(&corpora()));
    }
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let files = files(target);
    assert!(!files.is_empty(), "{name}: nothing to begin with");
    for (path, bytes) in &files {
        assert!(bytes.len() <= BYTES_MAX, "{} has {} bytes", path.display(), bytes.len());
        run(target, bytes, &path.display().to_string());
    }
    let wished = std::env::var("RESOURCE_ACTORS_FUZZ_ROUNDS").ok();
    let rounds = wished.map_or(rounds_by_default, |text| text.parse().expect("a number of rounds"));
    let mut dice = Dice::new(rounds as u64);
    for round in 0..rounds {
        let (seed, other) = (&files[dice.below(files.len())].1, &files[dice.below(files.len())].1);
        run(target, &mutate(&mut dice, seed, other), &format!("round {round}"));
    }
    run(target, &[], "nothing");
}

#[test]
fn z1_any_specification_is_planned_or_refused() {
    fuzz("z1_spec", 3_000);
}

#[test]
fn z2_any_configuration_is_loaded_or_refused() {
    fuzz("z2_configuration", 2_000);
}

#[test]
fn z3_any_ledger_leaves_other_sandboxes_alone() {
    fuzz("z3_ledger", 60);
}

#[test]
fn z4_any_words_of_a_vmm_are_answered_or_end_its_channel() {
    fuzz("z4_control_channel", 1_000);
}

#[test]
fn z5_any_answer_of_an_agent_is_taken_within_its_bounds_or_refused() {
    fuzz("z5_agent_replies", 300);
}

#[test]
fn z9_any_faults_in_any_life_leave_the_host_as_it_was() {
    fuzz("z9_life_with_faults", 25);
}

#[test]
fn z6_any_trace_is_replayed_or_refused() {
    fuzz("z6_trace", 150);
}
