//! Reading JSON strictly and writing it the way Go's encoder does.
//!
//! A field that says something and is not read is refused by its name: nothing a user asks for is ignored.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fault::Fault;

/// One JSON object while it is read.
pub struct Obj<'a> {
    path: String,
    map: &'a Map<String, Value>,
    used: RefCell<Vec<&'a str>>,
}

impl<'a> Obj<'a> {
    pub fn root(value: &'a Value) -> Result<Self, Fault> {
        Self::at(value, String::new())
    }

    fn at(value: &'a Value, path: String) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { path, map, used: RefCell::default() }),
            other => Err(Fault::bad(format!(
                "{}: expected an object, not {}",
                or_body(&path),
                kind(other)
            ))),
        }
    }

    /// The value of a field; `null` counts as absent. Names match as in Go, without regard to case.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let (name, value) = self
            .map
            .get_key_value(key)
            .or_else(|| self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)))?;
        self.used.borrow_mut().push(name);
        (!value.is_null()).then_some(value)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Fault {
        Fault::bad(format!("{}: expected {expected}, not {}", self.name(key), kind(found)))
    }

    pub fn str(&self, key: &str) -> Result<String, Fault> {
        Ok(self.opt_str(key)?.unwrap_or_default())
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<String>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(key, "text", other)),
        }
    }

    pub fn bool(&self, key: &str) -> Result<bool, Fault> {
        Ok(self.opt_bool(key)?.unwrap_or_default())
    }

    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    pub fn opt_i64(&self, key: &str) -> Result<Option<i64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => {
                value.as_i64().map(Some).ok_or_else(|| self.wrong(key, "a whole number", value))
            }
        }
    }

    pub fn i64(&self, key: &str) -> Result<i64, Fault> {
        Ok(self.opt_i64(key)?.unwrap_or_default())
    }

    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a whole number from 0 on", value)),
        }
    }

    pub fn u64(&self, key: &str) -> Result<u64, Fault> {
        Ok(self.opt_u64(key)?.unwrap_or_default())
    }

    pub fn u32(&self, key: &str) -> Result<u32, Fault> {
        let value = self.u64(key)?;
        u32::try_from(value)
            .map_err(|_| Fault::bad(format!("{}: {value} is too large", self.name(key))))
    }

    pub fn f32(&self, key: &str) -> Result<f32, Fault> {
        match self.get(key) {
            None => Ok(0.0),
            Some(value) => value
                .as_f64()
                .map(|value| value as f32)
                .ok_or_else(|| self.wrong(key, "a number", value)),
        }
    }

    pub fn strings(&self, key: &str) -> Result<Vec<String>, Fault> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| {
                    item.as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| self.wrong(key, "a list of texts", item))
                })
                .collect(),
            Some(other) => Err(self.wrong(key, "a list of texts", other)),
        }
    }

    pub fn map(&self, key: &str) -> Result<BTreeMap<String, String>, Fault> {
        match self.get(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(name, value)| match value {
                    Value::String(text) => Ok((name.clone(), text.clone())),
                    Value::Null => Ok((name.clone(), String::new())),
                    other => Err(self.wrong(key, "texts by name", other)),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, "texts by name", other)),
        }
    }

    pub fn obj(&self, key: &str) -> Result<Option<Obj<'a>>, Fault> {
        self.get(key).map(|value| Obj::at(value, self.name(key))).transpose()
    }

    pub fn list(&self, key: &str) -> Result<Vec<Obj<'a>>, Fault> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(at, item)| Obj::at(item, format!("{}[{at}]", self.name(key))))
                .collect(),
            Some(other) => Err(self.wrong(key, "a list of objects", other)),
        }
    }

    /// Nanoseconds, as Go writes a `time.Duration`.
    pub fn duration(&self, key: &str) -> Result<Option<prost_types::Duration>, Fault> {
        Ok(self.opt_i64(key)?.map(duration))
    }

    /// Base64, as Go writes bytes.
    pub fn bytes(&self, key: &str) -> Result<Vec<u8>, Fault> {
        use base64::Engine;
        let text = self.str(key)?;
        base64::engine::general_purpose::STANDARD
            .decode(text.as_bytes())
            .map_err(|_| Fault::bad(format!("{}: not base64", self.name(key))))
    }

    /// One of a closed list of words, in any case; absent gives the first.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.str(key)?;
        words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text))
            .or_else(|| words.first().filter(|_| text.is_empty()))
            .map(|(_, value)| *value)
            .ok_or_else(|| Fault::bad(format!("invalid {}: {text:?}", self.name(key))))
    }

    /// The same, refused in Docker's words.
    pub fn word_or<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
        refusal: impl FnOnce(&str) -> String,
    ) -> Result<T, Fault> {
        let text = self.str(key)?;
        self.word(key, words).map_err(|_| Fault::bad(refusal(&text)))
    }

    /// Refuses whatever was not read, unless it says nothing.
    pub fn done(self) -> Result<(), Fault> {
        let used = self.used.into_inner();
        match self
            .map
            .iter()
            .find(|(name, value)| !used.contains(&name.as_str()) && !says_nothing(value))
        {
            None => Ok(()),
            Some((name, _)) => {
                let name = if self.path.is_empty() {
                    name.clone()
                } else {
                    format!("{}.{name}", self.path)
                };
                Err(Fault::unsupported(name))
            }
        }
    }
}

