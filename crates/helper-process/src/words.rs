//! A helper's last words: the tail of its stderr, bounded and made harmless.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ChildStderr;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// Number of stderr in any process.
const STDERR: i32 = 2;
/// Lines that are kept.
const LINES_MAX: usize = 64;
/// Bytes that are kept of one line.
const LINE_BYTES_MAX: usize = 512;
/// How long the end of stderr is waited for once the process has ended. A grandchild may hold it.
const DRAIN: Duration = Duration::from_millis(200);

/// The kept tail.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
    ended: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.partial.len() < LINE_BYTES_MAX {
                self.partial.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = sanitised(&std::mem::take(&mut self.partial));
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn text(&self) -> String {
        let mut text = self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        let partial = sanitised(&self.partial);
        if !partial.is_empty() {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&partial);
        }
        text
    }
}

/// Printable text of one line: a helper speaks for a guest and must not steer our terminal.
fn sanitised(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The tail of a stream of text, filled by a task: at most 64 lines of at most 512 bytes, without
/// control characters. For stderr, and for a guest's console.
#[derive(Debug, Clone)]
pub struct LastWords(watch::Receiver<Tail>);

impl LastWords {
    /// Those of a process that an earlier one of ours started: from what is left in the pipe that is
    /// its stderr. A process whose stderr is not to be had is not heard.
    pub(crate) fn of_adopted(pidfd: &OwnedFd) -> Self {
        let reopened = reopen_stderr(pidfd).and_then(pipe::Receiver::from_owned_fd);
        reopened.map_or_else(
            |error| {
                tracing::debug!(%error, "the stderr of an adopted helper is not heard");
                Self::none()
            },
            Self::of,
        )
    }

    /// Those of somebody whom we do not hear.
    pub fn none() -> Self {
        Self(watch::channel(Tail { ended: true, ..Tail::default() }).1)
    }

    /// Reads `stderr` to its end, in a task of the current runtime.
    pub(crate) fn collect(stderr: ChildStderr) -> std::io::Result<Self> {
        Ok(Self::of(pipe::Receiver::from_owned_fd(stderr.into())?))
    }

    /// Reads `source` to its end, in a task of the current runtime.
    pub fn of(mut source: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let (writer, reader) = watch::channel(Tail::default());
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            // A read error ends the words as the end of the pipe does.
            loop {
                let read = tokio::select! {
                    biased;
                    // Nobody listens any more: the source is free for somebody else.
                    () = writer.closed() => return,
                    read = source.read(&mut buffer) => read,
                };
                let Ok(count @ 1..) = read else { break };
                writer.send_modify(|tail| tail.push(&buffer[..count]));
            }
            writer.send_modify(|tail| {
                tail.end_line();
                tail.ended = true;
            });
        });
        Self(reader)
    }

    /// What was said so far, oldest line first.
    pub fn text(&self) -> String {
        self.0.borrow().text()
    }

    /// Waits until everything that an ended process said has been read, or 200 ms.
    pub async fn complete(&self) {
        let mut reader = self.0.clone();
        // Neither a held pipe nor a reading task that went down with its runtime is worth an error.
        let _ = tokio::time::timeout(DRAIN, reader.wait_for(|tail| tail.ended)).await;
    }
}

/// The reading end of the pipe of which the process has the writing end.
fn reopen_stderr(pidfd: &OwnedFd) -> io::Result<OwnedFd> {
    let writing = pidfd_getfd(pidfd, STDERR, PidfdGetfdFlags::empty())?;
    // Looked at before it is opened: the process may have put anything there.
    if FileType::from_raw_mode(fstat(&writing)?.st_mode) != FileType::Fifo {
        return Err(io::Error::other("it is no pipe"));
    }
    let path = format!("/proc/self/fd/{}", writing.as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(bytes: Vec<u8>) -> String {
        let words = LastWords::of(std::io::Cursor::new(bytes));
        words.complete().await;
        words.text()
    }

    #[tokio::test]
    async fn the_tail_is_bounded_and_harmless() {
        assert_eq!(said(b"one\n\ntwo\x1b[2J\xff\r\nthree".to_vec()).await, "one\ntwo\u{fffd}[2J\u{fffd}\nthree");
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = said(many.into_bytes()).await;
        assert_eq!(tail.lines().count(), LINES_MAX);
        assert!(tail.starts_with("line 36\n") && tail.ends_with("line 99"), "{tail}");
        assert_eq!(said(vec![b'x'; 100_000]).await.len(), LINE_BYTES_MAX);
    }
}
