//! `config show`, `config explain`, `config check`.

use sandbox_model::config::SandboxConfig;
use sandbox_model::config::keys::{self, KEYS};
use sandbox_model::config::layers::{Loaded, render};
use serde_json::{Map, Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::output::{Code, Failure, data, json as print_json};
use crate::settings;

/// Serves all three.
pub(crate) fn config(global: &Global, command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Show(flags) => {
            let loaded = settings::effective(global)?;
            settings::warn(&loaded);
            if flags.json { print_json(&to_json(&loaded)) } else { data(&render(&loaded)) }
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

fn to_json(loaded: &Loaded) -> Value {
    let entry = |key: &'static keys::Key| {
        let value = serde_json::to_value(key.value(&loaded.config)).unwrap_or_default();
        (key.path(), json!({"value": value, "origin": loaded.origin(key)}))
    };
    let notes = &loaded.notes;
    json!({
        "v": 1,
        "keys": KEYS.iter().map(entry).collect::<Map<_, _>>(),
        "unknown": notes.unknown, "ignored": notes.ignored, "replaced": notes.replaced,
    })
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
