//! Validated names.
//!
//! An id becomes part of a path, a socket name (108 bytes at most, unix(7)) and an interface alias,
//! so what it may contain is decided once, here: `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`, no `..`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The longest id, in bytes: container engines number their containers by 64 hexadecimal digits.
pub const ID_LEN_MAX: usize = 64;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} id {text:?} {rule}: an id is 1 to {ID_LEN_MAX} of A-Z a-z 0-9 . _ - , starts with a letter or digit and contains no \"..\""
)]
pub struct InvalidId {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

fn check(kind: &'static str, text: &str) -> Result<(), InvalidId> {
    let rule = if text.is_empty() {
        "is empty"
    } else if text.len() > ID_LEN_MAX {
        "is too long"
    } else if !text.as_bytes()[0].is_ascii_alphanumeric() {
        "starts with the wrong character"
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        "contains a character that is not allowed"
    } else if text.contains("..") {
        "contains \"..\""
    } else {
        return Ok(());
    };
    let shown = text.chars().take(80).collect();
    Err(InvalidId { kind, text: shown, rule })
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks `text` against the rule of this module.
            ///
            /// # Errors
            /// [`InvalidId`] names the text and the rule that it breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                check($kind, text.as_ref())?;
                Ok(Self(text.as_ref().into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
    };
}

id_type!(
    /// Names one sandbox on this host.
    ///
    /// ```
    /// use sandbox_model::SandboxId;
    /// assert!(SandboxId::new("pod-1").is_ok());
    /// assert!(SandboxId::new("../etc").is_err());
    /// ```
    SandboxId,
    "sandbox"
);
id_type!(
    /// Names one container of a sandbox.
    ContainerId,
    "container"
);
id_type!(
    /// Names one device of a VM; the VMM and its events use the same name.
    DeviceId,
    "device"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_to_the_rule() {
        for good in ["a", "0", "pod-1", "A.b_c-d", &"x".repeat(64)] {
            assert!(SandboxId::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a..b", "a b", "a\n", "ä", "a\0", &"x".repeat(65)] {
            assert!(SandboxId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_id_is_refused_when_read_back() {
        assert!(serde_json::from_str::<ContainerId>("\"a/b\"").is_err());
        let id: ContainerId = serde_json::from_str("\"web\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"web\"");
    }
}
