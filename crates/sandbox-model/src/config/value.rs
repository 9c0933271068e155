//! What a key accepts, and how a written value becomes a stored one.

use std::fmt;

use serde_json::{Value, json};

use crate::device::is_pci_address;

/// The kind of value that a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number within a range.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
        /// Whether 0, as in Kata, asks for the default.
        zero_is_default: bool,
    },
    /// A power of two within a range.
    PowerOfTwo {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A number of vCPUs, which may be a fraction; 0 asks for the default if the range excludes it.
    Fraction {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// One of some words; the empty text asks for the default.
    Choice {
        /// The words.
        words: &'static [&'static str],
        /// Words of Kata's for which we use another, with a warning.
        replaced: &'static [(&'static str, &'static str)],
    },
    /// One word: letters, digits, `.`, `_` and `-`, of which a letter is first. It becomes a part of another program's option, in
    /// which a comma would begin one more.
    Word,
    /// The guest kernel's command line. A pod may add what is harmless only.
    KernelParams,
    /// The absolute path of a file; the empty text means none.
    File,
    /// As [`Kind::File`], where the configuration distinguishes none.
    OptionalFile,
    /// A program: an absolute path, or a bare name to be found in `PATH`.
    Program,
    /// A list of texts.
    Words,
    /// A list of kernel modules, each a name and its parameters.
    Modules,
    /// A list of `/host/path[:ro|:rw]`.
    BindMounts,
    /// A list of PCI addresses `DDDD:BB:DD.F`.
    PciAddresses,
    /// `no-port` or `root-port`.
    ColdPlug,
}

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is accepted instead.
    pub expected: String,
    /// What to do.
    pub fix: String,
}

/// What a written value amounts to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Checked {
    /// To be stored, in the form of the configuration's own serde.
    Store(Value),
    /// As if it had not been written.
    Default,
    /// To be stored, though something else was written.
    Replaced(Value),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("true or false"),
            Self::Integer { min, max, zero_is_default: false } => write!(f, "a whole number from {min} to {max}"),
            Self::Integer { min, max, zero_is_default: true } => {
                write!(f, "a whole number from {min} to {max}, or 0 for the default")
            }
            Self::PowerOfTwo { min, max } => write!(f, "a power of two from {min} to {max}"),
            Self::Fraction { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Choice { words, .. } => write!(f, "one of {}", words.join(", ")),
            Self::Word => f.write_str("one word of letters, digits, \".\", \"_\" and \"-\""),
            Self::KernelParams => f.write_str("one line of kernel parameters"),
            Self::File | Self::OptionalFile => f.write_str("an absolute path, or \"\" for none"),
            Self::Program => f.write_str("an absolute path, or the name of a program in PATH"),
            Self::Words => f.write_str("a list of texts"),
            Self::Modules => f.write_str("a list of kernel modules, each \"NAME PARAMETERS\""),
            Self::BindMounts => f.write_str("a list of \"/host/path\", \"/host/path:ro\" or \"/host/path:rw\""),
            Self::PciAddresses => f.write_str("a list of PCI addresses, each DDDD:BB:DD.F"),
            Self::ColdPlug => f.write_str("no-port or root-port"),
        }
    }
}

impl Kind {
    /// A refusal with the advice that fits.
    fn refuse(&self, fix: impl Into<String>) -> Refusal {
        Refusal { expected: self.to_string(), fix: fix.into() }
    }