/// Go's zero values: a client that writes them asks for nothing.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(says_nothing),
        Value::Bool(true) => false,
    }
}

fn or_body(path: &str) -> &str {
    if path.is_empty() { "request body" } else { path }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub fn duration(nanos: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as i32 }
}

pub fn nanos(duration: &prost_types::Duration) -> i64 {
    duration.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(duration.nanos))
}

/// RFC 3339 with nanoseconds and without trailing zeros, as Go writes a time; absent is Go's zero time.
pub fn time(stamp: Option<&prost_types::Timestamp>) -> String {
    let Some(stamp) = stamp else { return "0001-01-01T00:00:00Z".into() };
    instant(i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos))
}

/// Nanoseconds since 1970 as Go writes a time.
pub fn instant(nanos: i128) -> String {
    let Ok(when) = ::time::OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
        return "0001-01-01T00:00:00Z".into();
    };
    let (year, month, day) = when.to_calendar_date();
    let (hour, minute, second, nano) = when.to_hms_nano();
    let mut text =
        format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}", u8::from(month));
    if nano != 0 {
        text.push_str(format!(".{nano:09}").trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// A JSON object while it is written: what is empty is left out where Go has `omitempty`.
#[derive(Default)]
pub struct Out(Map<String, Value>);

impl Out {
    pub fn new() -> Self {
        Self::default()
    }

    /// Always there.
    pub fn put(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// Left out when Go would call it empty (objects are always written: Go's structs are never empty).
    pub fn some(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let empty = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::Array(items) => items.is_empty(),
            Value::Object(_) | Value::Bool(true) => false,
        };
        if empty { self } else { self.put(key, value) }
    }

    /// A pointer in Go: left out when absent, written even when its value is zero.
    pub fn opt(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    /// Texts by name, left out when there are none.
    pub fn texts(self, key: &str, map: &BTreeMap<String, String>) -> Self {
        if map.is_empty() { self } else { self.put(key, texts(map)) }
    }
}

impl From<Out> for Value {
    fn from(out: Out) -> Self {
        Value::Object(out.0)
    }
}

pub fn texts(map: &BTreeMap<String, String>) -> Value {
    Value::Object(
        map.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect(),
    )
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_read_is_refused_by_name_unless_it_says_nothing() {
        let body = json!({"Name": "a", "New": {"Deep": [], "Off": false}, "Odd": 1});
        let obj = Obj::root(&body).unwrap();
        assert_eq!(obj.str("name").unwrap(), "a");
        let fault = obj.done().unwrap_err();
        assert!(fault.message.contains("Odd"), "{}", fault.message);
        let body = json!({"Name": null, "New": {"Deep": [], "Off": false}});
        Obj::root(&body).unwrap().done().unwrap();
    }

    #[test]
    fn times_are_written_as_go_does() {
        let stamp = |seconds, nanos| prost_types::Timestamp { seconds, nanos };
        assert_eq!(time(None), "0001-01-01T00:00:00Z");
        assert_eq!(time(Some(&stamp(0, 0))), "1970-01-01T00:00:00Z");
        assert_eq!(time(Some(&stamp(1_600_000_000, 120_000_000))), "2020-09-13T12:26:40.12Z");
    }
}
