//! The documents of reading verbs as JSON Schemas, in the project's `schema/`.

use std::fs;
use std::path::Path;

use schemars::JsonSchema;

/// Compares the schema of a document with the file of that name.
///
/// # Panics
/// They differ. With `UPDATE_SCHEMA` in the environment the file is written instead.
pub(crate) fn check<T: JsonSchema>(name: &str) {
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(T)).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schema").join(name);
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == schema, "schema/{name} is stale: run this test with UPDATE_SCHEMA=1");
}
