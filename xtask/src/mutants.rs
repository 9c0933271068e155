//! Code broken on purpose: a copy of the tree with every mutant of `tests/mutants/table.toml` in it.
//!
//! All mutants are in one build, each behind a look at the environment, so that forty of them cost one
//! compilation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::faults::{Outcome, SELECTION};
use crate::tool::{self, workspace};

/// The table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutant: Vec<Mutant>,
}

/// A mutant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    rule: String,
    life: String,
    fault: String,
    file: String,
    text: String,
    put: String,
}

/// What `MUTANT("name")` in a replacement stands for.
fn guarded(put: &str) -> String {
    let mut text = String::new();
    let mut rest = put;
    while let Some((before, after)) = rest.split_once("MUTANT(\"") {
        let (name, behind) = after.split_once("\")").unwrap_or((after, ""));
        text.push_str(before);
        text.push_str(&format!("(std::env::var(\"MUTANT\").as_deref() == Ok(\"{name}\"))"));
        rest = behind;
    }
    text + rest
}

/// The files that mutants change, with all of them in.
fn with_all(mutants: &[Mutant]) -> Result<BTreeMap<String, String>> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for mutant in mutants {
        let source = match files.remove(&mutant.file) {
            Some(source) => source,
            None => fs::read_to_string(workspace().join(&mutant.file)).with_context(|| mutant.file.clone())?,
        };
        let count = source.matches(&mutant.text).count();
        ensure!(count == 1, "{}: its text occurs {count} times in {}", mutant.name, mutant.file);
        files.insert(mutant.file.clone(), source.replacen(&mutant.text, &guarded(&mutant.put), 1));
    }
    Ok(files)
}

/// Builds the copy, lives one life for each mutant, and counts those that nobody noticed.
pub(crate) fn run() -> Result<Outcome> {
    let begun = Instant::now();
    let table = fs::read_to_string(workspace().join("tests/mutants/table.toml")).context("tests/mutants/table.toml")?;
    let table: Table = toml::from_str(&table).context("tests/mutants/table.toml")?;
    let tree = workspace().join("target/mutants/tree");
    copy(&tree)?;
    for (file, text) in with_all(&table.mutant)? {
        fs::write(tree.join(&file), text).with_context(|| file)?;
    }
    // Beside the tree's own crates cargo keeps these apart, and shares the libraries.
    let mut cargo = tool::cargo();
    cargo.current_dir(&tree).env("CARGO_TARGET_DIR", tool::cargo_target());
    let built = cargo.args(SELECTION).args(["--bin", "faults"]).status()?;
    ensure!(built.success(), "the tree with the mutants does not build");
    // The next tier's build puts another program in its place.
    let program = workspace().join("target/mutants/faults");
    fs::copy(tool::cargo_target().join("release/faults"), &program).context("keep the program")?;
    let sound = probe(&program, "", "L3", "")?;
    ensure!(sound.is_empty(), "without a mutant the copy breaks {sound}");
    let mut missed = 0;
    for mutant in &table.mutant {
        let broken = probe(&program, &mutant.name, &mutant.life, &mutant.fault)?;
        let is_noticed = broken.split(' ').any(|rule| rule == mutant.rule);
        missed += usize::from(!is_noticed);
        let word = if is_noticed { "noticed by" } else { "MISSED by" };
        println!("{:28} {word} {:4} (broken: {broken})", mutant.name, mutant.rule);
    }
    Ok(Outcome {
        is_good: missed == 0,
        sites: table.mutant.len().to_string(),
        runs: (table.mutant.len() + 1).to_string(),
        modes: "-".to_owned(),
        leaks: "-".to_owned(),
        breaks: format!("{missed} missed"),
        seconds: begun.elapsed().as_secs(),
    })
}

fn probe(program: &Path, mutant: &str, life: &str, fault: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(["--probe", life, fault]).env("MUTANT", mutant).env("RUST_LOG", "off");
    let output = command.output().with_context(|| program.display().to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A copy of what git knows, as it is now.
fn copy(tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).context("remove the copy before")?;
    }
    let mut git = Command::new("git");
    let listed = git.current_dir(workspace()).args(["ls-files", "-z"]).output().context("git ls-files")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (workspace().join(name), tree.join(name));
        if !from.is_file() {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::copy(&from, &to).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_still_fits_the_code_once() {
        let table = fs::read_to_string(workspace().join("tests/mutants/table.toml")).unwrap();
        let table: Table = toml::from_str(&table).unwrap();
        assert!(table.mutant.len() >= 26, "{} mutants", table.mutant.len());
        // One after the other, as they go into the copy: none may change what another looks for.
        assert!(!with_all(&table.mutant).unwrap().is_empty());
        for mutant in &table.mutant {
            assert!(guarded(&mutant.put).contains(&format!("Ok(\"{}\")", mutant.name)), "{}", mutant.name);
        }
    }

    #[test]
    fn a_guard_looks_at_the_environment() {
        let put = guarded("if MUTANT(\"a\") { x } else if !MUTANT(\"b\") { y }");
        assert_eq!(put.matches("std::env::var(\"MUTANT\")").count(), 2);
        assert!(put.ends_with("Ok(\"b\")) { y }"), "{put}");
    }
}
