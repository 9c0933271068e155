//! Layers of texts become one configuration.
//!
//! Nothing is read here: callers pass texts with the name of their origin, lowest layer first (file,
//! drop-ins in the order of their names, environment, flags). Of two layers that write a key the later
//! one wins, and the origin of each value is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::SandboxConfig;
use super::keys::{self, FIXED, KEYS, Key, MOVED, Refusal, UNSUPPORTED};
use super::value::Checked;

/// Tables of Kata's that configure what we do not have.
const OTHER_TABLES: [&str; 5] = ["factory", "image", "netmon", "proxy", "shim"];

/// One layer: written keys and where they stand.
#[derive(Debug, Clone)]
pub struct Layer {
    origin: String,
    table: toml::Table,
}

/// A configuration and how it came about.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The effective configuration.
    pub config: SandboxConfig,
    /// Which layer wrote a key, by [`Key::path`]; a key that is not named has its default.
    pub origins: BTreeMap<String, String>,
    /// What was written and not used as written.
    pub notes: Notes,
}

/// What was written and not used as written. [`fmt::Display`] makes one warning of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Keys that nobody knows: probably misspelt.
    pub unknown: BTreeSet<String>,
    /// Keys and tables of Kata's that we do not honour.
    pub ignored: BTreeSet<String>,
    /// Values for which we use another.
    pub replaced: BTreeSet<String>,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is no TOML.
    #[error("{origin}: line {line}: {message}")]
    Syntax {
        /// File or flag.
        origin: String,
        /// From 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A value that cannot be.
    #[error("{origin}: {key} = {value}: expected {expected}; {fix}")]
    Value {
        /// File, variable or flag.
        origin: String,
        /// The key, with its table.
        key: String,
        /// What was written.
        value: String,
        /// What is accepted.
        expected: String,
        /// What to do.
        fix: String,
    },
    /// A key that a flag or variable names does not exist.
    #[error("{origin}: there is no key {key:?}; `sandboxctl config show` lists all keys")]
    NoSuchKey {
        /// Flag or variable.
        origin: String,
        /// The key.
        key: String,
    },
    /// Values that do not go together.
    #[error("{first} and {second} do not go together: {reason}; {fix}")]
    Conflict {
        /// A key with its value.
        first: String,
        /// Another.
        second: String,
        /// Why not.
        reason: &'static str,
        /// What to do.
        fix: &'static str,
    },
}

impl Layer {
    /// Parses the text of a file.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`].
    pub fn file(origin: impl Into<String>, text: &str) -> Result<Self, ConfigError> {
        let origin = origin.into();
        match text.parse() {
            Ok(table) => Ok(Self { origin, table }),
            Err(error) => {
                let before = error.span().map_or(0, |span| span.start.min(text.len()));
                let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
                Err(ConfigError::Syntax { origin, line, message: error.message().to_owned() })
            }
        }
    }

    /// One key set by a flag or an environment variable, as `hypervisor.default_memory` and `512`.
    ///
    /// # Errors
    /// The key does not exist, or the text cannot be its value.
    pub fn setting(origin: impl Into<String>, path: &str, text: &str) -> Result<Self, ConfigError> {
        let origin = origin.into();
        let Some(key) = keys::find(path) else {
            return Err(ConfigError::NoSuchKey { origin, key: path.to_owned() });
        };
        let value =
            key.kind.read(text).map_err(|refusal| refused(&origin, &key.path(), format!("{text:?}"), refusal))?;
        let mut table = toml::Table::from_iter([(key.name.to_owned(), value)]);
        for part in key.table().rsplit('.') {
            table = toml::Table::from_iter([(part.to_owned(), toml::Value::Table(table))]);
        }
        Ok(Self { origin, table })
    }
}

fn refused(origin: &str, key: &str, value: String, refusal: Refusal) -> ConfigError {
    let Refusal { expected, fix } = refusal;
    ConfigError::Value { origin: origin.to_owned(), key: key.to_owned(), value, expected, fix }
}

