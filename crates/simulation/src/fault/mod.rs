//! Faults: where one may strike, what it does there, and who lets it happen.

mod errno;
mod injector;
mod modes;
mod plan;
mod seeded;
mod single;

pub use errno::Errno;
pub(crate) use injector::Word;
pub use injector::{Injector, PeerDeath};
pub use modes::applicable;
pub use plan::{Fault as PlannedFault, FaultPlan, Mode, Peer, Site, SyntaxError};
pub use seeded::{Seed, seeded_plan};
pub use single::{Fault, Faults};
