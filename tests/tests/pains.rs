//! The tables of `docs/faults.md` name tests that exist, and what no other test shows.
#![expect(clippy::unwrap_used, reason = "a test ends where a helper meets what it did not expect")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lifecycle_tests::simulated::{boot, create, in_virtual_time};
use sandbox_model::lifecycle::LifecycleState;
use simulation::SimulatedHost;
use simulation::fault::{FaultPlan, Mode};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let nested = paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn every_test_that_the_tables_name_exists() {
    let text = fs::read_to_string(workspace().join("docs/faults.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix("` |")?.rsplit(" | `").next());
    let rows: Vec<Vec<&str>> =
        rows.filter(|tests| tests.contains('_')).map(|tests| tests.split("`, `").collect()).collect();
    assert_eq!(rows.len(), 31 + 11, "each row names a test");
    let code: Vec<String> = ["crates", "tests"]
        .iter()
        .flat_map(|root| sources(&workspace().join(root)))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let missing: BTreeSet<&str> = rows
        .into_iter()
        .flatten()
        .filter(|name| {
            let of_a_test = format!("fn {name}() {{");
            !code.iter().any(|text| text.contains(&of_a_test))
        })
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

/// A clean-up that left something says so, and the sandbox is not gone before it is.
#[test]
fn a_failed_clean_up_is_failed_until_it_has_succeeded() {
    in_virtual_time(|| async {
        let plan = "network:network-host.remove_tap#1=R:EBUSY;cgroup:cgroup-host.remove_group#1=E";
        let host = SimulatedHost::new(plan.parse().unwrap());
        let system = host.process(None);
        let sandbox = create(&system, "pain").await.unwrap();
        boot(&sandbox).await.unwrap();
        let report = sandbox.cleanup().await.unwrap();
        let failed: Vec<String> = report.failed().map(|(item, _)| item.object.clone()).collect();
        assert_eq!(failed.len(), 2, "the tap and a group: {failed:?}");
        assert_eq!(sandbox.status().state, LifecycleState::Failed);
        assert!(host.store.kept(sandbox.id()).is_some(), "the ledger stays for the next attempt");
        assert!(sandbox.cleanup().await.unwrap().is_clean());
        assert_eq!((sandbox.status().state, host.world.list()), (LifecycleState::Released, vec![]));
    });
}

/// A full disk keeps nobody from cleaning up.
#[test]
fn a_full_disk_keeps_no_clean_up_from_ending() {
    in_virtual_time(|| async {
        let host = SimulatedHost::new(FaultPlan::default());
        let system = host.process(None);
        let sandbox = create(&system, "pain").await.unwrap();
        boot(&sandbox).await.unwrap();
        for actor in ["supervisor", "device", "network", "share-fs", "cgroup"] {
            for record in ["undo-intent", "undone"] {
                for nth in 1..20 {
                    let site = format!("{actor}:ledger.{record}#{nth}").parse().unwrap();
                    host.faults.add(FaultPlan::one(site, Mode::Resource(simulation::fault::Errno::Enospc)));
                }
            }
        }
        assert!(sandbox.cleanup().await.unwrap().is_clean());
        assert!(host.faults.struck().len() > 20, "{} records were refused", host.faults.struck().len());
        assert_eq!(host.world.list(), Vec::<String>::new());
    });
}
