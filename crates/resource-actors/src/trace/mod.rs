//! Recording what happened, and making it happen again.

mod commands;
mod file;
mod kernel_ids;
mod recorder;
mod replay;
mod sink;

pub use commands::{NEWS, send};
pub use file::{TraceFile, events_of, file_of, read_trace};
pub(crate) use recorder::{RecordedLedger, Recorder};
pub use replay::{Divergence, ReplayError, ReplayReport, difference, replay};
pub use sink::{ChannelSink, LineSink};
