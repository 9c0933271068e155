//! Z9: a life of a sandbox, and faults in it.

use std::sync::OnceLock;

use simulation::fault::{FaultPlan, PlannedFault, Site};

use crate::faults::enumerate::{Dry, dry_runs, modes};
use crate::faults::run;

/// Faults of one run: more hide each other.
const FAULTS_MAX: usize = 6;

/// Each life without a fault, which says where faults can strike.
fn lives() -> &'static [Dry] {
    static LIVES: OnceLock<Vec<Dry>> = OnceLock::new();
    LIVES.get_or_init(dry_runs)
}

/// The plan that bytes stand for: the first chooses the life, each further four a fault in it (two
/// choose the call, one whether it is the next of its kind, one what goes wrong).
fn plan(bytes: &[u8]) -> Option<(&'static Dry, FaultPlan)> {
    let (first, rest) = bytes.split_first()?;
    let dry = lives().get(usize::from(*first) % lives().len().max(1))?;
    let mut plan = FaultPlan::default();
    for chosen in rest.chunks_exact(4).take(FAULTS_MAX) {
        let at = usize::from(u16::from_be_bytes([chosen[0], chosen[1]]));
        let Some(site) = dry.sites.get(at % dry.sites.len().max(1)) else { continue };
        let modes = modes(&dry.life, site);
        let Some(mode) = modes.get(usize::from(chosen[3]) % modes.len().max(1)) else { continue };
        let site = Site { nth: site.nth + u32::from(chosen[2] % 4 == 3), ..site.clone() };
        if !plan.faults.iter().any(|fault| fault.site == site) {
            plan.faults.push(PlannedFault { site, mode: *mode });
        }
    }
    Some((dry, plan))
}

/// Whatever goes wrong, every rule holds, and in the end the host is as it was.
///
/// # Panics
/// When a rule does not hold; the text is the command that runs it again.
pub fn z9_life_with_faults(bytes: &[u8]) {
    let Some((dry, plan)) = plan(bytes) else { return };
    let report = run(&dry.life, &plan, Some(&dry.reference));
    assert!(report.breaks.is_empty(), "{}\n{:#?}", report.reproduce(), report.breaks);
}
