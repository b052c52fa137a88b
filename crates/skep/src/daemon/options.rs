//! dockerd's options: one table for the command line, daemon.json and what becomes of each.

use std::path::PathBuf;

use serde_json::Value;

use super::settings::Settings;
use super::values::{
    boolean, bytes, count, exec_options, integer, log_driver, map, one_of, parsed, pools, runtimes,
    storage_driver, string, strings, ulimits,
};

/// What a value looks like on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    /// `--flag`, `--flag=true` or `--flag=false`.
    Switch,
    /// May be given several times.
    List,
    /// `key=value`, may be given several times.
    Map,
}

type Apply = fn(&mut Settings, &Value) -> Result<(), String>;

/// One option of dockerd.
pub struct Definition {
    /// Without the dashes; several words are the same option's other names in daemon.json.
    pub flag: &'static str,
    /// In daemon.json.
    pub key: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    pub help: &'static str,
    pub effect: Effect,
}

pub enum Effect {
    Apply(Apply),
    /// Accepted, and named in a warning when it asks for anything: the reason.
    Refused(&'static str),
}

macro_rules! text {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = string(v)?; Ok(()) }) };
}
macro_rules! some_text {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = Some(string(v)?); Ok(()) }) };
}
macro_rules! list {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = strings(v)?; Ok(()) }) };
}
macro_rules! switch {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = boolean(v)?; Ok(()) }) };
}
macro_rules! address {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = Some(parsed(v)?); Ok(()) }) };
}
macro_rules! path {
    ($($field:tt)+) => { Effect::Apply(|s, v| { s.$($field)+ = PathBuf::from(string(v)?); Ok(()) }) };
}

pub const fn option(
    flag: &'static str,
    key: &'static str,
    kind: Kind,
    help: &'static str,
    effect: Effect,
) -> Definition {
    Definition { flag, key, short: None, kind, help, effect }
}

const fn short(letter: char, definition: Definition) -> Definition {
    Definition { short: Some(letter), ..definition }
}

use Kind::{List, Map, Number, Switch, Text};

const NO_REMAP: Effect = Effect::Refused("user namespace remapping is not supported by skep yet");

/// What a changed daemon.json changes at once (on SIGHUP): dockerd's list, by the names of the
/// file. Everything else waits for the next start.
pub const RELOADED: [&str; 12] = [
    "debug",
    "log-level",
    "labels",
    "insecure-registries",
    "registry-mirrors",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "default-runtime",
    "runtimes",
    "default-shm-size",
    "live-restore",
];

/// Every option of dockerd, those that act before those that are only named.
pub fn options() -> impl Iterator<Item = &'static Definition> {
    OPTIONS.iter().chain(super::absent::OPTIONS)
}

