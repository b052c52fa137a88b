//! dockerd's options that are known here and mostly not honoured: each is named in a warning when it asks for anything.

use super::options::Kind::{List, Map, Number, Switch, Text};
use super::options::{Definition, Effect, option};
use super::values::{boolean, string};

const NO_PLUGINS: Effect = Effect::Refused("skep runs no plugins");
const NO_CONTAINERD: Effect = Effect::Refused("skep contains its runtime and uses no containerd");

/// In the order of `dockerd --help`'s groups.
pub const OPTIONS: &[Definition] = &[
    option(
        "api-cors-header",
        "api-cors-header",
        Text,
        "Set CORS headers in the Engine API",
        Effect::Refused("cross-origin access to the API is refused"),
    ),
    option(
        "authorization-plugin",
        "authorization-plugins",
        List,
        "Authorization plugins to load",
        NO_PLUGINS,
    ),
    option(
        "experimental",
        "experimental",
        Switch,
        "Enable experimental features",
        Effect::Refused("skep has no experimental features"),
    ),
    option("containerd", "containerd", Text, "containerd grpc address", NO_CONTAINERD),
    option(
        "containerd-namespace",
        "containerd-namespace",
        Text,
        "Containerd namespace to use",
        NO_CONTAINERD,
    ),
    option("cri-containerd", "cri-containerd", Switch, "Start containerd with cri", NO_CONTAINERD),
    option(
        "cpu-rt-period",
        "cpu-rt-period",
        Number,
        "Limit the CPU real-time period for the parent cgroup",
        Effect::Refused("real-time cgroups are not supported by skep"),
    ),
    option(
        "cpu-rt-runtime",
        "cpu-rt-runtime",
        Number,
        "Limit the CPU real-time runtime for the parent cgroup",
        Effect::Refused("real-time cgroups are not supported by skep"),
    ),
    option(
        "containerd-plugins-namespace",
        "containerd-plugin-namespace",
        Text,
        "Containerd namespace to use for plugins",
        NO_CONTAINERD,
    ),
    option(
        "rootless",
        "rootless",
        Switch,
        "Enable rootless mode",
        Effect::Refused("skep needs root: it makes network namespaces and mounts of the host"),
    ),
    option(
        "feature",
        "features",
        Map,
        "Enable feature in the daemon",
        Effect::Refused("skep has one image store and builds no images"),
    ),
    option(
        "builder",
        "builder",
        Map,
        "Settings of the image builder",
        Effect::Refused("skep builds no images"),
    ),
    option(
        "default-network-opt",
        "default-network-opts",
        Map,
        "Default network options",
        Effect::Refused("name the options at docker network create"),
    ),
    option(
        "bip6",
        "bip6",
        Text,
        "IPv6 address and subnet of the default bridge",
        Effect::Refused("the bridge takes the first address of --fixed-cidr-v6"),
    ),
    option(
        "ip-forward-no-drop",
        "ip-forward-no-drop",
        Switch,
        "Do not set the filter-FORWARD policy to DROP",
        // skep never sets it.
        Effect::Apply(|_, v| boolean(v).map(drop)),
    ),
    option(
        "allow-direct-routing",
        "allow-direct-routing",
        Switch,
        "Allow remote access to published ports on container addresses",
        Effect::Refused("containers are reached from outside through published ports alone"),
    ),
    option(
        "bridge-accept-fwmark",
        "bridge-accept-fwmark",
        Text,
        "Accept packets with this firewall mark",
        Effect::Refused("skep's rules look at no marks"),
    ),
    option(
        "firewall-backend",
        "firewall-backend",
        Text,
        "Firewall backend to use, iptables or nftables",
        Effect::Apply(|s, v| {
            if !["", "nftables"].contains(&string(v)?.as_str()) {
                s.warn("firewall-backend", "skep's rules are in an nftables table of its own");
            }
            Ok(())
        }),
    ),
    option(
        "cdi-spec-dir",
        "cdi-spec-dirs",
        List,
        "CDI specification directories to use",
        Effect::Refused("devices are given with --device"),
    ),
    option(
        "network-diagnostic-port",
        "network-diagnostic-port",
        Number,
        "TCP port of the network diagnostic server",
        Effect::Refused("--metrics-addr has figures of the network"),
    ),
    option(
        "swarm-default-raft-heartbeat-tick",
        "swarm-raft-heartbeat-tick",
        Number,
        "Number of ticks between heartbeats of managers",
        Effect::Refused("it is part of the protocol between skep's managers"),
    ),
    option(
        "swarm-default-raft-election-tick",
        "swarm-raft-election-tick",
        Number,
        "Number of ticks to elapse before an election",
        Effect::Refused("it is part of the protocol between skep's managers"),
    ),
    option(
        "network-control-plane-mtu",
        "network-control-plane-mtu",
        Number,
        "Network control plane MTU",
        Effect::Refused("gossip packets stay below 1400 bytes whatever the uplink"),
    ),
];
