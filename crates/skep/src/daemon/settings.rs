//! All that the daemon was told: the command line and daemon.json, parsed once and merged.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use super::options::{Definition, Effect, Kind, OPTIONS};

const CONFIG_FILE: &str = "/etc/skep/daemon.json";

#[derive(Debug)]
pub struct Settings {
    pub engine: engine::Config,
    pub hosts: Vec<String>,
    pub pidfile: PathBuf,
    pub group: Option<String>,
    pub log_level: String,
    pub log_format: String,
    pub metrics_addr: Option<String>,
    pub tls: bool,
    pub tls_verify: bool,
    pub tls_ca: PathBuf,
    pub tls_certificate: PathBuf,
    pub tls_key: PathBuf,
    pub oom_score: Option<i64>,
    /// Only check the settings, then end.
    pub validate: bool,
}

impl Settings {
    fn defaults() -> Settings {
        Settings {
            engine: engine::Config::below("/var/lib/skep", "/run/skep"),
            hosts: Vec::new(),
            pidfile: PathBuf::from("/run/skep.pid"),
            group: None,
            log_level: "info".into(),
            log_format: "text".into(),
            metrics_addr: None,
            tls: false,
            tls_verify: false,
            tls_ca: PathBuf::from("/etc/skep/ca.pem"),
            tls_certificate: PathBuf::from("/etc/skep/cert.pem"),
            tls_key: PathBuf::from("/etc/skep/key.pem"),
            oom_score: None,
            validate: false,
        }
    }

    /// Parses the command line and the file that it names.
    ///
    /// # Errors
    /// Unknown options, bad values, and options that are given in both places, all by name. `clap`
    /// ends the process itself for `--help` and unknown flags.
    pub fn parse(arguments: Vec<OsString>) -> Result<Settings> {
        let matches = command().get_matches_from(arguments);
        let named = matches.get_one::<String>("config-file");
        let path = Path::new(named.map_or(CONFIG_FILE, String::as_str));
        let file = if path.exists() || named.is_some() { read_file(path)? } else { Map::new() };
        let mut settings = merge(given(&matches), file).with_context(|| {
            format!("unable to configure the daemon with file {}", path.display())
        })?;
        settings.validate = matches.get_flag("validate");
        Ok(settings)
    }
}

/// The daemon's options as the command line has them.
pub fn command() -> Command {
    let mut command = Command::new("daemon")
        .about("A swarm-mode container engine with dockerd's options.")
        .disable_version_flag(true)
        .arg(Arg::new("config-file").long("config-file").help("Daemon configuration file"))
        .arg(
            Arg::new("validate")
                .long("validate")
                .action(ArgAction::SetTrue)
                .help("Validate the configuration and exit"),
        );
    for definition in OPTIONS {
        let mut arg = Arg::new(definition.flag).long(definition.flag).help(definition.help);
        if let Some(letter) = definition.short {
            arg = arg.short(letter);
        }
        command = command.arg(match definition.kind {
            Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            Kind::List | Kind::Map => arg.action(ArgAction::Append),
            Kind::Number => arg.allow_negative_numbers(true),
            Kind::Text => arg,
        });
    }
    command
}

/// What the command line gives, under the flags' names.
fn given(matches: &ArgMatches) -> Map<String, Value> {
    let mut given = Map::new();
    for definition in OPTIONS {
        let Some(words) = matches.get_many::<String>(definition.flag) else { continue };
        let words: Vec<&str> = words.map(String::as_str).collect();
        let value = match definition.kind {
            Kind::List | Kind::Map => words.into(),
            Kind::Text => words.last().map(|word| (*word).into()).unwrap_or_default(),
            Kind::Switch | Kind::Number => {
                words.last().map(|word| scalar(word)).unwrap_or_default()
            }
        };
        given.insert(definition.flag.to_owned(), value);
    }
    given
}

/// `true`, `1`, `-5` as JSON has them; other words stay texts and are refused where they are used.
fn scalar(word: &str) -> Value {
    serde_json::from_str(word).unwrap_or_else(|_| word.into())
}

