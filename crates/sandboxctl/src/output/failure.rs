//! How a verb fails: four lines for people, one document for programs, one exit code.

use std::fmt;

use serde_json::{Value, json};

use super::Code;

/// Exit codes other than a container's own, and than 2 for a command line that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 1: failed, and fully undone.
    Failed,
    /// 3: failed, and something remains.
    Remains,
    /// 4: this host cannot.
    HostCannot,
    /// 5: a replay diverged.
    Diverged,
    /// 124: the time limit has passed.
    TimedOut,
    /// 128 + signal: interrupted.
    Signal(u8),
}

impl Exit {
    /// The number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Remains => 3,
            Self::HostCannot => 4,
            Self::Diverged => 5,
            Self::TimedOut => 124,
            Self::Signal(signal) => 128 + (signal & 0x7f),
        }
    }

    /// The number for a verb that otherwise passes on the container's code: a failure of our own must
    /// not look like one of the container's, so it is 125, as with docker and podman.
    pub(crate) const fn number_beside_guest(self) -> u8 {
        match self {
            Self::TimedOut | Self::Signal(_) => self.number(),
            _ => 125,
        }
    }
}

/// A failed verb.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// For `help CODE`.
    pub(crate) code: Code,
    /// For the caller.
    pub(crate) exit: Exit,
    /// What could not be done, with ids.
    pub(crate) what: String,
    /// Why: operation, object, cause.
    pub(crate) why: String,
    /// What state that leaves behind.
    pub(crate) state: String,
    /// One command, or one thing to do.
    pub(crate) advice: String,
    /// Whether the verb's own document on standard output tells of it already.
    pub(crate) documented: bool,
}

impl Failure {
    /// A failure before anything was made.
    pub(crate) fn early(
        code: Code,
        what: impl Into<String>,
        why: impl fmt::Display,
        advice: impl Into<String>,
    ) -> Self {
        let exit = match code {
            Code::HOST | Code::PRIVATE => Exit::HostCannot,
            _ => Exit::Failed,
        };
        Self {
            code,
            exit,
            what: what.into(),
            why: why.to_string(),
            state: "nothing was changed".to_owned(),
            advice: advice.into(),
            documented: false,
        }
    }

    /// The same failure with another state.
    pub(crate) fn state(mut self, state: impl Into<String>) -> Self {
        self.state = state.into();
        self
    }

    /// The same failure, of which the verb's own document tells already.
    pub(crate) fn documented(mut self) -> Self {
        self.documented = true;
        self
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "v": 1,
            "error": {
                "code": self.code.number,
                "title": self.code.title,
                "what": self.what,
                "why": self.why,
                "state": self.state,
                "try": self.advice,
            },
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, what, why, state, advice, .. } = self;
        writeln!(f, "error[{}]: {what}", code.number)?;
        writeln!(f, "  why:   {why}")?;
        writeln!(f, "  state: {state}")?;
        writeln!(f, "  try:   {advice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_lines_and_the_right_number() {
        let failure = Failure::early(Code::HOST, "no VM", "open /dev/kvm: no", "sandboxctl doctor");
        assert_eq!(failure.to_string().lines().count(), 4);
        assert_eq!((failure.exit.number(), failure.exit.number_beside_guest()), (4, 125));
        assert_eq!((Exit::Signal(2).number(), Exit::Signal(15).number_beside_guest()), (130, 143));
        assert_eq!(Exit::TimedOut.number_beside_guest(), 124);
    }
}
