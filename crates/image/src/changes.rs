//! Dockerfile instructions that change an image's configuration: `docker import -c`, `docker commit -c`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Error, Health, Result, RunConfig};

pub(crate) fn apply(config: &mut RunConfig, changes: &[String]) -> Result<()> {
    for line in changes.iter().flat_map(|change| change.lines()).map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        instruction(config, word, rest.trim())?;
    }
    Ok(())
}

fn instruction(config: &mut RunConfig, word: &str, rest: &str) -> Result<()> {
    let upper = word.to_ascii_uppercase();
    if rest.is_empty() && upper != "CMD" && upper != "ENTRYPOINT" {
        return Err(Error::Invalid(format!("{upper} requires at least one argument")));
    }
    match upper.as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
        "ENV" => {
            for (key, value) in pairs(rest, &config.env)? {
                set_env(&mut config.env, &key, &value);
            }
        }
        "LABEL" => {
            let pairs = pairs(rest, &config.env)?;
            config.labels.get_or_insert_default().extend(pairs);
        }
        "EXPOSE" => {
            for port in words(rest, &config.env)? {
                let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                check_port(&port)?;
                config.exposed_ports.get_or_insert_default().insert(port, empty());
            }
        }
        "VOLUME" => {
            let volumes = match list(rest) {
                Some(volumes) => volumes,
                None => words(rest, &config.env)?,
            };
            config
                .volumes
                .get_or_insert_default()
                .extend(volumes.into_iter().map(|volume| (volume, empty())));
        }
        "USER" => config.user = expand(rest, &config.env)?,
        "STOPSIGNAL" => config.stop_signal = Some(expand(rest, &config.env)?),
        "WORKDIR" => {
            let path = expand(rest, &config.env)?;
            let joined = std::path::Path::new("/").join(&config.working_dir).join(path);
            let clean =
                crate::unpack::clean(joined.as_os_str().as_encoded_bytes()).unwrap_or_default();
            config.working_dir = format!("/{}", String::from_utf8_lossy(&clean));
        }
        "ONBUILD" => config.on_build.get_or_insert_default().push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(health(rest)?),
        "SHELL" => {
            config.shell = Some(list(rest).ok_or_else(|| {
                Error::Invalid("SHELL requires the arguments to be in JSON form".into())
            })?)
        }
        _ => return Err(Error::Invalid(format!("{word} is not a valid change command"))),
    }
    Ok(())
}

fn empty() -> Value {
    Value::Object(serde_json::Map::new())
}

pub(crate) fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    let text = format!("{key}={value}");
    match env.iter_mut().find(|entry| entry.split('=').next() == Some(key)) {
        Some(entry) => *entry = text,
        None => env.push(text),
    }
}

/// The JSON form, or the shell's.
fn command(rest: &str) -> Vec<String> {
    match list(rest) {
        Some(command) => command,
        None => vec!["/bin/sh".into(), "-c".into(), rest.to_owned()],
    }
}

fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

fn check_port(port: &str) -> Result<()> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let valid = |number: &str| number.parse::<u16>().is_ok();
    let range = match number.split_once('-') {
        Some((first, last)) => valid(first) && valid(last),
        None => valid(number),
    };
    match range && matches!(protocol, "tcp" | "udp" | "sctp") {
        true => Ok(()),
        false => Err(Error::Invalid(format!("Invalid containerPort: {port}"))),
    }
}

/// `key=value key="a b"`, or the old form `key all the rest`.
fn pairs(rest: &str, env: &[String]) -> Result<BTreeMap<String, String>> {
    let first = rest.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace).ok_or_else(|| {
            Error::Invalid(format!(
                "Syntax error - can't find = in {rest:?}. Must be of the form: name=value"
            ))
        })?;
        return Ok(BTreeMap::from([(key.to_owned(), expand(value.trim(), env)?)]));
    }
    words(rest, env)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Error::Invalid(format!(
                "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
            ))),
        })
        .collect()
}

fn expand(text: &str, env: &[String]) -> Result<String> {
    Ok(split(text, env, false)?.concat())
}

fn words(text: &str, env: &[String]) -> Result<Vec<String>> {
    split(text, env, true)
}