fn read_file(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

fn merge(flags: Map<String, Value>, file: Map<String, Value>) -> Result<Settings> {
    let mut settings = Settings::defaults();
    let mut unknown: Vec<String> = Vec::new();
    let mut twice: Vec<String> = Vec::new();
    for key in file.keys() {
        match OPTIONS.iter().find(|definition| definition.key == key) {
            None if !["features", "builder", "proxies"].contains(&key.as_str()) => {
                unknown.push(key.clone())
            }
            // Lists of sockets, labels and the like may not come from both places either.
            Some(definition) if flags.contains_key(definition.flag) => twice.push(key.clone()),
            _ => {}
        }
    }
    if !unknown.is_empty() {
        bail!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        );
    }
    if !twice.is_empty() {
        bail!(
            "the following directives are specified both as a flag and in the configuration file: {}",
            twice.join(", ")
        );
    }
    for definition in OPTIONS {
        if let Some(value) = flags.get(definition.flag).or_else(|| file.get(definition.key)) {
            apply(&mut settings, definition, value)?;
        }
    }
    Ok(settings)
}

fn apply(settings: &mut Settings, definition: &Definition, value: &Value) -> Result<()> {
    match definition.effect {
        Effect::Apply(apply) => apply(settings, value)
            .map_err(|reason| anyhow::anyhow!("--{}: {reason}", definition.flag)),
        // `false`, an empty text and an empty list ask for nothing.
        Effect::Refused(_)
            if [Value::Bool(false), "".into(), Value::Array(vec![])].contains(value) =>
        {
            Ok(())
        }
        Effect::Refused(reason) => {
            settings
                .engine
                .warnings
                .push(format!("WARNING: --{} is not honoured: {reason}", definition.flag));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(line: &str, file: &str) -> Result<Settings> {
        let words = std::iter::once("dockerd").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words)?;
        merge(given(&matches), serde_json::from_str(file)?)
    }

    #[test]
    fn the_command_line_and_the_file_say_the_same() {
        let line = settle("-H unix:///a -H tcp://b:1 --debug --icc=false --mtu 1400 --log-opt max-size=1m --label a=b", "{}").expect("valid");
        let file = settle("", r#"{"hosts":["unix:///a","tcp://b:1"],"debug":true,"icc":false,"mtu":1400,"log-opts":{"max-size":"1m"},"labels":["a=b"]}"#).expect("valid");
        assert_eq!(format!("{line:?}"), format!("{file:?}"));
        assert_eq!((line.engine.mtu, line.engine.icc, line.hosts.len()), (Some(1400), false, 2));
    }

    #[test]
    fn an_option_in_both_places_is_refused_by_name() {
        let error = settle("--debug", r#"{"debug":true}"#).expect_err("both").to_string();
        assert!(error.contains("both as a flag and in the configuration file: debug"), "{error}");
    }

    #[test]
    fn unknown_directives_are_refused_by_name() {
        let error = settle("", r#"{"fast":true}"#).expect_err("unknown").to_string();
        assert!(error.contains("don't match any configuration option: fast"), "{error}");
        assert!(settle("--fast", "{}").is_err());
    }

    #[test]
    fn what_cannot_be_honoured_is_named_in_a_warning() {
        let settings =
            settle("--experimental --selinux-enabled=false --userns-remap default", "{}")
                .expect("valid");
        let warnings = settings.engine.warnings.join("\n");
        assert!(
            warnings.contains("--experimental") && warnings.contains("--userns-remap"),
            "{warnings}"
        );
        assert!(!warnings.contains("selinux"), "{warnings}");
    }

    #[test]
    fn bad_values_name_their_option() {
        for (line, name) in [
            ("--mtu much", "--mtu"),
            ("--default-gateway here", "--default-gateway"),
            ("--storage-driver zfs", "--storage-driver"),
            ("--default-shm-size big", "--default-shm-size"),
            ("--default-ulimit nofile=a:b", "--default-ulimit"),
            ("--default-address-pool 10.0.0.0/8", "--default-address-pool"),
        ] {
            let error = settle(line, "{}").expect_err(line).to_string();
            assert!(error.starts_with(name), "{line}: {error}");
        }
    }

    #[test]
    fn sizes_pools_and_limits_are_read() {
        let line = "--default-shm-size 32m --default-address-pool base=10.9.0.0/16,size=24 --default-ulimit nofile=10:20";
        let engine = settle(line, "{}").expect("valid").engine;
        assert_eq!(engine.default_shm_size, 32 << 20);
        assert_eq!(engine.default_address_pools[0].size, 24);
        assert_eq!(engine.default_ulimits["nofile"], (10, 20));
    }
}