/// Lays the layers over the defaults, the first lowest.
///
/// # Errors
/// The first value that is refused, or values that do not go together.
pub fn load(layers: &[Layer]) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::default();
    for layer in layers {
        loaded.apply(layer)?;
    }
    loaded.check_together()?;
    Ok(loaded)
}

impl Loaded {
    /// The origin of a key's value.
    pub fn origin(&self, key: &Key) -> &str {
        self.origins.get(&key.path()).map_or("default", String::as_str)
    }

    fn apply(&mut self, layer: &Layer) -> Result<(), ConfigError> {
        for (name, value) in &layer.table {
            match (name.as_str(), value) {
                ("hypervisor", toml::Value::Table(tables)) => self.variants(layer, "hypervisor", "qemu", tables)?,
                ("agent", toml::Value::Table(tables)) => self.variants(layer, "agent", "kata", tables)?,
                ("runtime", toml::Value::Table(table)) => self.section(layer, "runtime", table)?,
                (name, toml::Value::Table(_)) if OTHER_TABLES.contains(&name) => {
                    self.notes.ignored.insert(format!("[{name}]"));
                }
                (name, toml::Value::Table(_)) => {
                    self.notes.unknown.insert(format!("[{name}]"));
                }
                (name, _) => {
                    self.notes.unknown.insert(name.to_owned());
                }
            }
        }
        Ok(())
    }

    /// `[hypervisor.qemu]` is ours; `[hypervisor.clh]` is named in the warning.
    fn variants(
        &mut self,
        layer: &Layer,
        section: &'static str,
        ours: &str,
        tables: &toml::Table,
    ) -> Result<(), ConfigError> {
        for (name, value) in tables {
            match value {
                toml::Value::Table(table) if name == ours => self.section(layer, section, table)?,
                toml::Value::Table(_) => {
                    self.notes.ignored.insert(format!("[{section}.{name}]"));
                }
                _ => {
                    self.notes.unknown.insert(format!("{section}.{name}"));
                }
            }
        }
        Ok(())
    }

