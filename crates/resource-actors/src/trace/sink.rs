//! Where events go first. No sink makes an actor wait.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sandbox_model::trace::{Event, Told, TraceSink};
use tokio::time::Instant;

/// Events that may wait at the end of a channel: about a hundred lifecycles.
const QUEUE_LEN_MAX: usize = 65_536;

/// Lines that may wait for the writer of a file: some hundred lifecycles.
pub(super) const QUEUE_BYTES_MAX: usize = 32 << 20;

/// A queue that has held more gives its memory back.
const QUEUE_BYTES_KEPT: usize = 1 << 20;

/// How long the writer lets lines gather: waking it for each would cost an actor more than the line.
const GATHERING: Duration = Duration::from_millis(2);

/// What is counted through a trace.
#[derive(Debug, Default)]
struct Counters {
    seq: AtomicU64,
    begun: OnceLock<Instant>,
}

impl Counters {
    fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn now_us(&self) -> u64 {
        let begun = self.begun.get_or_init(Instant::now);
        u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[derive(Debug)]
enum Channel {
    Bounded(SyncSender<Event>),
    Unbounded(Sender<Event>),
}

/// Sends events, as trees, to whoever holds the other end: for who looks at them. When the channel is
/// full an event is dropped and counted.
#[derive(Debug)]
pub struct ChannelSink {
    events: Channel,
    hears_calls: bool,
    counters: Counters,
    lost: AtomicU64,
}

impl ChannelSink {
    /// A sink and the end at which its events come out.
    pub fn new() -> (Arc<Self>, Receiver<Event>) {
        Self::with_queue(QUEUE_LEN_MAX)
    }

    /// A sink whose channel holds at most `len` events.
    pub fn with_queue(len: usize) -> (Arc<Self>, Receiver<Event>) {
        let (events, received) = sync_channel(len);
        (Self::onto(Channel::Bounded(events), true), received)
    }

    /// A sink that keeps all events but those of calls, which a replay answers and does not compare.
    pub(super) fn of_outputs() -> (Arc<Self>, Receiver<Event>) {
        let (events, received) = channel();
        (Self::onto(Channel::Unbounded(events), false), received)
    }

    fn onto(events: Channel, hears_calls: bool) -> Arc<Self> {
        Arc::new(Self { events, hears_calls, counters: Counters::default(), lost: AtomicU64::new(0) })
    }

    /// Events that found the channel full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl TraceSink for ChannelSink {
    fn next_seq(&self) -> u64 {
        self.counters.next_seq()
    }

    fn now_us(&self) -> u64 {
        self.counters.now_us()
    }

    fn is_recording(&self) -> bool {
        true
    }

    fn hears_calls(&self) -> bool {
        self.hears_calls
    }

    fn record(&self, event: Told<'_>) {
        let is_taken = match &self.events {
            Channel::Bounded(events) => events.try_send(event.into()).is_ok(),
            Channel::Unbounded(events) => events.send(event.into()).is_ok(),
        };
        if !is_taken {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Keeps events as lines, for who writes them to a file. An event costs its actor the line and a copy
/// of it. One that finds the queue full is dropped and counted.
#[derive(Debug)]
pub struct LineSink {
    queue: Arc<Queue>,
    counters: Counters,
}

impl LineSink {
    /// A sink whose lines are taken when all has happened: for simulations, whose end is near.
    pub fn in_memory() -> Arc<Self> {
        Self::onto(Queue::with_limit(usize::MAX))
    }

    /// A sink of which another holds the queue.
    pub(super) fn onto(queue: Arc<Queue>) -> Arc<Self> {
        Arc::new(Self { queue, counters: Counters::default() })
    }

    /// The lines that nobody has taken yet, with the kernel's own numbers in them.
    pub fn take_lines(&self) -> Vec<u8> {
        std::mem::take(&mut self.queue.state().lines)
    }

    /// Events that found the queue full.
    pub fn lost(&self) -> u64 {
        self.queue.state().lost
    }
}

impl Drop for LineSink {
    fn drop(&mut self) {
        self.queue.close();
    }
}

thread_local! {
    /// Where a line is put together, so that the queue is locked for a copy only.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl TraceSink for LineSink {
    fn next_seq(&self) -> u64 {
        self.counters.next_seq()
    }

    fn now_us(&self) -> u64 {
        self.counters.now_us()
    }

    fn is_recording(&self) -> bool {
        true
    }

    fn record(&self, event: Told<'_>) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            event.write_line(line);
            self.queue.push(line);
        });
    }
}

/// Lines between those who record and the one who writes.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    bytes_max: usize,
    /// The first line has come, or the last.
    has_news: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: Vec<u8>,
    lost: u64,
    is_closed: bool,
}

impl Queue {
    /// A queue that holds at most `bytes_max` bytes.
    pub(super) fn with_limit(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bytes_max, has_news: Condvar::new() })
    }

    /// Whoever panicked while holding it had not begun to change it.
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.is_closed || state.lines.len() + line.len() > self.bytes_max {
            state.lost += 1;
            return;
        }
        let is_first = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        if is_first {
            self.has_news.notify_one();
        }
    }

    /// No more lines: further ones are lost.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.has_news.notify_one();
    }

    /// Waits for lines and takes them, in exchange for `lines`, which is empty. The answer is how many
    /// events have been lost up to here; none if no more lines can come.
    pub(super) fn take(&self, lines: &mut Vec<u8>) -> Option<u64> {
        let waits = |state: &mut QueueState| state.lines.is_empty() && !state.is_closed;
        let state = self.has_news.wait_while(self.state(), waits).unwrap_or_else(PoisonError::into_inner);
        let gathered = self.has_news.wait_timeout_while(state, GATHERING, |state| !state.is_closed);
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        if lines.capacity() > QUEUE_BYTES_KEPT {
            *lines = Vec::new();
        }
        std::mem::swap(&mut state.lines, lines);
        (!lines.is_empty() || !state.is_closed).then_some(state.lost)
    }

    /// Events that found the queue full.
    pub(super) fn lost(&self) -> u64 {
        self.state().lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_lost_and_counted() {
        let queue = Queue::with_limit(10);
        for line in ["12345\n", "123\n", "1\n"] {
            queue.push(line.as_bytes());
        }
        let mut lines = Vec::new();
        assert_eq!((queue.take(&mut lines), lines.as_slice()), (Some(1), b"12345\n123\n".as_slice()));
        queue.push(b"1\n");
        queue.close();
        queue.push(b"2\n");
        lines.clear();
        assert_eq!((queue.take(&mut lines), lines.as_slice()), (Some(2), b"1\n".as_slice()), "closed, not yet empty");
        lines.clear();
        assert_eq!((queue.take(&mut lines), lines.len()), (None, 0));
    }
}
