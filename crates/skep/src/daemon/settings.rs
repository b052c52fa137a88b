//! All that the daemon was told: the command line and daemon.json, parsed once and merged.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use super::options::{Definition, Effect, Kind, RELOADED, options};

#[derive(Clone, Debug)]
pub struct Settings {
    pub engine: engine::Config,
    pub hosts: Vec<String>,
    pub pidfile: PathBuf,
    /// Of the unix socket; `None` is `docker` where there is such a group.
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
    /// What was given, by the names of daemon.json: to see at a reload what has changed.
    given: Map<String, Value>,
}

/// Where things are unless it is said otherwise.
struct Places {
    config_file: &'static str,
    socket: &'static str,
    pidfile: &'static str,
    certificates: PathBuf,
}

/// Started under the name `dockerd`, the daemon reads dockerd's file and answers on its socket.
/// Its data never is where the Docker Engine's may be.
fn places(program: &str) -> Places {
    if Path::new(program).file_name().is_some_and(|name| name == "dockerd") {
        let home = std::env::var_os("HOME").map_or(PathBuf::from("/root"), PathBuf::from);
        return Places {
            config_file: "/etc/docker/daemon.json",
            socket: "unix:///var/run/docker.sock",
            pidfile: "/var/run/docker.pid",
            certificates: home.join(".docker"),
        };
    }
    Places {
        config_file: "/etc/skep/daemon.json",
        socket: "unix:///run/skep.sock",
        pidfile: "/run/skep.pid",
        certificates: PathBuf::from("/etc/skep"),
    }
}

impl Settings {
    fn defaults(places: &Places) -> Settings {
        Settings {
            engine: engine::Config::below("/var/lib/skep", "/run/skep"),
            hosts: Vec::new(),
            pidfile: PathBuf::from(places.pidfile),
            group: None,
            log_level: "info".into(),
            log_format: "text".into(),
            metrics_addr: None,
            tls: false,
            tls_verify: false,
            tls_ca: places.certificates.join("ca.pem"),
            tls_certificate: places.certificates.join("cert.pem"),
            tls_key: places.certificates.join("key.pem"),
            oom_score: None,
            validate: false,
            given: Map::new(),
        }
    }

    /// Parses the command line and the file that it names.
    ///
    /// # Errors
    /// Bad values, unknown directives and options that are given in both places, all by name.
    /// `clap` ends the process itself for `--help`, `--version` and unknown flags.
    pub fn parse(arguments: Vec<OsString>) -> Result<Settings> {
        let places = places(&program(&arguments));
        settle(&command().get_matches_from(arguments), &places)
    }

    /// The same again, for a daemon that runs: daemon.json may have changed.
    ///
    /// # Errors
    /// As [`Settings::parse`]; the process goes on.
    pub fn parse_again(arguments: Vec<OsString>) -> Result<Settings> {
        let places = places(&program(&arguments));
        settle(&command().try_get_matches_from(arguments)?, &places)
    }

    /// Names an option that is not honoured; `docker info` and the log show it.
    pub fn warn(&mut self, option: &str, reason: &str) {
        self.engine.warnings.push(format!("WARNING: --{option} is not honoured: {reason}"));
    }

    /// After a reload: what was given for the keys that took effect.
    pub fn take_over(&mut self, new: &Settings) {
        self.engine = self.engine.reloaded(&new.engine);
        for key in RELOADED {
            match new.given.get(key) {
                Some(value) => drop(self.given.insert(key.to_owned(), value.clone())),
                None => drop(self.given.remove(key)),
            }
        }
    }

    /// The keys whose values differ from those of `before`, first those that take effect at once.
    pub fn changed(&self, before: &Settings) -> (Vec<String>, Vec<String>) {
        let keys = options().map(|definition| definition.key);
        let changed = keys.filter(|key| self.given.get(*key) != before.given.get(*key));
        let mut changed: Vec<String> = changed.map(str::to_owned).collect();
        changed.dedup();
        changed.into_iter().partition(|key| RELOADED.contains(&key.as_str()))
    }
}

fn program(arguments: &[OsString]) -> String {
    arguments.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default()
}

fn settle(matches: &ArgMatches, places: &Places) -> Result<Settings> {
    let named = matches.get_one::<String>("config-file");
    let path = Path::new(named.map_or(places.config_file, String::as_str));
    let read = match path.exists() || named.is_some() {
        true => read_file(path),
        false => Ok(Map::new()),
    };
    let mut settings = read
        .and_then(|file| merge(given(matches), file, places))
        .with_context(|| format!("unable to configure the daemon with file {}", path.display()))?;
    if settings.hosts.is_empty() {
        settings.hosts.push(places.socket.to_owned());
    }
    settings.validate = matches.get_flag("validate");
    Ok(settings)
}

