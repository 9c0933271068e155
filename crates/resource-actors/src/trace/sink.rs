//! Where events go first: a channel that never blocks an actor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};

use sandbox_model::trace::{Event, TraceSink};
use tokio::time::Instant;

/// Events that may wait for the writer: about a hundred lifecycles.
const QUEUE_LEN_MAX: usize = 65_536;

#[derive(Debug)]
enum Queue {
    Bounded(SyncSender<Event>),
    Unbounded(Sender<Event>),
}

/// Sends events to whoever holds the other end. It never blocks: when the queue is full an event is
/// dropped and counted.
#[derive(Debug)]
pub struct ChannelSink {
    events: Queue,
    seq: AtomicU64,
    lost: Arc<AtomicU64>,
    begun: OnceLock<Instant>,
}

impl ChannelSink {
    /// A sink and the end at which its events come out.
    pub fn new() -> (Arc<Self>, Receiver<Event>) {
        Self::with_queue(QUEUE_LEN_MAX)
    }

    /// A sink whose queue holds at most `len` events.
    pub fn with_queue(len: usize) -> (Arc<Self>, Receiver<Event>) {
        let (events, received) = sync_channel(len);
        (Self::onto(Queue::Bounded(events)), received)
    }

    /// A sink that keeps all events: for simulations and replays, whose end is near.
    pub fn unbounded() -> (Arc<Self>, Receiver<Event>) {
        let (events, received) = channel();
        (Self::onto(Queue::Unbounded(events)), received)
    }

    fn onto(events: Queue) -> Arc<Self> {
        Arc::new(Self { events, seq: AtomicU64::new(0), lost: Arc::default(), begun: OnceLock::new() })
    }

    /// Events that found the queue full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The counter behind [`lost`](Self::lost), for who writes the events that were not.
    pub(super) fn lost_counter(&self) -> Arc<AtomicU64> {
        self.lost.clone()
    }
}

impl TraceSink for ChannelSink {
    fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn now_us(&self) -> u64 {
        let begun = self.begun.get_or_init(Instant::now);
        u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_recording(&self) -> bool {
        true
    }

    fn record(&self, event: Event) {
        let is_taken = match &self.events {
            Queue::Bounded(events) => events.try_send(event).is_ok(),
            Queue::Unbounded(events) => events.send(event).is_ok(),
        };
        if !is_taken {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
