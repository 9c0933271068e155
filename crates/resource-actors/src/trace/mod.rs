//! Recording what happened, and making it happen again.

mod recorder;
mod replay;
mod sink;

pub(crate) use recorder::Recorder;
pub use replay::{Divergence, ReplayError, ReplayReport, replay};
pub use sink::{ChannelSink, TraceFile, read_trace};
