//! What must not be seen: environments, arguments, mount data, the content of files.
//!
//! A [`Secret`] neither prints nor records its value: a record holds its digest, by which two
//! records of the same value can be told to be the same. Who needs the value says
//! [`Secret::expose`], which is easy to search for.
//!
//! Mount options are texts of the OCI specification in messages that a replay must send again, so
//! they stay texts; [`options`] and [`mounts`] write them down with what they carry replaced by its
//! digest. What has been replaced stays as it is when it is written down again, so a replayed
//! message is recorded as the recorded one was.
//!
//! A digest hides a value that cannot be guessed, and no other.

use std::fmt;
use std::fmt::Write as _;

use oci_spec::runtime::Mount;
use serde::{Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What a digest begins with.
const PREFIX: &str = "sha256:";

/// A value that is used and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for whoever must act on it.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself.
    pub fn into_exposed(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl<T: Serialize> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = serde_json::to_vec(&self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&digest(&bytes))
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(PREFIX.to_owned(), |mut text, byte| {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Options that carry nothing but what they are called (mount(8), mount_setattr(2)).
const PLAIN: [&str; 34] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "rbind",
    "relatime",
    "remount",
    "ro",
    "rprivate",
    "rro",
    "rshared",
    "rslave",
    "rw",
    "shared",
    "slave",
    "suid",
    "sync",
];
/// Options whose value is a number or a mode.
const NUMBERS: [&str; 7] = ["fsgid", "gid", "mode", "nr_blocks", "nr_inodes", "size", "uid"];

/// One mount option as it may be seen.
pub fn option(option: &str) -> String {
    if PLAIN.contains(&option) || is_digest(option) {
        return option.to_owned();
    }
    match option.split_once('=') {
        Some((key, value)) if NUMBERS.contains(&key) && value.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            option.to_owned()
        }
        Some((_, value)) if is_digest(value) => option.to_owned(),
        Some((key, value)) => format!("{key}={}", digest(value.as_bytes())),
        None => digest(option.as_bytes()),
    }
}

/// Writes mount options down as they may be seen: for `serialize_with`.
///
/// # Errors
/// The serializer's own.
pub fn options<S: Serializer>(options: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(options.iter().map(|each| option(each)))
}

/// Writes OCI mounts down as they may be seen: for `serialize_with`.
///
/// # Errors
/// The serializer's own.
pub fn mounts<S: Serializer>(mounts: &[Mount], serializer: S) -> Result<S::Ok, S::Error> {
    let seen: Result<Vec<Value>, _> = mounts.iter().map(seen).collect();
    seen.map_err(serde::ser::Error::custom)?.serialize(serializer)
}

fn seen(mount: &Mount) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(mount)?;
    if let Some(Value::Array(options)) = value.get_mut("options") {
        for each in options {
            if let Value::String(text) = each {
                *text = option(text);
            }
        }
    }
    Ok(value)
}

/// Shows a value as it is recorded: for `Debug` of what carries mount options.
///
/// # Errors
/// The formatter's own.
pub fn debug<T: Serialize>(value: &T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(&serde_json::to_string(value).map_err(|_| fmt::Error)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_neither_printed_nor_recorded() {
        let secret = Secret::new(vec!["PASSWORD=hunter2".to_owned()]);
        assert_eq!(format!("{secret:?} {secret:#?}"), "secret secret");
        let recorded = serde_json::to_string(&secret).unwrap();
        assert!(is_digest(recorded.trim_matches('"')), "{recorded}");
        assert_eq!(recorded, serde_json::to_string(&secret.clone()).unwrap(), "the same value, the same digest");
        assert_ne!(recorded, serde_json::to_string(&Secret::new(vec!["PASSWORD=hunter3".to_owned()])).unwrap());
        assert_eq!(secret.expose()[0], "PASSWORD=hunter2");
        // The published digest of the empty message (FIPS 180-4).
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn an_option_shows_its_name_and_not_what_it_carries() {
        for plain in ["ro", "rbind", "size=64m", "mode=1777", "uid=0"] {
            assert_eq!(option(plain), plain);
        }
        let shown = option("password=hunter2");
        assert!(shown.starts_with("password=sha256:") && !shown.contains("hunter2"));
        assert_eq!(option(&shown), shown, "written down twice is as once");
        let bare = option("hunter2");
        assert!(is_digest(&bare) && option(&bare) == bare);
        assert!(!option("size=hunter 2").contains("hunter"), "no number");
    }
}
