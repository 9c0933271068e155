//! Where events go: a channel, and a file behind it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use sandbox_model::trace::{Event, Header, TRACE_VERSION, TraceSink};
use tokio::time::Instant;

/// Events that may wait for the writer: about a hundred lifecycles.
const QUEUE_LEN_MAX: usize = 65_536;

/// Sends events to whoever holds the other end. It never blocks: when the queue is full an event is
/// dropped and counted.
#[derive(Debug)]
pub struct ChannelSink {
    events: SyncSender<Event>,
    seq: AtomicU64,
    lost: AtomicU64,
    begun: OnceLock<Instant>,
}

impl ChannelSink {
    /// A sink and the end at which its events come out.
    pub fn new() -> (Arc<Self>, Receiver<Event>) {
        let (events, received) = sync_channel(QUEUE_LEN_MAX);
        let sink = Self { events, seq: AtomicU64::new(0), lost: AtomicU64::new(0), begun: OnceLock::new() };
        (Arc::new(sink), received)
    }

    /// Events that found the queue full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
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
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes a trace to a file, on a thread of its own.
#[derive(Debug)]
pub struct TraceFile {
    sink: Option<Arc<ChannelSink>>,
    writer: Option<JoinHandle<io::Result<()>>>,
    path: PathBuf,
}

impl TraceFile {
    /// Creates the file and writes the header.
    ///
    /// # Errors
    /// The file or the thread cannot be made.
    pub fn create(path: &Path, header: Header) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        write_event(&mut file, &Event::Header(header))?;
        file.flush()?;
        let (sink, events) = ChannelSink::new();
        let writer = std::thread::Builder::new().name("trace-writer".into()).spawn(move || write_all(file, &events))?;
        Ok(Self { sink: Some(sink), writer: Some(writer), path: path.to_owned() })
    }

    /// Where events go.
    ///
    /// # Panics
    /// Never: the sink is there until `finish`, which takes the file.
    pub fn sink(&self) -> Arc<ChannelSink> {
        self.sink.clone().expect("taken only by finish, which consumes the file")
    }

    /// Writes what is left and closes the file. Every other holder of the sink must be gone.
    ///
    /// # Errors
    /// Something could not be written, or events were lost because the disk was too slow.
    pub fn finish(mut self) -> io::Result<()> {
        let lost = self.sink.take().map_or(0, |sink| sink.lost());
        if let Some(writer) = self.writer.take() {
            writer.join().map_err(|_| io::Error::other("the trace's writer panicked"))??;
        }
        if lost > 0 {
            return Err(io::Error::other(format!("{}: {lost} events were lost", self.path.display())));
        }
        Ok(())
    }
}

fn write_event(file: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *file, event)?;
    file.write_all(b"\n")
}

fn write_all(mut file: BufWriter<File>, events: &Receiver<Event>) -> io::Result<()> {
    loop {
        let event = match events.try_recv() {
            Ok(event) => event,
            Err(TryRecvError::Disconnected) => return file.flush(),
            Err(TryRecvError::Empty) => {
                // A trace of a process that is killed now ends here and not in the middle.
                file.flush()?;
                match events.recv() {
                    Ok(event) => event,
                    Err(_) => return file.flush(),
                }
            }
        };
        write_event(&mut file, &event)?;
    }
}

/// Reads a trace: its header and its events in the order of their sequence numbers. A last line cut
/// by a crash is left out.
///
/// # Errors
/// The file cannot be read, or a line is no event; the text names the line.
pub fn read_trace(path: &Path) -> io::Result<(Header, Vec<Event>)> {
    let wrong = |line: usize, what: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} line {line}: {what}", path.display()))
    };
    let mut file = BufReader::new(File::open(path)?);
    let (mut header, mut events, mut line, mut number) = (None, Vec::new(), String::new(), 0);
    loop {
        line.clear();
        number += 1;
        if file.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            break;
        }
        match serde_json::from_str(&line).map_err(|error| wrong(number, format!("no trace event: {error}")))? {
            Event::Header(found) if number == 1 && found.version == TRACE_VERSION => header = Some(found),
            Event::Header(found) if number == 1 => {
                return Err(wrong(1, format!("trace version {} is not {TRACE_VERSION}", found.version)));
            }
            Event::Header(_) => return Err(wrong(number, "a second header".into())),
            event => events.push(event),
        }
    }
    let header = header.ok_or_else(|| wrong(1, "the header is missing".into()))?;
    events.sort_by_key(|event| event.place().map_or(0, |place| place.seq));
    Ok((header, events))
}
