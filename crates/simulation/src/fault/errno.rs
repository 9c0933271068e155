//! The kernel's refusals for want of something.

use std::fmt;
use std::str::FromStr;

use sandbox_model::{ErrorKind, PortError};

use super::SyntaxError;

/// What there was not enough of, in the kernel's words. Nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Errno {
    /// No space, no inode, no more mounts.
    Enospc,
    /// No descriptor.
    Emfile,
    /// No memory.
    Enomem,
    /// In use.
    Ebusy,
    /// Not allowed.
    Eperm,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Enospc, Self::Emfile, Self::Enomem, Self::Ebusy, Self::Eperm];

    /// Its name in `errno.h`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enospc => "ENOSPC",
            Self::Emfile => "EMFILE",
            Self::Enomem => "ENOMEM",
            Self::Ebusy => "EBUSY",
            Self::Eperm => "EPERM",
        }
    }

    /// Its number on Linux (asm-generic/errno-base.h).
    pub const fn number(self) -> i32 {
        match self {
            Self::Eperm => 1,
            Self::Enomem => 12,
            Self::Ebusy => 16,
            Self::Emfile => 24,
            Self::Enospc => 28,
        }
    }

    /// The refusal of `operation` on `object`.
    pub fn refuse(self, operation: &str, object: &str) -> PortError {
        let kind = match self {
            Self::Ebusy => ErrorKind::Busy,
            Self::Eperm => ErrorKind::Denied,
            Self::Enospc | Self::Emfile | Self::Enomem => ErrorKind::Refused,
        };
        let mut error = PortError::new(kind, operation, object, format!("injected: {}", self.name()));
        error.errno = Some(self.number());
        error
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Errno {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let found = Self::ALL.into_iter().find(|errno| errno.name() == text);
        found.ok_or_else(|| SyntaxError(format!("{text:?} is none of ENOSPC, EMFILE, ENOMEM, EBUSY, EPERM")))
    }
}