/// The daemon's options as the command line has them.
pub fn command() -> Command {
    let mut command = Command::new("daemon")
        .about("A swarm-mode container engine with dockerd's options.")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        // As with dockerd, the last of several counts.
        .args_override_self(true)
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print version information and quit"),
        )
        .arg(Arg::new("config-file").long("config-file").help("Daemon configuration file"))
        .arg(
            Arg::new("validate")
                .long("validate")
                .action(ArgAction::SetTrue)
                .help("Validate the configuration and exit"),
        );
    for definition in options() {
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
    for definition in options() {
        let Some(words) = matches.get_many::<String>(definition.flag) else { continue };
        let words: Vec<&str> = words.map(String::as_str).collect();
        let last = words.last().copied().unwrap_or_default();
        let value = match definition.kind {
            Kind::List | Kind::Map => words.into(),
            Kind::Text => last.into(),
            Kind::Switch => switch(last),
            Kind::Number => serde_json::from_str(last).unwrap_or_else(|_| last.into()),
        };
        given.insert(definition.flag.to_owned(), value);
    }
    given
}

/// Go's booleans; other words stay texts and are refused where they are used.
fn switch(word: &str) -> Value {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Value::Bool(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Value::Bool(false),
        other => other.into(),
    }
}

fn read_file(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path)?;
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    Ok(serde_json::from_str(&text)?)
}

/// Names that newer and older versions of dockerd use for the same thing.
fn rename(mut file: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Object(proxies)) = file.remove("proxies") {
        file.extend(proxies);
    }
    if let Some(addresses) = file.remove("host-gateway-ips") {
        file.insert("host-gateway-ip".to_owned(), addresses);
    }
    file
}

fn merge(flags: Map<String, Value>, file: Map<String, Value>, places: &Places) -> Result<Settings> {
    let file = rename(file);
    check_directives(&flags, &file)?;
    let mut settings = Settings::defaults(places);
    for definition in options() {
        let both = [flags.get(definition.flag), file.get(definition.key)];
        for value in both.into_iter().flatten() {
            apply(&mut settings, definition, value)?;
            settings.given.insert(definition.key.to_owned(), value.clone());
        }
    }
    Ok(settings)
}

fn check_directives(flags: &Map<String, Value>, file: &Map<String, Value>) -> Result<()> {
    let known = |key: &str| options().find(|definition| definition.key == key);
    let unknown: Vec<&str> =
        file.keys().map(String::as_str).filter(|key| known(key).is_none()).collect();
    if !unknown.is_empty() {
        bail!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        );
    }
    let twice = file.iter().filter_map(|(key, in_file)| {
        let definition = known(key).filter(|definition| !BOTH_PLACES.contains(&definition.key))?;
        let flag = flags.get(definition.flag)?;
        Some(format!("{key}: (from flag: {}, from file: {})", shown(flag), shown(in_file)))
    });
    let twice: Vec<String> = twice.collect();
    if !twice.is_empty() {
        bail!(
            "the following directives are specified both as a flag and in the configuration file: {}",
            twice.join(", ")
        );
    }
    Ok(())
}

/// As dockerd prints values: `[a b]` for lists.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// dockerd adds these up when the command line and the file both have some.
const BOTH_PLACES: [&str; 1] = ["runtimes"];

fn apply(settings: &mut Settings, definition: &Definition, value: &Value) -> Result<()> {
    match definition.effect {
        Effect::Apply(apply) => apply(settings, value)
            .map_err(|reason| anyhow::anyhow!("--{}: {reason}", definition.flag)),
        Effect::Refused(_) if asks_nothing(value) => Ok(()),
        Effect::Refused(reason) => {
            settings.warn(definition.flag, reason);
            Ok(())
        }
    }
}