/// A shell's words: quotes, backslashes, `$name` and `${name}`.
fn split(text: &str, env: &[String], at_spaces: bool) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (Some('\''), letter) => word.get_or_insert_default().push(letter),
            (_, '\\') => match letters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => word.get_or_insert_default().push('\\'),
            },
            (_, '$') => {
                let name = variable(&mut letters)?;
                let value =
                    env.iter().find_map(|entry| entry.strip_prefix(&name)?.strip_prefix('='));
                word.get_or_insert_default().push_str(match name.is_empty() {
                    true => "$",
                    false => value.unwrap_or(""),
                });
            }
            (None, letter) if letter.is_whitespace() && at_spaces => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(quote) = quote {
        return Err(Error::Invalid(format!(
            "unexpected end of statement while looking for matching {quote}"
        )));
    }
    words.extend(word);
    Ok(words)
}

fn variable(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String> {
    let braced = letters.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(letter) =
        letters.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
    {
        name.push(letter);
    }
    if braced && (letters.next() != Some('}') || name.is_empty()) {
        return Err(Error::Invalid("unsupported modifier in substitution".into()));
    }
    Ok(name)
}

fn health(rest: &str) -> Result<Health> {
    let mut health = Health::default();
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        let wrong =
            || Error::Invalid(format!("HEALTHCHECK: invalid value {value:?} for flag --{name}"));
        match name {
            "interval" => health.interval = Some(duration(value).ok_or_else(wrong)?),
            "timeout" => health.timeout = Some(duration(value).ok_or_else(wrong)?),
            "start-period" => health.start_period = Some(duration(value).ok_or_else(wrong)?),
            "start-interval" => health.start_interval = Some(duration(value).ok_or_else(wrong)?),
            "retries" => health.retries = Some(value.parse().map_err(|_| wrong())?),
            _ => return Err(Error::Invalid(format!("Unknown flag: {name}"))),
        }
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    health.test = Some(match kind.to_ascii_uppercase().as_str() {
        "NONE" => vec!["NONE".into()],
        "CMD" => match list(command.trim()) {
            Some(command) => [vec!["CMD".to_owned()], command].concat(),
            None => vec!["CMD-SHELL".into(), command.trim().to_owned()],
        },
        _ => return Err(Error::Invalid(format!("Unknown type {kind:?} in HEALTHCHECK (try CMD)"))),
    });
    Ok(health)
}

/// Go's durations: `1m30s`, `500ms`; in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let mut total = 0f64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|letter: char| letter.is_ascii_digit() || letter == '.')
            .map_or(rest.len(), |at| end + at);
        total += number
            * match &rest[end..unit_end] {
                "ns" => 1.0,
                "us" | "\u{b5}s" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[&str], expected: &str) {
        let mut config = RunConfig { env: vec!["PATH=/bin".into()], ..RunConfig::default() };
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let shown = match apply(&mut config, &changes) {
            Ok(()) => serde_json::to_string(&config).unwrap(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn instructions_change_what_runs() {
        check(&[r#"CMD ["httpd","-f"]"#], r#"{"Env":["PATH=/bin"],"Cmd":["httpd","-f"]}"#);
        check(&["cmd echo hi"], r#"{"Env":["PATH=/bin"],"Cmd":["/bin/sh","-c","echo hi"]}"#);
        check(
            &["ENV PATH=$PATH:/x A=\"b c\"", "USER web", "WORKDIR /srv", "WORKDIR www"],
            r#"{"User":"web","Env":["PATH=/bin:/x","A=b c"],"WorkingDir":"/srv/www"}"#,
        );
        check(
            &["EXPOSE 80 53/udp\nVOLUME /data"],
            r#"{"ExposedPorts":{"53/udp":{},"80/tcp":{}},"Env":["PATH=/bin"],"Volumes":{"/data":{}}}"#,
        );
        check(
            &["HEALTHCHECK --interval=1m30s --retries=2 CMD true"],
            r#"{"Env":["PATH=/bin"],"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":90000000000,"Retries":2}}"#,
        );
    }

    #[test]
    fn what_may_not_change_is_refused() {
        check(&["RUN rm -rf /"], "RUN is not a valid change command");
        check(&["EXPOSE 99999"], "Invalid containerPort: 99999/tcp");
        check(
            &["LABEL x"],
            "Syntax error - can't find = in \"x\". Must be of the form: name=value",
        );
    }
}
