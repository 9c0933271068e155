//! A stream that lets only bounded answers through.
//!
//! ttrpc accepts 4 MiB in any frame and of any type. The guest may be hostile, and this protocol
//! knows only unary calls, so everything but an answer of bounded size ends the connection here,
//! before a buffer is made for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};

use super::fate::{End, Fate};

/// The longest answer of the agent that is read, in bytes, with its envelope.
pub const FRAME_LEN_MAX: u32 = 256 << 10;

/// Where in the agent's stream we are.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; MESSAGE_HEADER_LENGTH],
    /// Bytes of the header seen so far.
    seen: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Frames {
    /// Follows `bytes`; an error is what the agent did wrong.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (MESSAGE_HEADER_LENGTH - self.seen).min(bytes.len());
            self.header[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
            self.seen += taken;
            bytes = &bytes[taken..];
            if self.seen == MESSAGE_HEADER_LENGTH {
                self.seen = 0;
                self.payload = check(&MessageHeader::from(self.header))?;
            }
        }
        Ok(())
    }
}

/// The length of the payload that `header` announces.
fn check(header: &MessageHeader) -> Result<usize, String> {
    if header.type_ != MESSAGE_TYPE_RESPONSE {
        return Err(format!("the agent sent a frame of type {}, which is no answer", header.type_));
    }
    if header.length > FRAME_LEN_MAX {
        return Err(format!("the agent sent an answer of {} bytes; {FRAME_LEN_MAX} are allowed", header.length));
    }
    usize::try_from(header.length).map_err(|error| error.to_string())
}

/// A stream to the agent that ends when its [`Fate`] does, and ends that when it ends.
#[derive(Debug)]
pub(super) struct Guard<S> {
    inner: S,
    frames: Frames,
    fate: Arc<Fate>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Guard<S> {
    /// Stands between `inner` and ttrpc.
    pub(super) fn new(inner: S, fate: Arc<Fate>) -> Self {
        let ended = Box::pin(fate.wait());
        Self { inner, frames: Frames::default(), fate, ended }
    }

    /// Ends the connection and says so to ttrpc.
    fn fail(&self, end: End) -> io::Error {
        let kind = match end {
            End::Broken(_) => io::ErrorKind::InvalidData,
            End::Closed(_) | End::Lost(_) => io::ErrorKind::ConnectionAborted,
        };
        let error = io::Error::new(kind, end.text().to_owned());
        self.fate.end(end);
        error
    }
}

impl<S> Drop for Guard<S> {
    fn drop(&mut self) {
        // ttrpc drops the stream when a write fails, which no read would notice.
        self.fate.end(End::Lost("the connection to the agent broke".to_owned()));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(self.fail(End::Lost(error.to_string()))));
            }
            Poll::Pending => return Poll::Pending,
        }
        let read = &buf.filled()[before..];
        if read.is_empty() && buf.remaining() > 0 {
            self.fate.end(End::Lost("the agent closed the connection".to_owned()));
        }
        let followed = self.frames.follow(read);
        Poll::Ready(followed.map_err(|wrong| self.fail(End::Broken(wrong))))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(type_: u8, length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, type_, 0]);
        bytes
    }

    #[test]
    fn answers_pass_however_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [0, 1, 9, 300] {
            bytes.extend(frame(MESSAGE_TYPE_RESPONSE, length));
            bytes.extend(vec![0xff; usize::try_from(length).unwrap()]);
        }
        for piece in [1, 3, 10, 11, 4096] {
            let mut frames = Frames::default();
            for part in bytes.chunks(piece) {
                frames.follow(part).unwrap();
            }
            assert_eq!((frames.seen, frames.payload), (0, 0), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_bounded_answer_does_not() {
        assert!(Frames::default().follow(&frame(MESSAGE_TYPE_RESPONSE, FRAME_LEN_MAX)).is_ok());
        for bad in [frame(MESSAGE_TYPE_RESPONSE, FRAME_LEN_MAX + 1), frame(1, 0), frame(3, 0), frame(0xff, 0)] {
            assert!(Frames::default().follow(&bad).is_err(), "{bad:?}");
        }
    }
}
