//! Ledgers and saved states as somebody else might have written them.

use resource_actors::ledger::Seal;
use sandbox_model::ledger::Record;
use serde_json::{Value, json};

/// One text that differs from what we wrote.
#[derive(Debug, Clone)]
pub struct Tampered {
    /// What was done to it, for the message of a failed test.
    pub what: String,
    /// The text.
    pub text: String,
}

/// The sums of a ledger's lines, as whoever writes to the file can make them too. Lines that are no
/// records are left as they are: no reader takes them.
pub fn seal(lines: &[String]) -> String {
    let mut seal = Seal::default();
    let mut text = String::new();
    for line in lines {
        match serde_json::from_str::<Record>(line).ok().and_then(|record| seal.line(&record).ok()) {
            Some((sealed, next)) => {
                text.push_str(&sealed);
                seal = next;
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// A ledger's lines without their sums.
///
/// # Panics
/// When the text is no ledger.
pub fn unsealed(text: &str) -> Vec<String> {
    let unseal = |line: &str| {
        let mut value: Value = serde_json::from_str(line).expect("a line of a ledger");
        value.as_object_mut().expect("a record").remove("sum");
        value.to_string()
    };
    text.lines().map(unseal).collect()
}

/// What a field's value is replaced by: another type, another range, a path out, another's id.
fn replacements(value: &Value, strangers: &[&str]) -> Vec<Value> {
    let texts = ["", "/", "..", "/etc/passwd", "/run/ra/../../etc", "a\u{0}b", "\n", "x;y"];
    let numbers = [json!(0), json!(-1), json!(1), json!(u64::MAX), json!(1.5), json!(i64::MIN)];
    let types = [Value::Null, json!(true), json!([]), json!({}), json!("text")];
    let mut all: Vec<Value> = types.into_iter().chain(numbers).collect();
    all.extend(texts.iter().chain(strangers).map(|text| json!(text)));
    all.retain(|other| other != value);
    all
}

/// The pointers of all fields below a value, in the words of RFC 6901.
fn fields(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                found.push(at.clone());
                fields(value, &at, found);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                let at = format!("{at}/{index}");
                found.push(at.clone());
                fields(value, &at, found);
            }
        }
        _ => {}
    }
}

/// A document with each field in turn changed in every way, left out, or joined by one more.
///
/// # Panics
/// When `document` is no JSON.
pub fn documents(document: &str, strangers: &[&str]) -> Vec<Tampered> {
    let original: Value = serde_json::from_str(document).expect("a document");
    let mut pointers = Vec::new();
    fields(&original, "", &mut pointers);
    let mut all = Vec::new();
    for pointer in pointers {
        let Some(found) = original.pointer(&pointer) else { continue };
        for other in replacements(found, strangers) {
            let mut changed = original.clone();
            let what = format!("{pointer} = {other}");
            if let Some(place) = changed.pointer_mut(&pointer) {
                *place = other;
            }
            all.push(Tampered { what, text: changed.to_string() });
        }
        let Some((holder, key)) = pointer.rsplit_once('/') else { continue };
        let mut without = original.clone();
        if let Some(Value::Object(object)) = without.pointer_mut(holder) {
            object.remove(key);
            all.push(Tampered { what: format!("without {pointer}"), text: without.to_string() });
        }
        let mut with_more = original.clone();
        if let Some(Value::Object(object)) = with_more.pointer_mut(holder) {
            object.insert("stranger".to_owned(), json!(1));
            all.push(Tampered { what: format!("one more beside {pointer}"), text: with_more.to_string() });
        }
    }
    all
}

/// A ledger with each field of each record changed by somebody who knows how to sum; and with lines
/// that are missing, stand twice, or have changed places.
pub fn ledgers(text: &str, strangers: &[&str]) -> Vec<Tampered> {
    let lines = unsealed(text);
    let mut all = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        for Tampered { what, text } in documents(line, strangers) {
            let mut changed = lines.clone();
            changed[index] = text;
            all.push(Tampered { what: format!("line {}: {what}", index + 1), text: seal(&changed) });
        }
        let mut without = lines.clone();
        without.remove(index);
        all.push(Tampered { what: format!("without line {}", index + 1), text: seal(&without) });
        let mut twice = lines.clone();
        twice.insert(index, line.clone());
        all.push(Tampered { what: format!("line {} twice", index + 1), text: seal(&twice) });
        if index > 0 {
            let mut swapped = lines.clone();
            swapped.swap(index - 1, index);
            all.push(Tampered { what: format!("line {} before line {index}", index + 1), text: seal(&swapped) });
        }
        all.push(Tampered { what: format!("ends before line {}", index + 1), text: seal(&lines[..index]) });
    }
    all
}

/// A ledger as an accident leaves it: one bit flipped, or a piece cut out, and the sums as they were.
pub fn accidents(text: &str, every: usize) -> Vec<Tampered> {
    let mut all = Vec::new();
    for bit in (0..text.len() * 8).step_by(every.max(1)) {
        let mut bytes = text.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(text) = String::from_utf8(bytes) {
            all.push(Tampered { what: format!("bit {bit} flipped"), text });
        }
    }
    for (index, _) in text.match_indices('\n') {
        let next = text[index + 1..].find('\n').map_or(text.len(), |end| index + 1 + end + 1);
        let cut = format!("{}{}", &text[..index + 1], &text[next..]);
        all.push(Tampered { what: format!("a line cut out at byte {index}"), text: cut });
    }
    all
}
