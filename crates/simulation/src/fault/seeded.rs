//! Plans drawn from a seed: the same seed, the same plan.

use super::{FaultPlan, Mode, PlannedFault, Site, applicable};

/// A stream of numbers (SplitMix64: Steele, Lea, Flood, 2014).
#[derive(Debug, Clone, Copy)]
pub struct Seed(pub u64);

impl Seed {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound.max(1) as u64).unwrap_or(0)
    }

    /// One of `choices`, unless there are none.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.below(choices.len()))
    }
}

/// Up to `most` faults at some of `sites`. Each seed has its own kinds of fault (swarm testing: a run
/// in which only a few things go wrong finds what a run in which everything does cannot).
pub fn seeded_plan(seed: u64, sites: &[Site], most: usize) -> FaultPlan {
    let mut seed = Seed(seed);
    let enabled = seed.draw();
    let allows = |mode: &Mode| enabled >> (letter(*mode) % 64) & 1 == 1;
    let count = 1 + seed.below(most);
    let mut plan = FaultPlan::default();
    for _ in 0..count {
        let Some(site) = seed.one_of(sites) else { break };
        let all = applicable(site);
        let some: Vec<Mode> = all.iter().copied().filter(allows).collect();
        let mode = seed.one_of(if some.is_empty() { &all } else { &some });
        plan.faults.extend(mode.map(|mode| PlannedFault { site: site.clone(), mode: *mode }));
    }
    plan
}

/// A number for the kind of fault.
fn letter(mode: Mode) -> u32 {
    mode.letter().bytes().fold(0, |sum, byte| sum * 7 + u32::from(byte))
}
