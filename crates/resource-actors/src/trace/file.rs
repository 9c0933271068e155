//! A trace's file: written on a thread of its own, bounded, read back.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;

use sandbox_model::trace::{Event, Header, TRACE_VERSION};

use super::ChannelSink;
use super::kernel_ids::KernelIds;

/// A file for its owner only: a trace tells what was asked for, and where it was.
fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
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
        Self::bounded(path, header, u64::MAX)
    }

    /// As [`create`](Self::create), with at most `limit_bytes` on the disk. A file that holds half of
    /// that is renamed to `PATH.1`, in the place of the one before it, and a new one begun.
    ///
    /// # Errors
    /// The file or the thread cannot be made.
    pub fn bounded(path: &Path, header: Header, limit_bytes: u64) -> io::Result<Self> {
        let (sink, events) = ChannelSink::new();
        let lost = sink.lost_counter();
        let writer = Writer::begin(path, header, limit_bytes / 2, lost)?;
        let thread = std::thread::Builder::new().name("trace-writer".into());
        let writer = thread.spawn(move || writer.write_all(&events))?;
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
        let lost = self.sink.take().map(|sink| sink.lost_counter());
        if let Some(writer) = self.writer.take() {
            writer.join().map_err(|_| io::Error::other("the trace's writer panicked"))??;
        }
        match lost.map_or(0, |lost| lost.load(Ordering::Relaxed)) {
            0 => Ok(()),
            lost => Err(io::Error::other(format!("{}: {lost} events were lost", self.path.display()))),
        }
    }
}

/// The file that holds the part before `path`'s.
fn earlier_part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

struct Writer {
    path: PathBuf,
    header: Header,
    file: BufWriter<File>,
    part_bytes: u64,
    part_bytes_max: u64,
    part_has_events: bool,
    ids: KernelIds,
    lost: Arc<AtomicU64>,
    lost_told: u64,
}

impl Writer {
    fn begin(path: &Path, header: Header, part_bytes_max: u64, lost: Arc<AtomicU64>) -> io::Result<Self> {
        let (path, file, ids) = (path.to_owned(), BufWriter::new(create(path)?), KernelIds::default());
        let (part_bytes, part_has_events, lost_told) = (0, false, 0);
        let mut writer = Self { path, header, file, part_bytes, part_bytes_max, part_has_events, ids, lost, lost_told };
        writer.write_header()?;
        writer.file.flush()?;
        Ok(writer)
    }

    fn write_header(&mut self) -> io::Result<()> {
        let line = line_of(&Event::Header(self.header.clone()))?;
        self.write_line(&line)
    }

    fn write_all(mut self, events: &Receiver<Event>) -> io::Result<()> {
        loop {
            let event = match events.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // A trace of a process that is killed now ends here and not in the middle.
                    self.tell_lost()?;
                    self.file.flush()?;
                    match events.recv() {
                        Ok(event) => event,
                        Err(_) => break,
                    }
                }
            };
            self.write_event(&event)?;
        }
        self.tell_lost()?;
        self.file.flush()
    }

    /// What was lost was lost after what has been written.
    fn tell_lost(&mut self) -> io::Result<()> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost == self.lost_told {
            return Ok(());
        }
        let count = lost - std::mem::replace(&mut self.lost_told, lost);
        let line = line_of(&Event::Lost { count })?;
        self.write_line(&line)
    }

    fn write_event(&mut self, event: &Event) -> io::Result<()> {
        let line = event_line(event, &mut self.ids)?;
        if self.part_has_events && self.part_bytes + line.len() as u64 > self.part_bytes_max {
            self.next_part()?;
        }
        self.part_has_events = true;
        self.write_line(&line)
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.part_bytes += line.len() as u64;
        self.file.write_all(line)
    }

    fn next_part(&mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.path, earlier_part(&self.path))?;
        self.file = BufWriter::new(create(&self.path)?);
        (self.part_bytes, self.part_has_events) = (0, false);
        self.header.part += 1;
        self.write_header()
    }
}

fn line_of(event: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

fn event_line(event: &Event, ids: &mut KernelIds) -> io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(event)?;
    ids.replace_in_event(&mut value);
    line_of(&value)
}

/// What a file of these events would hold.
///
/// # Errors
/// An event cannot be serialised.
pub fn lines_of(header: &Header, events: impl IntoIterator<Item = Event>) -> io::Result<Vec<u8>> {
    let (mut lines, mut ids) = (line_of(&Event::Header(header.clone()))?, KernelIds::default());
    for event in events {
        lines.extend(event_line(&event, &mut ids)?);
    }
    Ok(lines)
}

/// Reads a trace: its header and its events in the order of their sequence numbers. A last line cut
/// by a crash is left out. A part that is not the first is read together with the one before it, if
/// that is there; the header then is that part's.
///
/// # Errors
/// The file cannot be read, or a line is no event; the text names the line.
pub fn read_trace(path: &Path) -> io::Result<(Header, Vec<Event>)> {
    let (mut header, mut events) = read_part(path)?;
    if header.part > 1
        && let Ok((earlier, mut before)) = read_part(&earlier_part(path))
        && earlier.part + 1 == header.part
    {
        before.append(&mut events);
        (header, events) = (earlier, before);
    }
    // What was lost stays behind what was written before it.
    let mut last = 0;
    let mut placed: Vec<_> = events
        .into_iter()
        .map(|event| {
            last = event.place().map_or(last, |place| place.seq);
            (last, event)
        })
        .collect();
    placed.sort_by_key(|(seq, _)| *seq);
    Ok((header, placed.into_iter().map(|(_, event)| event).collect()))
}

fn read_part(path: &Path) -> io::Result<(Header, Vec<Event>)> {
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
    Ok((header, events))
}