    fn section(&mut self, layer: &Layer, section: &'static str, table: &toml::Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = format!("{section}.{name}");
            match (path.as_str(), value) {
                ("runtime.deadlines", toml::Value::Table(table)) => self.section(layer, "runtime.deadlines", table)?,
                _ => self.key(layer, section, name, value)?,
            }
        }
        Ok(())
    }

    fn key(&mut self, layer: &Layer, section: &str, name: &str, value: &toml::Value) -> Result<(), ConfigError> {
        let moved = MOVED.iter().find(|(table, old, _)| *table == section && *old == name);
        let path = moved.map_or_else(|| format!("{section}.{name}"), |(_, _, new)| (*new).to_owned());
        if let Some(key) = keys::find(&path) {
            return self.store(layer, key, value);
        }
        if let Some((_, _, words)) = FIXED.iter().find(|(table, fixed, _)| *table == section && *fixed == name) {
            return match value.as_str() {
                Some(text) if text.is_empty() || words.contains(&text) => Ok(()),
                _ => Err(refused(
                    &layer.origin,
                    &path,
                    value.to_string(),
                    Refusal { expected: words.join(" or "), fix: format!("set it to {:?}", words[0]) },
                )),
            };
        }
        match UNSUPPORTED.iter().find(|key| key.section == section && key.name == name) {
            Some(_) if is_off(value) => {}
            Some(key) if key.protects => {
                let refusal = Refusal {
                    expected: "it to be off, since it is not supported and the sandbox would be weaker than written"
                        .into(),
                    fix: "remove the key".into(),
                };
                // Such a key may carry a policy or a secret: neither is for a log.
                let value = if value.is_bool() { value.to_string() } else { "(something)".to_owned() };
                return Err(refused(&layer.origin, &path, value, refusal));
            }
            Some(_) => {
                self.notes.ignored.insert(path);
            }
            None => {
                self.notes.unknown.insert(path);
            }
        }
        Ok(())
    }

    fn store(&mut self, layer: &Layer, key: &'static Key, value: &toml::Value) -> Result<(), ConfigError> {
        let refuse =
            |refusal| refused(&layer.origin, &format!("{}.{}", key.table(), key.name), value.to_string(), refusal);
        let stored = match key.kind.check(value).map_err(refuse)? {
            Checked::Default => return Ok(()),
            Checked::Store(stored) => stored,
            Checked::Replaced(stored) => {
                self.notes.replaced.insert(format!("{} = {value} is read as {stored}", key.path()));
                stored
            }
        };
        if key.path() == "hypervisor.enable_annotations" {
            self.note_patterns(value);
        }
        key.store(&mut self.config, stored).map_err(refuse)?;
        self.origins.insert(key.path(), layer.origin.clone());
        Ok(())
    }

    /// Kata takes these as regular expressions; an expression would never match here.
    fn note_patterns(&mut self, list: &toml::Value) {
        let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
        for entry in list.as_array().into_iter().flatten().filter_map(toml::Value::as_str) {
            if !is_name(entry) || entry == "." {
                self.notes.replaced.insert(format!(
                    "hypervisor.enable_annotations entry {entry:?} matches nothing: annotations are listed by exact name"
                ));
            }
        }
    }

    fn check_together(&self) -> Result<(), ConfigError> {
        let vm = &self.config.hypervisor;
        let conflict = |first: &str, second: &str, reason, fix| {
            let show = |path: &str| {
                let value = keys::find(path).map(|key| key.value(&self.config).to_string());
                format!("{path} = {}", value.unwrap_or_default())
            };
            Err(ConfigError::Conflict { first: show(first), second: show(second), reason, fix })
        };
        if vm.image.is_some() && vm.initrd.is_some() {
            let fix = "set one of them to \"\"";
            return conflict("hypervisor.image", "hypervisor.initrd", "a guest has one root", fix);
        }
        if vm.default_maxvcpus != 0 && f64::from(vm.default_vcpus).ceil() > f64::from(vm.default_maxvcpus) {
            let fix = "raise the maximum, or set it to 0 for as many as the host has";
            return conflict("hypervisor.default_vcpus", "hypervisor.default_maxvcpus", "more than the maximum", fix);
        }
        if vm.default_maxmemory != 0 && vm.default_memory > vm.default_maxmemory {
            let fix = "raise the maximum, or set it to 0 for as much as the host has";
            return conflict("hypervisor.default_memory", "hypervisor.default_maxmemory", "more than the maximum", fix);
        }
        Ok(())
    }
}

/// Whether an unsupported key asks for what we do anyway.
fn is_off(value: &toml::Value) -> bool {
    match value {
        toml::Value::Boolean(flag) => !flag,
        toml::Value::Integer(number) => *number == 0,
        toml::Value::Float(number) => *number == 0.0,
        toml::Value::String(text) => text.is_empty(),
        toml::Value::Array(list) => list.is_empty(),
        toml::Value::Table(table) => table.is_empty(),
        toml::Value::Datetime(_) => false,
    }
}

impl Notes {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.ignored.is_empty() && self.replaced.is_empty()
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if !self.unknown.is_empty() {
            parts.push(format!("unknown, perhaps misspelt: {}", list(&self.unknown)));
        }
        if !self.ignored.is_empty() {
            parts.push(format!("known from Kata but ignored here: {}", list(&self.ignored)));
        }
        parts.extend(self.replaced.iter().cloned());
        f.write_str(&parts.join("; "))
    }
}

/// The file that [`load`] would read back into the same configuration, with the origin of each value.
pub fn render(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut table = "";
    for key in KEYS {
        if key.table() != table {
            table = key.table();
            let gap = if text.is_empty() { "" } else { "\n" };
            text += &format!("{gap}[{table}]\n");
        }
        let line = format!("{} = {}", key.name, key.value(&loaded.config));
        text += &format!("{line:<52} # {}\n", loaded.origin(key));
    }
    text
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
