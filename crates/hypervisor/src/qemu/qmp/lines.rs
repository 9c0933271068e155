//! Bytes into lines, with a bound.

/// The longest line that is accepted, in bytes.
pub const LINE_MAX: usize = 1 << 20;

/// A line grew beyond [`LINE_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

/// Collects bytes and yields lines. Holds at most one line and one read.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the front that belong to lines already yielded.
    taken: usize,
    /// Bytes that were searched for an end of line, from the front.
    searched: usize,
}

impl Lines {
    /// Adds what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let end = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n').map(|at| self.searched + at);
        self.searched = end.map_or(self.buffer.len(), |end| end + 1);
        if end.unwrap_or(self.buffer.len()) - self.taken > LINE_MAX {
            return Err(LineTooLong);
        }
        Ok(end.map(|end| {
            let line = &self.buffer[self.taken..end];
            self.taken = end + 1;
            line.strip_suffix(b"\r").unwrap_or(line)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        for size in 1..8 {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for chunk in b"one\r\n\ntwo\nthr".chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next_line().unwrap() {
                    seen.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            assert_eq!(seen, ["one", "", "two"], "in chunks of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        let chunk = [b'x'; 4096];
        let mut pushed = 0;
        while lines.next_line() == Ok(None) {
            lines.push(&chunk);
            pushed += chunk.len();
            assert!(pushed <= LINE_MAX + chunk.len());
        }
        assert!(lines.buffer.capacity() <= 2 * (LINE_MAX + chunk.len()));
    }
}
