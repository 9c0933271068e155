//! A trace's file: written on a thread of its own, bounded, read back.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use sandbox_model::trace::{Event, Header, TRACE_VERSION};

use super::kernel_ids::KernelIds;
use super::sink::{LineSink, QUEUE_BYTES_MAX, Queue};

/// A file for its owner only: a trace tells what was asked for, and where it was.
fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a trace to a file, on a thread of its own.
#[derive(Debug)]
pub struct TraceFile {
    sink: Option<Arc<LineSink>>,
    queue: Arc<Queue>,
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
        let queue = Queue::with_limit(QUEUE_BYTES_MAX);
        let writer = Writer::begin(path, header, limit_bytes / 2)?;
        let (thread, taken) = (std::thread::Builder::new().name("trace-writer".into()), queue.clone());
        let writer = thread.spawn(move || {
            let written = writer.write_all(&taken);
            // Nobody takes lines any more.
            taken.close();
            written
        })?;
        let sink = Some(LineSink::onto(queue.clone()));
        Ok(Self { sink, queue, writer: Some(writer), path: path.to_owned() })
    }

    /// Where events go.
    ///
    /// # Panics
    /// Never: the sink is there until `finish`, which takes the file.
    pub fn sink(&self) -> Arc<LineSink> {
        self.sink.clone().expect("taken only by finish, which consumes the file")
    }

    /// Writes what is left and closes the file. Every other holder of the sink must be gone.
    ///
    /// # Errors
    /// Something could not be written, or events were lost because the disk was too slow.
    pub fn finish(mut self) -> io::Result<()> {
        drop(self.sink.take());
        if let Some(writer) = self.writer.take() {
            writer.join().map_err(|_| io::Error::other("the trace's writer panicked"))??;
        }
        match self.queue.lost() {
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
    lost_told: u64,
}

impl Writer {
    fn begin(path: &Path, header: Header, part_bytes_max: u64) -> io::Result<Self> {
        let (path, file, ids) = (path.to_owned(), BufWriter::new(create(path)?), KernelIds::default());
        let (part_bytes, part_has_events, lost_told) = (0, false, 0);
        let mut writer = Self { path, header, file, part_bytes, part_bytes_max, part_has_events, ids, lost_told };
        writer.write_header()?;
        writer.file.flush()?;
        Ok(writer)
    }

    fn write_header(&mut self) -> io::Result<()> {
        let line = header_line(&self.header);
        self.write_line(&line)
    }

    fn write_all(mut self, queue: &Queue) -> io::Result<()> {
        let (mut lines, mut line) = (Vec::new(), Vec::new());
        while let Some(lost) = queue.take(&mut lines) {
            for taken in lines.split_inclusive(|byte| *byte == b'\n') {
                line.clear();
                self.ids.replace_in_line(taken, &mut line);
                self.write_event(&line)?;
            }
            lines.clear();
            self.tell_lost(lost)?;
            // A trace of a process that is killed now ends here and not in the middle.
            self.file.flush()?;
        }
        self.tell_lost(queue.lost())?;
        self.file.flush()
    }

    /// What was lost was lost after what has been written.
    fn tell_lost(&mut self, lost: u64) -> io::Result<()> {
        if lost == self.lost_told {
            return Ok(());
        }
        let count = lost - std::mem::replace(&mut self.lost_told, lost);
        self.write_line(&line_of(&Event::Lost { count }))
    }

    fn write_event(&mut self, line: &[u8]) -> io::Result<()> {
        if self.part_has_events && self.part_bytes + line.len() as u64 > self.part_bytes_max {
            self.next_part()?;
        }
        self.part_has_events = true;
        self.write_line(line)
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

fn line_of(event: &Event) -> Vec<u8> {
    let mut line = Vec::new();
    event.write_line(&mut line);
    line
}

fn header_line(header: &Header) -> Vec<u8> {
    line_of(&Event::Header(header.clone()))
}

/// What a file of these lines would hold, which a [`LineSink`] has kept.
pub fn file_of(header: &Header, lines: &[u8]) -> Vec<u8> {
    let (mut file, mut ids) = (header_line(header), KernelIds::default());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        ids.replace_in_line(line, &mut file);
    }
    file
}

/// The events in lines that a [`LineSink`] has kept.
///
/// # Errors
/// A line is no event.
pub fn events_of(lines: &[u8]) -> io::Result<Vec<Event>> {
    let lines = lines.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
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
