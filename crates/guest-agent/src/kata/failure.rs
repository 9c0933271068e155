//! What a failed call says, in the words of the port.

use std::time::Duration;

use sandbox_model::{ErrorKind, PortError};
use ttrpc::{Code, Error, Status};

use super::fate::End;

/// The most of an agent's text that is repeated, in characters.
const TEXT_LEN_MAX: usize = 300;

/// What is called and on what, for messages.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// The method, as the protocol names it.
    pub(super) method: &'static str,
    /// The container, process, interface, … in question.
    pub(super) object: String,
}

impl Subject {
    /// Names a call of `method` on `object`.
    pub(super) fn new(method: &'static str, object: impl ToString) -> Self {
        Self { method, object: object.to_string() }
    }

    /// A failure of this call.
    pub(super) fn error(&self, kind: ErrorKind, cause: impl Into<String>) -> PortError {
        PortError::new(kind, self.method, self.object.as_str(), cause)
    }

    /// An answer that no honest agent gives.
    pub(super) fn broken(&self, what: impl Into<String>) -> PortError {
        // It did answer, so it may have done what it was asked.
        self.error(ErrorKind::Protocol, what).doubtful()
    }

    /// No answer for `waited`.
    pub(super) fn silent(&self, waited: Duration) -> PortError {
        let cause = format!("no answer of the agent within {:.3} s", waited.as_secs_f64());
        PortError::timed_out(self.method, self.object.as_str(), cause)
    }

    /// The connection ended before the call was made.
    pub(super) fn too_late(&self, end: &End) -> PortError {
        self.error(ErrorKind::PeerGone, end.text())
    }

    /// What ttrpc says of a call that was made; `end` if the connection is over.
    pub(super) fn failed(&self, error: Error, end: Option<&End>) -> PortError {
        match (error, end) {
            (Error::RpcStatus(status), _) => self.refused(&status),
            (_, Some(end)) => self.error(end.kind(), first_line(end.text())).doubtful(),
            // Our own request is too long; ttrpc has no better way to say so.
            (Error::Others(text), None) if text.contains("exceed maximum message size") => {
                self.error(ErrorKind::Invalid, text)
            }
            (Error::Others(text), None) => self.broken(first_line(&text)),
            (error, None) => self.error(ErrorKind::PeerGone, first_line(&error.to_string())).doubtful(),
        }
    }

    /// What the agent says.
    fn refused(&self, status: &Status) -> PortError {
        let text = first_line(&status.message);
        let code = status.code();
        let error = self.error(kind_of(code, &text), format!("{code:?}: {text}"));
        if fails_half_way(code) && error.kind != ErrorKind::NotFound { error.doubtful() } else { error }
    }
}

/// The kind that an agent's code stands for.
fn kind_of(code: Code, text: &str) -> ErrorKind {
    // A ttrpc server answers so for a method that it does not have, and the Kata agent for a
    // container that it does not have; an undo must not mistake one for the other.
    if code == Code::NOT_FOUND && text.ends_with(" is not supported") {
        return ErrorKind::Unsupported;
    }
    if text.eq_ignore_ascii_case("invalid container id") {
        return ErrorKind::NotFound;
    }
    match code {
        Code::NOT_FOUND => ErrorKind::NotFound,
        Code::ALREADY_EXISTS => ErrorKind::Exists,
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => ErrorKind::Invalid,
        Code::UNIMPLEMENTED => ErrorKind::Unsupported,
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => ErrorKind::Denied,
        Code::DEADLINE_EXCEEDED => ErrorKind::TimedOut,
        Code::RESOURCE_EXHAUSTED => ErrorKind::Busy,
        _ => ErrorKind::Refused,
    }
}

/// Whether the agent may have begun before it failed.
fn fails_half_way(code: Code) -> bool {
    matches!(
        code,
        Code::INTERNAL
            | Code::UNKNOWN
            | Code::ABORTED
            | Code::CANCELLED
            | Code::DATA_LOSS
            | Code::DEADLINE_EXCEEDED
            | Code::RESOURCE_EXHAUSTED
            | Code::UNAVAILABLE
    )
}

/// Whether `error` is how the Kata agent says that a stream is at its end.
pub(super) fn is_end_of_stream(error: &PortError) -> bool {
    let said = error.cause.to_ascii_lowercase();
    let code = matches!(said.split(':').next(), Some("invalid_argument" | "internal"));
    code && said.rsplit([' ', ':']).next() == Some("eof")
}

