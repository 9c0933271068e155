//! A plan of faults as data: it can be written on one line, kept in a trace, and read again.

use std::fmt;
use std::str::FromStr;

use sandbox_model::SandboxId;
use sandbox_model::lifecycle::ActorName;
use serde::{Deserialize, Serialize};

use super::Errno;

/// What is written does not say what was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SyntaxError(pub(super) String);

/// One call of one actor, or one record in a ledger (port `ledger`) or store (port `store`).
///
/// Written `[SANDBOX/]ACTOR:PORT.METHOD#N`: `device:hypervisor.add_device#2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Site {
    /// Whose; `None` is any sandbox's.
    pub sandbox: Option<SandboxId>,
    /// Who calls.
    pub actor: ActorName,
    /// Through which port.
    pub port: String,
    /// Which of its methods.
    pub method: String,
    /// The how-manieth of these, from 1.
    pub nth: u32,
}

impl Site {
    /// Whether this is the site of a plan at which `other`, a site met by a sandbox, stands.
    pub fn covers(&self, other: &Self) -> bool {
        let same = |site: &Self| (site.actor, site.port.clone(), site.method.clone(), site.nth);
        (self.sandbox.is_none() || self.sandbox == other.sandbox) && same(self) == same(other)
    }

    /// Port and method, as `hypervisor.add_device`.
    pub fn call(&self) -> String {
        format!("{}.{}", self.port, self.method)
    }

    /// The same site of any sandbox.
    #[must_use]
    pub fn of_any(self) -> Self {
        Self { sandbox: None, ..self }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sandbox) = &self.sandbox {
            write!(f, "{sandbox}/")?;
        }
        write!(f, "{}:{}.{}#{}", self.actor, self.port, self.method, self.nth)
    }
}

impl FromStr for Site {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let wrong = || SyntaxError(format!("{text:?} is no site: [SANDBOX/]ACTOR:PORT.METHOD#N"));
        let (sandbox, rest) = match text.split_once('/') {
            Some((sandbox, rest)) => (Some(SandboxId::new(sandbox).map_err(|_| wrong())?), rest),
            None => (None, text),
        };
        let (actor, rest) = rest.split_once(':').ok_or_else(wrong)?;
        let (port, rest) = rest.split_once('.').ok_or_else(wrong)?;
        let (method, nth) = rest.split_once('#').ok_or_else(wrong)?;
        let actor = ActorName::ALL.into_iter().find(|name| name.as_str() == actor).ok_or_else(wrong)?;
        let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(wrong)?;
        Ok(Self { sandbox, actor, port: port.to_owned(), method: method.to_owned(), nth })
    }
}

/// A party that can fail as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The VMM's process.
    Vmm,
    /// The guest's agent.
    Agent,
    /// The daemon of the shared directory.
    Virtiofsd,
    /// The daemon of the vsock.
    VsockDaemon,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vmm, Self::Agent, Self::Virtiofsd, Self::VsockDaemon];

    /// Its name in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Agent => "agent",
            Self::Virtiofsd => "virtiofsd",
            Self::VsockDaemon => "vsock",
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Mode {
    /// `E`: refused, and nothing has happened.
    Error,
    /// `T`: it does not happen and is never answered.
    Hang,
    /// `TA`: it happens and is never answered.
    HangAfter,
    /// `CB`: our process dies before it happens.
    CrashBefore,
    /// `CA`: our process dies when it has happened.
    CrashAfter,
    /// `S`: it happens and is answered at the last moment.
    Slow,
    /// `L`: it happens after we have given up. Whoever is late does things in order: what the same
    /// actor asks the same port for next happens after it.
    Late,
    /// `D`: it happens and is answered, and the caller of the command that led to it sends that
    /// command a second time.
    Duplicate,
    /// `M`: it happens, and the answer breaks the protocol.
    Malformed,
    /// `ML`: it does not happen, and the answer says that it did.
    Lie,
    /// `P`: it happens in part, or nobody can tell, and is answered with an error.
    Partial,
    /// `X:PEER`: a party dies just before it.
    Dies(Peer),
    /// `Z:PEER`: a party answers nothing any more, from here on.
    Silent(Peer),
    /// `R:ERRNO`: the kernel has too little of something.
    Resource(Errno),
    /// `I`: the caller interrupts the step that led to it, which does not happen.
    Interrupted,
    /// `IS`: the caller stops the sandbox meanwhile; it does not happen.
    Stopped,
    /// `IC`: the caller gives up; it happens.
    GivenUp,
}

impl Mode {
    /// Whether our process dies of it.
    pub const fn is_crash(self) -> bool {
        matches!(self, Self::CrashBefore | Self::CrashAfter)
    }