/// `false`, an empty text and an empty list ask for nothing.
fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.iter().all(asks_nothing),
        Value::Object(values) => values.values().all(asks_nothing),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(line: &str, file: &str) -> Result<Settings> {
        let words = std::iter::once("dockerd").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words)?;
        merge(given(&matches), serde_json::from_str(file)?, &places("skep"))
    }

    #[test]
    fn the_command_line_and_the_file_say_the_same() {
        let line = settle("-H unix:///a -H tcp://b:1 --debug --icc=false --mtu 1400 --log-opt max-size=1m --label a=b", "{}").expect("valid");
        let file = settle("", r#"{"hosts":["unix:///a","tcp://b:1"],"debug":true,"icc":false,"mtu":1400,"log-opts":{"max-size":"1m"},"labels":["a=b"]}"#).expect("valid");
        let without = |settings: &Settings| Settings { given: Map::new(), ..settings.clone() };
        assert_eq!(format!("{:?}", without(&line)), format!("{:?}", without(&file)));
        assert_eq!((line.engine.mtu, line.engine.icc, line.hosts.len()), (Some(1400), false, 2));
    }

    #[test]
    fn an_option_in_both_places_is_refused_by_name() {
        let file = r#"{"debug":true,"labels":["a=b"]}"#;
        let error = settle("--debug=0 --label x=y", file).expect_err("both").to_string();
        assert_eq!(
            error,
            "the following directives are specified both as a flag and in the configuration file: debug: (from flag: false, from file: true), labels: (from flag: [x=y], from file: [a=b])"
        );
        let both = settle("--add-runtime a=/a", r#"{"runtimes":{"b":{"path":"/b"}}}"#);
        assert_eq!(both.expect("dockerd adds them up").engine.runtimes.len(), 2);
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
            ("--default-ipc-mode open", "--default-ipc-mode"),
            ("--default-cgroupns-mode mine", "--default-cgroupns-mode"),
            ("--log-level loud", "--log-level"),
            ("--log-driver paper", "--log-driver"),
            ("--icc=perhaps", "--icc"),
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

    /// `dockerd --help` of the versions 20.10 and 28, the flags' names.
    const DOCKERDS: &str = "add-runtime allow-direct-routing allow-nondistributable-artifacts
        api-cors-header authorization-plugin bip bip6 bridge bridge-accept-fwmark cdi-spec-dir
        cgroup-parent containerd containerd-namespace containerd-plugins-namespace cpu-rt-period
        cpu-rt-runtime cri-containerd data-root debug default-address-pool default-cgroupns-mode
        default-gateway default-gateway-v6 default-ipc-mode default-network-opt default-runtime
        default-shm-size default-ulimit dns dns-opt dns-search exec-opt exec-root experimental
        feature fixed-cidr fixed-cidr-v6 group host host-gateway-ip http-proxy https-proxy icc init
        init-path insecure-registry ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6
        label live-restore log-driver log-format log-level log-opt max-concurrent-downloads
        max-concurrent-uploads max-download-attempts metrics-addr mtu network-control-plane-mtu
        no-new-privileges no-proxy node-generic-resource oom-score-adjust pidfile raw-logs
        registry-mirror rootless seccomp-profile selinux-enabled shutdown-timeout storage-driver
        storage-opt swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify
        userland-proxy userland-proxy-path userns-remap";

    #[test]
    fn every_flag_of_dockerd_is_known() {
        let known: Vec<&str> = options().map(|definition| definition.flag).collect();
        let missing: Vec<&str> =
            DOCKERDS.split_whitespace().filter(|flag| !known.contains(flag)).collect();
        assert_eq!(missing, [] as [&str; 0]);
    }

    #[test]
    fn under_dockerds_name_dockerds_file_and_socket_are_used_but_not_its_data() {
        let places = places("/usr/bin/dockerd");
        let settings = Settings::defaults(&places);
        assert_eq!(places.config_file, "/etc/docker/daemon.json");
        assert_eq!(places.socket, "unix:///var/run/docker.sock");
        assert_eq!(settings.pidfile, PathBuf::from("/var/run/docker.pid"));
        assert_eq!(settings.engine.data_root, PathBuf::from("/var/lib/skep"));
    }

    #[test]
    fn a_reload_tells_what_takes_effect_and_what_waits() {
        let before = settle("--mtu 1400", r#"{"debug":true,"icc":true}"#).expect("valid");
        let after =
            settle("--mtu 1400", r#"{"labels":["a=b"],"icc":false,"dns":[]}"#).expect("valid");
        let (now, later) = after.changed(&before);
        assert_eq!(
            (now, later),
            (vec!["debug".into(), "labels".into()], vec!["icc".into(), "dns".into()])
        );
    }

    #[test]
    fn newer_names_in_the_file_are_understood() {
        let file = r#"{"proxies":{"http-proxy":"http://p:1"},"host-gateway-ips":["10.0.0.1"],
            "features":{"buildkit":true},"log-driver":"journald","live-restore":false}"#;
        let engine = settle("", file).expect("valid").engine;
        assert_eq!(engine.http_proxy.as_deref(), Some("http://p:1"));
        assert_eq!((engine.host_gateway_ips.len(), engine.log_driver.as_str()), (1, "json-file"));
        for name in ["--feature", "--log-driver", "--live-restore"] {
            assert!(engine.warnings.iter().any(|warning| warning.contains(name)), "{name}");
        }
    }
}
