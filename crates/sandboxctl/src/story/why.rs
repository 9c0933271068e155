//! A failed reply in words.

use resource_actors::SandboxError;
use sandbox_model::PortError;
use serde_json::Value;

/// Why a reply tells of a failure, if it does. A reply is a `Result` within another: whether the
/// actor served the message, and what came of it.
pub(crate) fn problem(reply: &Value) -> Option<String> {
    error(reply).map(in_words)
}

/// The error in a reply, if there is one.
pub(crate) fn error(reply: &Value) -> Option<&Value> {
    reply.get("Err").or_else(|| reply.get("Ok")?.get("Err"))
}

/// The library's own words where the error is its own; otherwise what the port said; otherwise the
/// kind.
pub(crate) fn in_words(error: &Value) -> String {
    if let Ok(known) = serde_json::from_value::<SandboxError>(error.clone()) {
        return known.to_string();
    }
    if let Some(port) = find_port_error(error) {
        return port.to_string();
    }
    match error {
        Value::String(kind) => kind.clone(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(kind, details)| format!("{kind} {}", details_of(details)));
            fields.collect::<Vec<_>>().join(", ").trim_end().to_owned()
        }
        other => other.to_string(),
    }
}

/// The text of an error's fields.
fn details_of(details: &Value) -> String {
    match details {
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| match value {
                Value::String(text) => format!("{name} {text}"),
                other => format!("{name} {other}"),
            });
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The error of a port somewhere in another error.
fn find_port_error(value: &Value) -> Option<PortError> {
    let fields = value.as_object()?;
    if fields.contains_key("operation")
        && let Ok(found) = serde_json::from_value(value.clone())
    {
        return Some(found);
    }
    fields.values().find_map(find_port_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_model::ErrorKind;
    use serde_json::json;

    #[test]
    fn an_error_is_told_in_words() {
        assert_eq!(problem(&json!({"Ok": {"Ok": null}})), None);
        assert_eq!(problem(&json!({"Ok": {"items": []}})), None);
        assert_eq!(problem(&json!({"Ok": {"Err": "interrupted"}})).as_deref(), Some("interrupted"));
        let port = PortError::new(ErrorKind::Busy, "umount", "/a", "in use");
        let nested = json!({"Ok": {"Err": {"host": {"error": port}}}});
        assert_eq!(problem(&nested).as_deref(), Some("umount /a: in use"));
        let refused = json!({"Err": {"busy": {"actor": "device", "bound": 64}}});
        assert_eq!(problem(&refused).as_deref(), Some("busy actor device, bound 64"));
        let unknown = json!({"Ok": {"Err": {"unknown": {"sandbox": "x"}}}});
        assert_eq!(problem(&unknown).as_deref(), Some("there is no sandbox x"));
    }
}
