//! Writing to sysfs.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::fstatfs;

/// `SYSFS_MAGIC` of linux/magic.h.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Takes writes to attributes of sysfs. The kernel acts on them; in a test something else must.
pub(super) trait Attributes {
    /// Writes `text` to the attribute at `path`.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The kernel's own.
#[derive(Debug)]
pub(super) struct Kernel;

impl Attributes for Kernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut attribute = OpenOptions::new().write(true).open(path)?;
        // A file that somebody mounted or linked over the attribute is not written to.
        if fstatfs(&attribute)?.f_type != SYSFS_MAGIC {
            return Err(io::Error::other("this is not sysfs"));
        }
        attribute.write_all(text.as_bytes())
    }
}