/// In the order of `dockerd --help`'s groups.
const OPTIONS: &[Definition] = &[
    short(
        'H',
        option(
            "host",
            "hosts",
            List,
            "Daemon socket(s) to connect to: unix://, tcp:// or fd://",
            list!(hosts),
        ),
    ),
    option(
        "data-root",
        "data-root",
        Text,
        "Root directory of persistent state",
        path!(engine.data_root),
    ),
    short(
        'g',
        option("graph", "graph", Text, "Former name of --data-root", path!(engine.data_root)),
    ),
    option(
        "exec-root",
        "exec-root",
        Text,
        "Root directory for execution state files",
        path!(engine.exec_root),
    ),
    short(
        'p',
        option("pidfile", "pidfile", Text, "Path to use for daemon PID file", path!(pidfile)),
    ),
    short('G', option("group", "group", Text, "Group for the unix socket", some_text!(group))),
    short('D', option("debug", "debug", Switch, "Enable debug mode", switch!(engine.debug))),
    short(
        'l',
        option(
            "log-level",
            "log-level",
            Text,
            "Set the logging level (debug, info, warn, error, fatal)",
            Effect::Apply(|s, v| {
                s.log_level = one_of(v, &["debug", "info", "warn", "error", "fatal"])?;
                Ok(())
            }),
        ),
    ),
    option(
        "log-format",
        "log-format",
        Text,
        "Set the logging format (text, json)",
        Effect::Apply(|s, v| {
            s.log_format = one_of(v, &["text", "json"])?;
            Ok(())
        }),
    ),
    option(
        "raw-logs",
        "raw-logs",
        Switch,
        "Logs without colours; they never have any",
        Effect::Apply(|_, _| Ok(())),
    ),
    option("label", "labels", List, "Set key=value labels to the daemon", list!(engine.labels)),
    option(
        "metrics-addr",
        "metrics-addr",
        Text,
        "Address and port to serve the metrics API on",
        some_text!(metrics_addr),
    ),
    option(
        "live-restore",
        "live-restore",
        Switch,
        "Containers outlive the daemon; they always do",
        Effect::Apply(|s, v| {
            if !boolean(v)? {
                s.warn("live-restore=false", "containers run on when the daemon ends, always");
            }
            Ok(())
        }),
    ),
    option(
        "shutdown-timeout",
        "shutdown-timeout",
        Number,
        "Seconds that containers get to stop when the daemon ends",
        Effect::Refused("containers run on when the daemon ends, and are not stopped"),
    ),
    option(
        "swarm-default-advertise-addr",
        "swarm-default-advertise-addr",
        Text,
        "Default address or interface for swarm advertised address",
        some_text!(engine.swarm_default_advertise_addr),
    ),
    option(
        "node-generic-resource",
        "node-generic-resources",
        List,
        "Advertise user-defined resource",
        list!(engine.node_generic_resources),
    ),
    option("tls", "tls", Switch, "Use TLS; implied by --tlsverify", switch!(tls)),
    option("tlsverify", "tlsverify", Switch, "Use TLS and verify the remote", switch!(tls_verify)),
    option("tlscacert", "tlscacert", Text, "Trust certs signed only by this CA", path!(tls_ca)),
    option("tlscert", "tlscert", Text, "Path to TLS certificate file", path!(tls_certificate)),
    option("tlskey", "tlskey", Text, "Path to TLS key file", path!(tls_key)),
    short(
        's',
        option(
            "storage-driver",
            "storage-driver",
            Text,
            "Storage driver to use",
            Effect::Apply(storage_driver),
        ),
    ),
    option(
        "storage-opt",
        "storage-opts",
        List,
        "Storage driver options",
        Effect::Refused("skep's overlay storage has no options"),
    ),
    option(
        "insecure-registry",
        "insecure-registries",
        List,
        "Enable insecure registry communication",
        list!(engine.insecure_registries),
    ),
    option(
        "registry-mirror",
        "registry-mirrors",
        List,
        "Preferred registry mirror",
        list!(engine.registry_mirrors),
    ),
    option(
        "max-concurrent-downloads",
        "max-concurrent-downloads",
        Number,
        "Layers downloaded at once for each pull",
        Effect::Apply(|s, v| count(&mut s.engine.max_concurrent_downloads, v)),
    ),
    option(
        "max-concurrent-uploads",
        "max-concurrent-uploads",
        Number,
        "Layers uploaded at once for each push",
        Effect::Apply(|s, v| count(&mut s.engine.max_concurrent_uploads, v)),
    ),
    option(
        "max-download-attempts",
        "max-download-attempts",
        Number,
        "Attempts for each layer",
        Effect::Apply(|s, v| count(&mut s.engine.max_download_attempts, v)),
    ),
    option(
        "allow-nondistributable-artifacts",
        "allow-nondistributable-artifacts",
        List,
        "Push nondistributable artifacts",
        Effect::Refused("foreign layers are not supported by skep"),
    ),
    option(
        "log-driver",
        "log-driver",
        Text,
        "Default driver for container logs",
        Effect::Apply(log_driver),
    ),
    option(
        "log-opt",
        "log-opts",
        Map,
        "Default log driver options for containers",
        Effect::Apply(|s, v| {
            s.engine.log_opts = map(v)?;
            Ok(())
        }),
    ),
    option(
        "default-ulimit",
        "default-ulimits",
        Map,
        "Default ulimits for containers",
        Effect::Apply(ulimits),
    ),
    option(
        "default-shm-size",
        "default-shm-size",
        Text,
        "Default shm size for containers",
        Effect::Apply(|s, v| {
            s.engine.default_shm_size = bytes(v)?;
            Ok(())
        }),
    ),
    option(
        "default-ipc-mode",
        "default-ipc-mode",
        Text,
        "Default mode for containers ipc",
        Effect::Apply(|s, v| {
            s.engine.default_ipc_mode = one_of(v, &["private", "shareable"])?;
            Ok(())
        }),
    ),
    option(
        "default-cgroupns-mode",
        "default-cgroupns-mode",
        Text,
        "Default mode for containers cgroup namespace",
        Effect::Apply(|s, v| {
            s.engine.default_cgroupns_mode = Some(one_of(v, &["host", "private"])?);
            Ok(())
        }),
    ),
    option(
        "cgroup-parent",
        "cgroup-parent",
        Text,
        "Set parent cgroup for all containers",
        some_text!(engine.cgroup_parent),
    ),
    option("exec-opt", "exec-opts", List, "Runtime execution options", Effect::Apply(exec_options)),
    option(
        "default-runtime",
        "default-runtime",
        Text,
        "Default OCI runtime for containers",
        text!(engine.default_runtime),
    ),
    option(
        "add-runtime",
        "runtimes",
        Map,
        "Register an additional OCI compatible runtime",
        Effect::Apply(runtimes),
    ),
    option(
        "init",
        "init",
        Switch,
        "Run an init in the container to forward signals and reap processes",
        switch!(engine.init),
    ),
    option(
        "init-path",
        "init-path",
        Text,
        "Path to the docker-init binary",
        Effect::Apply(|s, v| {
            s.engine.init_path = Some(PathBuf::from(string(v)?));
            Ok(())
        }),
    ),
    option(
        "seccomp-profile",
        "seccomp-profile",
        Text,
        "Path to seccomp profile",
        some_text!(engine.seccomp_profile),
    ),
    option(
        "no-new-privileges",
        "no-new-privileges",
        Switch,
        "Set no-new-privileges by default for new containers",
        switch!(engine.no_new_privileges),
    ),
    option(
        "selinux-enabled",
        "selinux-enabled",
        Switch,
        "Enable selinux support",
        Effect::Refused("SELinux labels are not supported by skep yet"),
    ),
    option(
        "userns-remap",
        "userns-remap",
        Text,
        "User/Group setting for user namespaces",
        NO_REMAP,
    ),
    option(
        "oom-score-adjust",
        "oom-score-adjust",
        Number,
        "Set the oom_score_adj for the daemon",
        Effect::Apply(|s, v| {
            s.oom_score = Some(integer(v)?);
            Ok(())
        }),
    ),
    short(
        'b',
        option(
            "bridge",
            "bridge",
            Text,
            "Attach containers to a network bridge",
            text!(engine.bridge),
        ),
    ),
    option("bip", "bip", Text, "Specify network bridge IP", some_text!(engine.bip)),
    option(
        "fixed-cidr",
        "fixed-cidr",
        Text,
        "IPv4 subnet for fixed IPs",
        some_text!(engine.fixed_cidr),
    ),
    option(
        "fixed-cidr-v6",
        "fixed-cidr-v6",
        Text,
        "IPv6 subnet for fixed IPs",
        some_text!(engine.fixed_cidr_v6),
    ),
    option(
        "default-gateway",
        "default-gateway",
        Text,
        "Container default gateway IPv4 address",
        address!(engine.default_gateway),
    ),
    option(
        "default-gateway-v6",
        "default-gateway-v6",
        Text,
        "Container default gateway IPv6 address",
        address!(engine.default_gateway_v6),
    ),
    option(
        "default-address-pool",
        "default-address-pools",
        List,
        "Default address pools for node specific local networks (base=CIDR,size=N)",
        Effect::Apply(pools),
    ),
    option(
        "ipv6",
        "ipv6",
        Switch,
        "Enable IPv6 networking on the default bridge",
        switch!(engine.ipv6),
    ),
    option("icc", "icc", Switch, "Enable inter-container communication", switch!(engine.icc)),
    option(
        "mtu",
        "mtu",
        Number,
        "Set the containers network MTU",
        Effect::Apply(|s, v| {
            let mtu = u32::try_from(integer(v)?).map_err(|_| format!("{v} is not an MTU"))?;
            s.engine.mtu = (mtu != 0).then_some(mtu);
            Ok(())
        }),
    ),
    option("ip", "ip", Text, "Default IP when binding container ports", address!(engine.ip)),
    option(
        "iptables",
        "iptables",
        Switch,
        "Enable addition of firewall rules (skep's are nftables, in one table of its own)",
        switch!(engine.iptables),
    ),
    option(
        "ip6tables",
        "ip6tables",
        Switch,
        "Enable addition of IPv6 firewall rules",
        switch!(engine.ip6tables),
    ),
    option(
        "ip-forward",
        "ip-forward",
        Switch,
        "Enable net.ipv4.ip_forward",
        switch!(engine.ip_forward),
    ),
    option("ip-masq", "ip-masq", Switch, "Enable IP masquerading", switch!(engine.ip_masq)),
    option(
        "userland-proxy",
        "userland-proxy",
        Switch,
        "Publish ports on IPv6 addresses for containers without one, and on ::1",
        switch!(engine.userland_proxy),
    ),
    option(
        "userland-proxy-path",
        "userland-proxy-path",
        Text,
        "Path to the userland proxy binary",
        Effect::Refused("skep needs no other program for it"),
    ),
    option(
        "host-gateway-ip",
        "host-gateway-ip",
        List,
        "IP address that host-gateway in --add-host resolves to",
        Effect::Apply(|s, v| {
            s.engine.host_gateway_ips = strings(v)?
                .iter()
                .map(|a| a.parse().map_err(|_| format!("{a} is not an address")))
                .collect::<Result<_, _>>()?;
            Ok(())
        }),
    ),
    option("dns", "dns", List, "DNS server to use", list!(engine.dns)),
    option("dns-opt", "dns-opts", List, "DNS options to use", list!(engine.dns_opts)),
    option("dns-search", "dns-search", List, "DNS search domains to use", list!(engine.dns_search)),
    option(
        "http-proxy",
        "http-proxy",
        Text,
        "HTTP proxy URL for outgoing traffic",
        some_text!(engine.http_proxy),
    ),
    option(
        "https-proxy",
        "https-proxy",
        Text,
        "HTTPS proxy URL for outgoing traffic",
        some_text!(engine.https_proxy),
    ),
    option(
        "no-proxy",
        "no-proxy",
        Text,
        "Hosts and addresses not to use the proxy for",
        some_text!(engine.no_proxy),
    ),
];
