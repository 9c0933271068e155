//! What a port says when it could not do what it was asked.

use std::fmt;
use std::io;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Result of a port call.
pub type PortResult<T> = Result<T, PortError>;

/// What kind of failure it was, for code that must decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The object is not there.
    NotFound,
    /// An object of that name is there already.
    Exists,
    /// The object is in use.
    Busy,
    /// The request makes no sense, whatever the state.
    Invalid,
    /// This host, VMM or guest cannot do it.
    Unsupported,
    /// The caller lacks the right.
    Denied,
    /// No answer within the deadline.
    TimedOut,
    /// The VMM, agent or helper process is gone.
    PeerGone,
    /// The other side broke its protocol.
    Protocol,
    /// The object is not the one that the ledger names, so it was left alone.
    Foreign,
    /// Anything else the kernel or a peer refused.
    Refused,
}

/// What is known of the world after a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing changed.
    NotDone,
    /// The change may have happened; only a query can tell.
    Doubtful,
}

/// A failed port call: operation, object, cause.
///
/// Reads as `mount --bind /src -> /dst: No such file or directory (os error 2)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortError {
    /// What was tried, in the words of the field (`TUNSETIFF`, `device_add`, `openat2`).
    pub operation: String,
    /// On what.
    pub object: String,
    /// Why not, with the peer's last words where there are any.
    pub cause: String,
    /// For code that must decide.
    pub kind: ErrorKind,
    /// The kernel's number, if the kernel refused.
    pub errno: Option<i32>,
    /// Whether the world may have changed all the same.
    pub outcome: Outcome,
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.object, self.cause)
    }
}

impl std::error::Error for PortError {}

impl PortError {
    /// A failure that changed nothing.
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<String>,
        object: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            operation: operation.into(),
            object: object.into(),
            cause: cause.into(),
            kind,
            errno: None,
            outcome: Outcome::NotDone,
        }
    }

    /// A system call that the kernel refused.
    pub fn os(operation: impl Into<String>, object: impl Into<String>, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::InvalidInput => ErrorKind::Invalid,
            io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => ErrorKind::Busy,
            _ => ErrorKind::Refused,
        };
        let mut made = Self::new(kind, operation, object, error.to_string());
        made.errno = error.raw_os_error();
        made
    }

    /// No answer within the deadline: the change may still happen.
    pub fn timed_out(operation: impl Into<String>, object: impl Into<String>, last_sign: impl Into<String>) -> Self {
        let mut made = Self::new(ErrorKind::TimedOut, operation, object, last_sign);
        made.outcome = Outcome::Doubtful;
        made
    }

    /// The same failure, after which only a query can tell what is true.
    #[must_use]
    pub fn doubtful(mut self) -> Self {
        self.outcome = Outcome::Doubtful;
        self
    }

    /// Whether the object was not there: for an undo, success.
    pub fn is_absent(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_names_operation_object_and_cause() {
        let error = PortError::os("mkdirat", "/run/x", io::Error::from_raw_os_error(17));
        assert_eq!(error.to_string(), "mkdirat /run/x: File exists (os error 17)");
        assert_eq!((error.kind, error.errno), (ErrorKind::Exists, Some(17)));
        assert_eq!(error.outcome, Outcome::NotDone);
    }
}
