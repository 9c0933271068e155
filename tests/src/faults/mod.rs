//! Whatever fails, nothing is left behind: lives on a simulated host, in virtual time, with faults.

pub mod bytes;
pub mod enumerate;
mod ground;
pub mod mutants;
pub mod prefix;
mod run;
mod watch;

use simulation::World;

pub use bytes::from_bytes;
pub use ground::{ground, setting};
pub use run::{Reference, Report, run, run_on};
pub use watch::{Break, Watch};

use crate::invariants::Objects;

/// What exists beside the `baseline`, in a form in which two runs are alike: identities and numbers,
/// which depend on what failed before, are left out.
pub fn picture(world: &World, baseline: &Objects) -> Vec<String> {
    let objects = world.objects();
    let ours = objects.keys().filter(|key| !baseline.contains_key(*key));
    let mut names: Vec<String> = ours.map(|(kind, name)| format!("{kind} {}", without_numbers(name))).collect();
    names.sort();
    names
}

fn without_numbers(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for word in name.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric()) {
        let bare = word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
        // A share's number: eight hexadecimal digits.
        let is_hex = bare.len() == 8 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (at, letter) in word.char_indices() {
            let is_number = letter.is_ascii_digit() || (is_hex && at < bare.len());
            let letter = if is_number { '#' } else { letter };
            if letter != '#' || !text.ends_with('#') {
                text.push(letter);
            }
        }
    }
    text
}
