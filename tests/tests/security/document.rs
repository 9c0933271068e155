//! Holds `docs/security.md` to the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("target"));
    let nested = paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The functions of all sources that have an attribute `#[test]` or `#[tokio::test]`.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in sources(&workspace().join("crates")).iter().chain(&sources(&workspace().join("tests"))) {
        let text = fs::read_to_string(path).unwrap();
        let mut is_next = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_next = true;
            } else if is_next && !line.starts_with("#[") && !line.starts_with("//") {
                is_next = false;
                let name =
                    line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                found.extend(name.map(str::to_owned));
            }
        }
    }
    found
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_and_file_that_the_document_names_exists() {
    let text = fs::read_to_string(workspace().join("docs/security.md")).unwrap();
    let tests = tests();
    let rules = text.split("\n- **R").skip(1);
    let mut numbers = BTreeSet::new();
    for rule in rules {
        let (number, rest) = rule.split_once("**").unwrap();
        numbers.insert(number.parse::<u32>().unwrap());
        let (places, named) = rest.split("\n\n").next().unwrap().split_once("Tests:").unwrap();
        let missing: Vec<_> = quoted(named).filter(|name| !tests.contains(*name)).collect();
        assert!(missing.is_empty(), "R{number} names tests that are not there: {missing:#?}");
        assert!(quoted(named).count() > 0, "R{number} has no test");
        for place in quoted(places).filter(|place| place.contains('/') && !place.starts_with('/')) {
            let path = workspace().join("crates").join(place);
            assert!(path.exists(), "R{number}: {place} is not there");
        }
    }
    let tried = text.split("\n| S1 |").nth(1).unwrap().split("\n\n").next().unwrap();
    let missing: Vec<_> = quoted(tried).filter(|name| !tests.contains(*name)).collect();
    assert!(missing.is_empty(), "the table of attacks names tests that are not there: {missing:#?}");
    let expected: BTreeSet<u32> = (1..=24).chain([27]).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn thirty_advisories_and_more_have_a_test_of_their_own() {
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    let here = workspace().join("tests/tests/advisories");
    let told: Vec<_> = sources(&here)
        .iter()
        .flat_map(|path| {
            let text = text(path);
            let names: Vec<String> =
                text.lines().filter_map(|line| line.strip_prefix("fn ")).map(str::to_owned).collect();
            names.into_iter().filter(|name| {
                name.starts_with("cve_")
                    || name.starts_with("ghsa_")
                    || name.starts_with("kata_")
                    || name.starts_with("pr_")
            })
        })
        .collect();
    let advisories: usize = told
        .iter()
        .map(|name| {
            name.matches("cve_").count()
                + name.matches("ghsa_").count()
                + usize::from(name.starts_with("kata_") || name.starts_with("pr_"))
        })
        .sum();
    assert!(told.len() >= 30 && advisories >= 38, "{} tests of {advisories} advisories", told.len());
}
