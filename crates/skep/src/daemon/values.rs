//! Values of options: the same meaning whether a word or JSON gave them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine::config::AddressPool;
use serde_json::Value;

use super::settings::Settings;

pub fn string(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is not a text"))
}

/// A list, or one text.
pub fn strings(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(many) => many.iter().map(string).collect(),
        other => Err(format!("{other} is not a list of texts")),
    }
}

pub fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{value} is neither true nor false"))
}

/// One of a few words.
pub fn one_of(value: &Value, words: &[&str]) -> Result<String, String> {
    let word = string(value)?;
    match words.contains(&word.as_str()) {
        true => Ok(word),
        false => Err(format!("{word} is not one of {}", words.join(", "))),
    }
}

pub fn integer(value: &Value) -> Result<i64, String> {
    value.as_i64().ok_or_else(|| format!("{value} is not a number"))
}

pub fn count(place: &mut usize, value: &Value) -> Result<(), String> {
    let number = usize::try_from(integer(value)?).ok().filter(|n| *n > 0);
    *place = number.ok_or_else(|| format!("{value} must be at least 1"))?;
    Ok(())
}

pub fn parsed<T: std::str::FromStr>(value: &Value) -> Result<T, String> {
    string(value)?.parse().map_err(|_| format!("{value} is not an address"))
}

/// An object of texts, or a list of `key=value`.
pub fn map(value: &Value) -> Result<BTreeMap<String, String>, String> {
    if let Value::Object(entries) = value {
        return entries.iter().map(|(key, v)| Ok((key.clone(), string(v)?))).collect();
    }
    let pairs = strings(value)?;
    let pair = |word: &String| {
        let (key, value) =
            word.split_once('=').ok_or_else(|| format!("{word} is not key=value"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    pairs.iter().map(pair).collect()
}

/// `67108864`, `64m`, `64MiB`, `1g` …
pub fn bytes(value: &Value) -> Result<i64, String> {
    if let Some(number) = value.as_i64() {
        return Ok(number);
    }
    let text = string(value)?.to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text} is not a size")),
    };
    let number: i64 = text[..digits].parse().map_err(|_| format!("{text} is not a size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

pub fn storage_driver(settings: &mut Settings, value: &Value) -> Result<(), String> {
    let driver = string(value)?;
    if !["", "overlay2", "overlay"].contains(&driver.as_str()) {
        return Err(format!("{driver}: skep stores images on overlay2 alone"));
    }
    Ok(()).map(|()| settings.engine.storage_driver = "overlay2".into())
}

/// Docker's drivers that skep does not have are named in a warning, and logs go to json files;
/// anything else is a mistake.
pub fn log_driver(settings: &mut Settings, value: &Value) -> Result<(), String> {
    const OTHERS: [&str; 9] = [
        "awslogs",
        "etwlogs",
        "fluentd",
        "gcplogs",
        "gelf",
        "journald",
        "logentries",
        "splunk",
        "syslog",
    ];
    let driver = string(value)?;
    if OTHERS.contains(&driver.as_str()) {
        settings.warn("log-driver", &format!("logs go to json-file, not to {driver}"));
        settings.engine.log_driver = "json-file".into();
        return Ok(());
    }
    settings.engine.log_driver = one_of(value, &["json-file", "local", "none"])?;
    Ok(())
}

pub fn exec_options(settings: &mut Settings, value: &Value) -> Result<(), String> {
    for word in strings(value)? {
        if word != "native.cgroupdriver=cgroupfs" {
            settings.engine.warnings.push(format!(
                "WARNING: --exec-opt {word} is not supported by skep: cgroups are managed directly"
            ));
        }
    }
    Ok(())
}

/// `name=soft:hard`, or dockerd's objects `{"Name", "Soft", "Hard"}`.
pub fn ulimits(settings: &mut Settings, value: &Value) -> Result<(), String> {
    if let Value::Object(entries) = value {
        for (name, entry) in entries {
            let side = |key| entry.get(key).map_or(Ok(0), integer);
            settings.engine.default_ulimits.insert(name.clone(), (side("Soft")?, side("Hard")?));
        }
        return Ok(());
    }
    for (name, limits) in map(value)? {
        let (soft, hard) = limits.split_once(':').unwrap_or((&limits, &limits));
        let side =
            |text: &str| text.parse().map_err(|_| format!("{name}={limits} is not soft:hard"));
        settings.engine.default_ulimits.insert(name.clone(), (side(soft)?, side(hard)?));
    }
    Ok(())
}

/// `name=path`, or dockerd's objects `{"path": ...}`.
pub fn runtimes(settings: &mut Settings, value: &Value) -> Result<(), String> {
    if let Value::Object(entries) = value {
        for (name, entry) in entries {
            let path = entry.get("path").map(string).transpose()?.unwrap_or_else(|| name.clone());
            settings.engine.runtimes.insert(name.clone(), PathBuf::from(path));
        }
        return Ok(());
    }
    for (name, path) in map(value)? {
        settings.engine.runtimes.insert(name, PathBuf::from(path));
    }
    Ok(())
}

/// `base=10.0.0.0/8,size=24`, or dockerd's objects.
pub fn pools(settings: &mut Settings, value: &Value) -> Result<(), String> {
    for entry in value.as_array().ok_or("not a list")? {
        let pool = match entry {
            Value::String(text) => {
                let words = map(&Value::Array(text.split(',').map(Value::from).collect()))?;
                let size = words.get("size").and_then(|size| size.parse().ok());
                words.get("base").cloned().zip(size)
            }
            object => {
                let size = object
                    .get("size")
                    .and_then(Value::as_u64)
                    .and_then(|size| u8::try_from(size).ok());
                object.get("base").and_then(Value::as_str).map(str::to_owned).zip(size)
            }
        };
        let (base, size) = pool.ok_or_else(|| format!("{entry} is not base=CIDR,size=N"))?;
        settings.engine.default_address_pools.push(AddressPool { base, size });
    }
    Ok(())
}
