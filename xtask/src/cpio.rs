//! Writing an initramfs: the `newc` form of cpio, as the kernel reads it.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making.
pub(crate) struct Archive<W> {
    output: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub(crate) fn new(output: W) -> Self {
        Self { output, inode: 0 }
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | mode, (0, 0), data)
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER | mode, number, &[])
    }

    /// Writes the end and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time of change
            length(data.len())?,
            0, // device the file is on
            0,
            device.0,
            device.1,
            length(name.len() + 1)?,
            0, // check sum, not used by this form
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(data)
    }

    /// Everything starts at a multiple of four.
    fn padded(&mut self, data: &[u8]) -> io::Result<()> {
        self.output.write_all(data)?;
        let gap = data.len().next_multiple_of(4) - data.len();
        self.output.write_all(&[0; 3][..gap])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_end_is_marked() {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // Header of 110 bytes, name of 5, one of padding.
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