    /// Checks a value as it stands in a file.
    pub(super) fn check(&self, written: &toml::Value) -> Result<Checked, Refusal> {
        match self {
            Self::Flag => match written {
                toml::Value::Boolean(flag) => Ok(Checked::Store(json!(flag))),
                _ => Err(self.refuse("write true or false, without quotes")),
            },
            Self::Integer { min, max, zero_is_default } => {
                let number = self.integer(written)?;
                if number == 0 && *zero_is_default {
                    return Ok(Checked::Default);
                }
                self.in_range(number, *min, *max)
            }
            Self::PowerOfTwo { min, max } => {
                let number = self.integer(written)?;
                let is_power = u64::try_from(number).is_ok_and(u64::is_power_of_two);
                if !is_power && (*min..=*max).contains(&number) {
                    return Err(self.refuse(format!("set it to {max}")));
                }
                self.in_range(number, *min, *max)
            }
            Self::Fraction { min, max } => self.fraction(written, *min, *max),
            Self::Words => self.words(written).map(|words| Checked::Store(json!(words))),
            Self::BindMounts => {
                let mounts: Result<Vec<_>, _> = self.words(written)?.iter().map(|text| self.bind_mount(text)).collect();
                Ok(Checked::Store(Value::Array(mounts?)))
            }
            Self::Modules => {
                let lines: Result<Vec<_>, _> = self.words(written)?.iter().map(|text| self.module(text)).collect();
                Ok(Checked::Store(Value::Array(lines?)))
            }
            Self::PciAddresses => {
                let addresses: Result<Vec<_>, _> =
                    self.words(written)?.iter().map(|text| self.pci_address(text)).collect();
                Ok(Checked::Store(Value::Array(addresses?)))
            }
            Self::Choice { .. }
            | Self::Word
            | Self::KernelParams
            | Self::File
            | Self::OptionalFile
            | Self::Program
            | Self::ColdPlug => {
                let text = written.as_str().ok_or_else(|| self.refuse("put the value in quotes"))?;
                self.text(text)
            }
        }
    }

    /// Reads a value that came as text (environment, flag, annotation) as if it stood in a file.
    pub(super) fn read(&self, text: &str) -> Result<toml::Value, Refusal> {
        let text = text.trim();
        match self {
            Self::Flag => match text {
                "true" | "1" | "yes" => Ok(toml::Value::Boolean(true)),
                "false" | "0" | "no" => Ok(toml::Value::Boolean(false)),
                _ => Err(self.refuse("write true or false")),
            },
            Self::Integer { .. } | Self::PowerOfTwo { .. } => {
                text.parse().map(toml::Value::Integer).map_err(|_| self.refuse("write decimal digits only"))
            }
            Self::Fraction { .. } => {
                text.parse().map(toml::Value::Float).map_err(|_| self.refuse("write a number, as in 1.5"))
            }
            Self::Words | Self::Modules | Self::BindMounts | Self::PciAddresses => Ok(toml::Value::Array(
                text.split(';')
                    .map(str::trim)
                    .filter(|word| !word.is_empty())
                    .map(|word| toml::Value::String(word.to_owned()))
                    .collect(),
            )),
            _ => Ok(toml::Value::String(text.to_owned())),
        }
    }

    /// The stored value as it would be written in a file.
    pub(super) fn write(&self, stored: &Value) -> toml::Value {
        let text = |value: &Value| toml::Value::String(value.as_str().unwrap_or_default().to_owned());
        match (self, stored) {
            (Self::ColdPlug, Value::Bool(ports)) => {
                toml::Value::String(if *ports { "root-port" } else { "no-port" }.to_owned())
            }
            (Self::BindMounts, Value::Array(mounts)) => {
                toml::Value::Array(mounts.iter().map(|mount| toml::Value::String(bind_mount_text(mount))).collect())
            }
            (_, Value::Bool(flag)) => toml::Value::Boolean(*flag),
            (Self::Fraction { .. }, Value::Number(number)) => {
                // Stored as f32: its shortest decimal form, not the f64 nearest to it.
                let short = number.as_f64().map(|wide| (wide as f32).to_string());
                toml::Value::Float(short.and_then(|text| text.parse().ok()).unwrap_or_default())
            }
            (_, Value::Number(number)) => toml::Value::Integer(number.as_i64().unwrap_or(i64::MAX)),
            (_, Value::Array(words)) => toml::Value::Array(words.iter().map(text).collect()),
            (_, other) => text(other),
        }
    }

    fn integer(&self, written: &toml::Value) -> Result<i64, Refusal> {
        match written {
            toml::Value::Integer(number) => Ok(*number),
            toml::Value::String(_) => Err(self.refuse("write the number without quotes")),
            _ => Err(self.refuse("write a whole number")),
        }
    }

    fn in_range(&self, number: i64, min: i64, max: i64) -> Result<Checked, Refusal> {
        if (min..=max).contains(&number) {
            return Ok(Checked::Store(json!(number)));
        }
        Err(self.refuse(format!("set it to {}", number.clamp(min, max))))
    }

