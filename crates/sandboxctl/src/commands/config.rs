//! `config show`, `config explain`, `config check`.

use std::collections::{BTreeMap, BTreeSet};

use sandbox_model::config::SandboxConfig;
use sandbox_model::config::keys::{self, KEYS};
use sandbox_model::config::layers::{Loaded, render};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::output::{Code, Failure, data, json as print_json};
use crate::settings;

/// Serves all three.
pub(crate) fn config(global: &Global, command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Show(flags) => {
            let loaded = settings::effective(global)?;
            settings::warn(&loaded);
            if flags.json { print_json(&json!(document(&loaded))) } else { data(&render(&loaded)) }
        }
        ConfigCommand::Explain { key } => data(&explain(key)?),
        ConfigCommand::Check { file } => {
            let loaded = match file {
                Some(file) => settings::of_file(file)?,
                None => settings::effective(global)?,
            };
            settings::warn(&loaded);
            data("the configuration is good\n");
        }
    }
    Ok(())
}

/// What `config show --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct Shown {
    /// The version of this document: 1.
    v: u32,
    /// By section and name, as `hypervisor.default_memory`.
    keys: BTreeMap<String, Effective>,
    /// Keys that nobody knows.
    unknown: BTreeSet<String>,
    /// Keys of Kata that are not supported.
    ignored: BTreeSet<String>,
    /// Values that were replaced by supported ones, and by which.
    replaced: BTreeSet<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Effective {
    value: Value,
    /// A file, a variable, `--set` or `default`.
    origin: String,
}

fn document(loaded: &Loaded) -> Shown {
    let entry = |key: &'static keys::Key| {
        let value = serde_json::to_value(key.value(&loaded.config)).unwrap_or_default();
        (key.path(), Effective { value, origin: loaded.origin(key).to_owned() })
    };
    let notes = loaded.notes.clone();
    let (unknown, ignored, replaced) = (notes.unknown, notes.ignored, notes.replaced);
    Shown { v: 1, keys: KEYS.iter().map(entry).collect(), unknown, ignored, replaced }
}

fn explain(path: &str) -> Result<String, Failure> {
    let Some(key) = keys::find(path) else { return unknown(path) };
    let annotation = match key.annotation {
        Some(last) => format!("io.katacontainers.config.{}.{last}, if enable_annotations lists {last:?}", key.section),
        None => "none".to_owned(),
    };
    Ok(format!(
        "{}\n\n{}\n\n  table       [{}]\n  accepts     {}\n  default     {}\n  variable    {}\n  flag        --set {}=…\n  annotation  {annotation}\n",
        key.path(),
        key.doc,
        key.table(),
        key.kind,
        key.value(&SandboxConfig::default()),
        key.variable(),
        key.path(),
    ))
}

fn unknown(path: &str) -> Result<String, Failure> {
    let is_it = |key: &&keys::UnsupportedKey| path == format!("{}.{}", key.section, key.name) || path == key.name;
    if let Some(key) = keys::UNSUPPORTED.iter().find(is_it) {
        let what = if key.protects { "is refused unless it is off" } else { "is ignored" };
        return Ok(format!("{}.{}\n\nKnown from Kata and not supported: it {what}.\n", key.section, key.name));
    }
    let same_name: Vec<String> = KEYS.iter().filter(|key| path.ends_with(key.name)).map(keys::Key::path).collect();
    let advice = match same_name.first() {
        Some(near) => format!("sandboxctl config explain {near}"),
        None => "sandboxctl config show   # lists all keys".to_owned(),
    };
    Err(Failure::early(Code::CONFIG, "cannot explain the key", format!("there is no key {path:?}"), advice))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<super::Shown>("config-show.v1.json");
    }
}
