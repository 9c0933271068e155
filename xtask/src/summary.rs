//! Adding up what `cargo test` says of each of its programs.

use std::fmt;

/// Tests of all programs together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Summary {
    /// Takes a line of output into account, if it is the result of a program.
    pub(crate) fn add(&mut self, line: &str) {
        // A test's own output may be in front of it, without a line break.
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        self.passed += count(counts, " passed");
        self.failed += count(counts, " failed");
        self.skipped += count(counts, " ignored");
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The number in front of a word.
fn count(text: &str, word: &str) -> usize {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_added() {
        let mut summary = Summary::default();
        summary.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s");
        summary.add("test tests::a ... ok");
        summary.add("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(summary.to_string(), "14 passed, 1 failed, 1 skipped");
    }
}