    fn fraction(&self, written: &toml::Value, min: f64, max: f64) -> Result<Checked, Refusal> {
        let number = match written {
            toml::Value::Integer(number) => *number as f64,
            toml::Value::Float(number) if number.is_finite() => *number,
            toml::Value::String(_) => return Err(self.refuse("write the number without quotes")),
            _ => return Err(self.refuse("write a number, as in 1.5")),
        };
        if number == 0.0 && min > 0.0 {
            Ok(Checked::Default)
        } else if (min..=max).contains(&number) {
            Ok(Checked::Store(json!(number)))
        } else {
            Err(self.refuse(format!("set it to {}", number.clamp(min, max))))
        }
    }

    fn text(&self, text: &str) -> Result<Checked, Refusal> {
        if text.chars().any(char::is_control) {
            return Err(self.refuse("remove line breaks and control characters"));
        }
        let store = |value: &str| Ok(Checked::Store(json!(value)));
        match self {
            Self::Choice { .. } | Self::Program | Self::Word if text.is_empty() => Ok(Checked::Default),
            Self::Choice { words, .. } if words.contains(&text) => store(text),
            Self::Choice { words, replaced } => match replaced.iter().find(|(word, _)| *word == text) {
                Some((_, instead)) => Ok(Checked::Replaced(json!(instead))),
                None => Err(self.refuse(format!("set it to {:?}", words[0]))),
            },
            Self::Word if !is_word(text) => Err(self.refuse("leave out everything else")),
            Self::OptionalFile if text.is_empty() => Ok(Checked::Store(Value::Null)),
            Self::File if text.is_empty() => store(text),
            Self::File | Self::OptionalFile if !text.starts_with('/') => Err(self.refuse("begin the path with /")),
            Self::Program if text.contains('/') && !text.starts_with('/') => {
                Err(self.refuse("begin the path with /, or give the bare name"))
            }
            Self::ColdPlug => match text {
                "" => Ok(Checked::Default),
                "no-port" => Ok(Checked::Store(json!(false))),
                "root-port" => Ok(Checked::Store(json!(true))),
                _ => Err(self.refuse("set it to \"root-port\"")),
            },
            _ => store(text),
        }
    }

    fn words(&self, written: &toml::Value) -> Result<Vec<String>, Refusal> {
        let list = written.as_array().ok_or_else(|| self.refuse("write a list, as in [\"a\", \"b\"]"))?;
        list.iter()
            .map(|word| match word.as_str() {
                Some(word) if !word.chars().any(char::is_control) => Ok(word.to_owned()),
                _ => Err(self.refuse("put each item in quotes, on one line")),
            })
            .collect()
    }

    /// The name is one, and never a path, and no parameter is an option: the guest hands them to modprobe.
    fn module(&self, text: &str) -> Result<Value, Refusal> {
        if text.split_ascii_whitespace().any(|word| word.starts_with(['-', '/', '.'])) {
            return Err(self.refuse(format!("write {text:?} as a name and NAME=VALUE")));
        }
        let name = text.split_ascii_whitespace().next().unwrap_or_default();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(self.refuse(format!("begin {text:?} with a module's name: letters, digits, _ and -")));
        }
        Ok(json!(text))
    }

    fn pci_address(&self, text: &str) -> Result<Value, Refusal> {
        if !is_pci_address(text) {
            return Err(self.refuse(format!("write {text:?} as `lspci -D` shows it")));
        }
        Ok(json!(text.to_ascii_lowercase()))
    }

    fn bind_mount(&self, text: &str) -> Result<Value, Refusal> {
        let (path, access) = match text.rsplit_once(':') {
            Some((path, "ro")) => (path, "read-only"),
            Some((path, "rw")) => (path, "read-write"),
            _ => (text, "read-only"),
        };
        if !path.starts_with('/') {
            return Err(self.refuse(format!("begin {text:?} with /")));
        }
        Ok(json!({"source": path, "access": access}))
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn bind_mount_text(mount: &Value) -> String {
    let mode = if mount["access"] == "read-write" { "rw" } else { "ro" };
    format!("{}:{mode}", mount["source"].as_str().unwrap_or_default())
}