/// The first line of a guest's `text`, bounded and harmless in a log: the Kata agent adds a
/// backtrace, a hostile one whatever it likes.
pub(super) fn first_line(text: &str) -> String {
    let line = text.trim_start().lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(TEXT_LEN_MAX).flat_map(printable).take(TEXT_LEN_MAX).collect();
    if line.chars().nth(TEXT_LEN_MAX).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// `character` as it is, or its escape.
fn printable(character: char) -> impl Iterator<Item = char> {
    // `escape_debug` knows which characters a terminal obeys; quotes need no escape here.
    let keep = matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1;
    let kept = keep.then_some(character);
    let escaped = (!keep).then(|| character.escape_debug());
    kept.into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use sandbox_model::Outcome;

    use super::*;

    fn said(code: Code, text: &str) -> PortError {
        Subject::new("RemoveContainer", "web").failed(Error::RpcStatus(ttrpc::get_status(code, text)), None)
    }

    #[test]
    fn codes_have_kinds() {
        for (code, text, kind, outcome) in [
            (Code::NOT_FOUND, "no such thing", ErrorKind::NotFound, Outcome::NotDone),
            (Code::NOT_FOUND, "/grpc.AgentService/X is not supported", ErrorKind::Unsupported, Outcome::NotDone),
            (Code::INTERNAL, "Invalid container id\n\nStack backtrace:", ErrorKind::NotFound, Outcome::NotDone),
            (Code::ALREADY_EXISTS, "there", ErrorKind::Exists, Outcome::NotDone),
            (Code::UNIMPLEMENTED, "X method", ErrorKind::Unsupported, Outcome::NotDone),
            (Code::INVALID_ARGUMENT, "no", ErrorKind::Invalid, Outcome::NotDone),
            (Code::PERMISSION_DENIED, "policy", ErrorKind::Denied, Outcome::NotDone),
            (Code::DEADLINE_EXCEEDED, "timeout", ErrorKind::TimedOut, Outcome::Doubtful),
            (Code::RESOURCE_EXHAUSTED, "full", ErrorKind::Busy, Outcome::Doubtful),
            (Code::INTERNAL, "mount failed", ErrorKind::Refused, Outcome::Doubtful),
        ] {
            let error = said(code, text);
            assert_eq!((error.kind, error.outcome), (kind, outcome), "{code:?} {text}");
        }
        let error = said(Code::INTERNAL, "mount failed\nat 0x1");
        assert_eq!(error.to_string(), "RemoveContainer web: INTERNAL: mount failed");
    }

    #[test]
    fn ends_of_connections_have_kinds() {
        let subject = Subject::new("StartContainer", "web");
        let lost = Error::Socket("early eof".to_owned());
        assert_eq!(subject.failed(lost.clone(), None).kind, ErrorKind::PeerGone);
        assert_eq!(subject.failed(lost.clone(), Some(&End::Lost("x".into()))).kind, ErrorKind::PeerGone);
        assert_eq!(subject.failed(lost, Some(&End::Broken("x".into()))).kind, ErrorKind::Protocol);
        let garbage = Error::Others("Unpack response error wire".to_owned());
        assert_eq!(subject.failed(garbage, None).kind, ErrorKind::Protocol);
        let long = Error::Others("message length 9 exceed maximum message size of 8".to_owned());
        assert_eq!(subject.failed(long, None).kind, ErrorKind::Invalid);
    }

    #[test]
    fn the_end_of_a_stream_is_known() {
        for text in ["eof", "EOF", "read meet eof\n\nStack backtrace:\n 0: x"] {
            assert!(is_end_of_stream(&said(Code::INVALID_ARGUMENT, text)), "{text}");
            assert!(is_end_of_stream(&said(Code::INTERNAL, text)), "{text}");
        }
        assert!(!is_end_of_stream(&said(Code::NOT_FOUND, "eof")));
        assert!(!is_end_of_stream(&said(Code::INTERNAL, "no process eof-1")));
        assert!(!is_end_of_stream(&said(Code::INTERNAL, "eof of what?")));
    }

    #[test]
    fn texts_are_short_and_harmless() {
        assert_eq!(first_line("one \"two\"\nthree"), "one \"two\"");
        assert_eq!(first_line("a\x1b[2J\u{202e}b\r"), "a\\u{1b}[2J\\u{202e}b\\r");
        assert_eq!(first_line("größe c:\\d"), "größe c:\\d");
        let long = first_line(&"x".repeat(1 << 20));
        assert_eq!((long.chars().count(), long.ends_with('…')), (TEXT_LEN_MAX, true));
        assert!(first_line(&"\x01".repeat(500)).chars().count() <= TEXT_LEN_MAX);
        assert_eq!(first_line(""), "");
    }
}