    /// The letter of the fault model.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Error => "E",
            Self::Hang | Self::HangAfter => "T",
            Self::CrashBefore => "CB",
            Self::CrashAfter => "CA",
            Self::Slow => "S",
            Self::Late => "L",
            Self::Duplicate => "D",
            Self::Malformed | Self::Lie => "M",
            Self::Partial => "P",
            Self::Dies(_) | Self::Silent(_) => "X",
            Self::Resource(_) => "R",
            Self::Interrupted | Self::Stopped | Self::GivenUp => "I",
        }
    }
}

/// Modes without a parameter, by their names.
const PLAIN: [(&str, Mode); 14] = [
    ("E", Mode::Error),
    ("T", Mode::Hang),
    ("TA", Mode::HangAfter),
    ("CB", Mode::CrashBefore),
    ("CA", Mode::CrashAfter),
    ("S", Mode::Slow),
    ("L", Mode::Late),
    ("D", Mode::Duplicate),
    ("M", Mode::Malformed),
    ("ML", Mode::Lie),
    ("P", Mode::Partial),
    ("I", Mode::Interrupted),
    ("IS", Mode::Stopped),
    ("IC", Mode::GivenUp),
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dies(peer) => write!(f, "X:{}", peer.name()),
            Self::Silent(peer) => write!(f, "Z:{}", peer.name()),
            Self::Resource(errno) => write!(f, "R:{errno}"),
            plain => f.write_str(PLAIN.iter().find(|(_, mode)| mode == plain).map_or("?", |(name, _)| name)),
        }
    }
}

impl FromStr for Mode {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        if let Some((_, mode)) = PLAIN.iter().find(|(name, _)| *name == text) {
            return Ok(*mode);
        }
        let wrong = || SyntaxError(format!("{text:?} is no mode of failure"));
        let (letter, of) = text.split_once(':').ok_or_else(wrong)?;
        let peer = || Peer::ALL.into_iter().find(|peer| peer.name() == of).ok_or_else(wrong);
        match letter {
            "X" => Ok(Self::Dies(peer()?)),
            "Z" => Ok(Self::Silent(peer()?)),
            "R" => Ok(Self::Resource(of.parse()?)),
            _ => Err(wrong()),
        }
    }
}

/// A fault: what happens at a site. Written `SITE=MODE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fault {
    /// Where.
    pub site: Site,
    /// What.
    pub mode: Mode,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.site, self.mode)
    }
}

/// Faults, each of which strikes once. Written with `;` between them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultPlan {
    /// In no particular order.
    pub faults: Vec<Fault>,
}

impl FaultPlan {
    /// A plan of one fault.
    pub fn one(site: Site, mode: Mode) -> Self {
        Self { faults: vec![Fault { site, mode }] }
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.faults.iter().enumerate() {
            if n > 0 {
                f.write_str(";")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl FromStr for FaultPlan {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let fault = |part: &str| {
            let (site, mode) = part.split_once('=').ok_or_else(|| SyntaxError(format!("{part:?} is no SITE=MODE")))?;
            Ok(Fault { site: site.parse()?, mode: mode.parse()? })
        };
        let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self { faults: parts.map(fault).collect::<Result<_, SyntaxError>>()? })
    }
}

macro_rules! text {
    ($($name:ident),*) => {
        $(
            impl TryFrom<String> for $name {
                type Error = SyntaxError;
                fn try_from(text: String) -> Result<Self, SyntaxError> {
                    text.parse()
                }
            }

            impl From<$name> for String {
                fn from(value: $name) -> Self {
                    value.to_string()
                }
            }
        )*
    };
}

text!(Site, Mode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_one_line_that_reads_back() {
        let text = "life/device:hypervisor.add_device#2=CA;cgroup:ledger.intent#1=R:ENOSPC;cpu:guest-agent.online_cpu_mem#1=Z:agent";
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.to_string(), text);
        assert_eq!(plan.faults.len(), 3);
        let kept = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<FaultPlan>(&kept).unwrap(), plan);
        for (name, mode) in PLAIN {
            assert_eq!((name.parse::<Mode>(), mode.to_string()), (Ok(mode), name.to_owned()));
        }
        for wrong in ["x", "device:a.b#0=E", "nobody:a.b#1=E", "device:a.b#1=Q", "device:a#1=E", "device:a.b#1=R:EIO"] {
            assert!(wrong.parse::<FaultPlan>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_site_of_any_sandbox_covers_those_of_each() {
        let any: Site = "device:hypervisor.add_device#2".parse().unwrap();
        let one: Site = "one/device:hypervisor.add_device#2".parse().unwrap();
        let two: Site = "two/device:hypervisor.add_device#2".parse().unwrap();
        assert!(any.covers(&one) && any.covers(&two) && one.covers(&one) && !one.covers(&two));
        assert_eq!(one.of_any(), any);
    }
}
