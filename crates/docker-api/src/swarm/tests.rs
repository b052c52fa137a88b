//! What a user said is what is stored and what is shown again; what is not acted upon is refused by name.

use serde_json::{Value, json};

use super::{cluster, networks, object, spec};

/// Everything the CLI can say about a service.
fn full() -> Value {
    json!({
        "Name": "web",
        "Labels": {"tier": "front"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "httpd:2@sha256:00", "Labels": {"a": "b"}, "Command": ["httpd"], "Args": ["-f"],
                "Hostname": "{{.Task.Slot}}", "Env": ["A=1"], "Dir": "/srv", "User": "www", "Groups": ["g"],
                "Privileges": {
                    "CredentialSpec": null,
                    "SELinuxContext": {"Disable": true, "User": "", "Role": "", "Type": "", "Level": ""},
                    "NoNewPrivileges": true
                },
                "Init": true, "StopSignal": "SIGQUIT", "TTY": true, "OpenStdin": true, "ReadOnly": true,
                "Mounts": [
                    {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {
                        "NoCopy": true, "Labels": {"l": "m"}, "DriverConfig": {"Name": "local", "Options": {"o": "p"}}}},
                    {"Type": "bind", "Source": "/b", "Target": "/c", "ReadOnly": true,
                     "BindOptions": {"Propagation": "rslave"}},
                    {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}}
                ],
                "StopGracePeriod": 3_000_000_000_i64,
                "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000, "Timeout": 2_000_000_000,
                                "StartPeriod": 3_000_000_000_i64, "Retries": 4},
                "Hosts": ["1.2.3.4 db"],
                "DNSConfig": {"Nameservers": ["9.9.9.9"], "Search": ["x"], "Options": ["ndots:1"]},
                "Secrets": [{"File": {"Name": "s", "UID": "1", "GID": "2", "Mode": 256},
                             "SecretID": "sid", "SecretName": "sec"}],
                "Configs": [{"File": {"Name": "/c", "UID": "0", "GID": "0", "Mode": 292},
                             "ConfigID": "cid", "ConfigName": "cfg"}],
                "Isolation": "default", "Sysctls": {"net.core.somaxconn": "9"},
                "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_CHOWN"],
                "Ulimits": [{"Name": "nofile", "Hard": 20, "Soft": 10}], "OomScoreAdj": 5
            },
            "Resources": {
                "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 1048576, "Pids": 7},
                "Reservations": {"NanoCPUs": 1, "MemoryBytes": 2, "GenericResources": [
                    {"DiscreteResourceSpec": {"Kind": "apple", "Value": 3}},
                    {"NamedResourceSpec": {"Kind": "gpu", "Value": "u1"}}]}
            },
            "RestartPolicy": {"Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 2, "Window": 3},
            "Placement": {
                "Constraints": ["node.role==worker"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                "MaxReplicas": 2, "Platforms": [{"Architecture": "amd64", "OS": "linux"}]
            },
            "Networks": [{"Target": "n1", "Aliases": ["x"], "DriverOpts": {"k": "v"}}],
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
            "ForceUpdate": 3, "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 4}},
        "UpdateConfig": {"Parallelism": 2, "Delay": 1, "FailureAction": "continue", "Monitor": 5,
                         "MaxFailureRatio": 0.25, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 1, "FailureAction": "pause", "MaxFailureRatio": 0, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [
            {"Name": "http", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 53, "PublishMode": "host"}]}
    })
}

#[test]
fn a_service_is_shown_as_it_was_asked_for() {
    let stored = spec::read(&full()).unwrap();
    assert_eq!(spec::write(&stored), full());
    // And what is shown can be sent back without a change: `docker service update`.
    assert_eq!(spec::read(&spec::write(&stored)).unwrap(), stored);
}

/// The least that a service is, and what `more` says.
fn least(more: Value) -> Value {
    let mut body = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "httpd"}}});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn what_dockerd_refuses_at_once_is_refused_in_its_words() {
    let container = |name: &str, value: Value| {
        let mut spec = json!({"Image": "httpd"});
        spec[name] = value;
        json!({"TaskTemplate": {"ContainerSpec": spec}})
    };
    let config = |target: Value| {
        let mut config = json!({"ConfigID": "c", "ConfigName": "c"});
        config.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        container("Configs", json!([config]))
    };
    let bind = json!({"Propagation": "foo"});
    for (more, words) in [
        (json!({"TaskTemplate": {}}), "mismatched Runtime and *Spec fields"),
        (json!({"TaskTemplate": null}), "mismatched Runtime and *Spec fields"),
        (
            json!({"TaskTemplate": {"NetworkAttachmentSpec": {"ContainerID": "x"}}}),
            "mismatched Runtime and *Spec fields",
        ),
        (json!({"TaskTemplate": {"Runtime": "foo"}}), "unsupported runtime"),
        (json!({"UpdateConfig": {"Order": "foo"}}), "unrecognized update order foo"),
        (
            json!({"UpdateConfig": {"FailureAction": "foo"}}),
            "unrecognized update failure action foo",
        ),
        (json!({"EndpointSpec": {"Mode": "foo"}}), "invalid resolution mode: \"foo\""),
        (container("Mounts", json!([{"Type": "foo"}])), "invalid MountType: \"foo\""),
        (
            container("Mounts", json!([{"Type": "bind", "BindOptions": bind}])),
            "invalid MountPropagation: \"foo\"",
        ),
        (config(json!({})), "invalid Config: either File or Runtime should be set"),
        (
            config(json!({"File": {"Name": "a"}, "Runtime": {}})),
            "invalid Config: cannot specify both File and Runtime",
        ),
    ] {
        let fault = spec::read(&least(more)).unwrap_err();
        assert_eq!((fault.status.as_u16(), fault.message.as_str()), (400, words));
    }
}

#[test]
fn every_mode_of_a_service_survives() {
    for mode in [
        json!({"Global": {}}),
        json!({"Replicated": {"Replicas": 0}}),
        json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 8}}),
        json!({"GlobalJob": {}}),
    ] {
        let stored = spec::read(&least(json!({"Mode": mode}))).unwrap();
        assert_eq!(spec::write(&stored)["Mode"], mode);
    }
    let default = spec::read(&least(json!({}))).unwrap();
    assert_eq!(spec::write(&default)["Mode"], json!({"Replicated": {"Replicas": 1}}));
    assert!(spec::read(&least(json!({"Mode": {"Global": {}, "Replicated": {}}}))).is_err());
}

#[test]
fn what_is_not_acted_upon_is_refused_by_name() {
    for (path, value) in [
        ("/TaskTemplate/ContainerSpec/Gadget", json!(1)),
        ("/TaskTemplate/PluginSpec", json!({"Name": "p"})),
        ("/TaskTemplate/Runtime", json!("plugin")),
        ("/Colour", json!("red")),
        ("/EndpointSpec/Ports/0/Weight", json!(2)),
    ] {
        let mut body = full();
        let (parent, key) = path.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[key] = value;
        let fault = spec::read(&body).unwrap_err();
        assert!(fault.message.contains(key), "{path}: {}", fault.message);
    }
}

#[test]
fn wrong_types_and_words_are_bad_requests() {
    for (path, value) in [
        ("/Name", json!(1)),
        ("/Mode/Replicated/Replicas", json!(-1)),
        ("/TaskTemplate/RestartPolicy/Condition", json!("sometimes")),
        ("/TaskTemplate/ContainerSpec/Mounts/0/Type", json!("cloud")),
        ("/EndpointSpec/Ports/0/TargetPort", json!(4_294_967_296_i64)),
        ("/UpdateConfig/Order", json!("both")),
    ] {
        let mut body = full();
        *body.pointer_mut(path).unwrap() = value;
        let fault = spec::read(&body).unwrap_err();
        assert_eq!(fault.status.as_u16(), 400, "{path}: {}", fault.message);
    }
}

#[test]
fn the_swarm_begins_with_dockers_defaults_and_keeps_what_is_not_changed() {
    let init = cluster::read_init(&json!({"ListenAddr": "0.0.0.0:2377", "Spec": {}})).unwrap();
    let shown = cluster::write_spec(&init.spec);
    assert_eq!(shown["CAConfig"]["NodeCertExpiry"], json!(7_776_000_000_000_000_i64));
    assert_eq!(shown["Orchestration"]["TaskHistoryRetentionLimit"], json!(5));
    assert_eq!(shown["Raft"]["SnapshotInterval"], json!(10000));
    let change = json!({"Orchestration": {"TaskHistoryRetentionLimit": 0}, "EncryptionConfig": {"AutoLockManagers": true}});
    let merged = cluster::merge_spec(&super::json::Obj::root(&change).unwrap(), init.spec).unwrap();
    let shown = cluster::write_spec(&merged);
    assert_eq!(shown["Orchestration"]["TaskHistoryRetentionLimit"], json!(0));
    assert_eq!(shown["EncryptionConfig"]["AutoLockManagers"], json!(true));
    assert_eq!(shown["Dispatcher"]["HeartbeatPeriod"], json!(5_000_000_000_i64));
    let short = json!({"ListenAddr": ":1", "Spec": {"CAConfig": {"NodeCertExpiry": 1}}});
    assert!(cluster::read_init(&short).unwrap_err().message.contains("1h0m0s"));
}

#[test]
fn an_authority_that_was_given_once_is_not_given_again_by_the_next_update() {
    let merge = |body: Value, spec| {
        cluster::merge_spec(&super::json::Obj::root(&body).unwrap(), spec).unwrap()
    };
    let given = json!({"CAConfig": {"SigningCACert": "cert", "SigningCAKey": "key"}});
    let mut spec = merge(given, Default::default());
    let config = spec.ca_config.as_mut().unwrap();
    assert_eq!(
        (&config.signing_ca_cert[..], &config.signing_ca_key[..]),
        (&b"cert"[..], &b"key"[..])
    );
    // A manager tells the spec without the key.
    config.signing_ca_key.clear();
    let mut shown = cluster::write_spec(&spec);
    assert_eq!(shown["CAConfig"].get("SigningCACert"), None);
    shown["CAConfig"]["ForceRotate"] = json!(1);
    for update in [shown, json!({"Labels": {"a": "b"}})] {
        let config = merge(update, spec.clone()).ca_config.unwrap();
        assert!(config.signing_ca_cert.is_empty(), "`swarm ca --rotate` would be refused");
    }
}

#[test]
fn a_swarm_that_dockerd_refuses_to_begin_is_refused_in_its_words() {
    for (body, status, words) in [
        (
            json!({"DataPathPort": 80}),
            500,
            "Datapath port number is not in valid range (1024-49151) : 80",
        ),
        (json!({"DefaultAddrPool": ["x"]}), 500, "invalid base pool x: invalid CIDR address: x"),
        (
            json!({"DefaultAddrPool": ["10.0.0.0/24"], "SubnetSize": 16}),
            500,
            "invalid CIDR: \"10.0.0.0/24\". Subnet size is too small for pool: 16",
        ),
        (json!({"DefaultAddrPool": [], "SubnetSize": 30}), 500, "subnet size is out of range: 30"),
        (
            json!({"Spec": {"CAConfig": {"NodeCertExpiry": 1}}}),
            500,
            "error updating cluster settings: rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s",
        ),
        (
            json!({"Spec": {"Dispatcher": {"HeartbeatPeriod": -1}}}),
            500,
            "error updating cluster settings: rpc error: code = InvalidArgument desc = heartbeat time period cannot be a negative duration",
        ),
        (json!({"ListenAddr": ""}), 400, "invalid ListenAddr \"\": invalid empty address"),
        (json!({"Spec": {"Name": "other"}}), 400, "swarm spec must be named \"default\""),
    ] {
        let mut listening = json!({"ListenAddr": "0.0.0.0:2377"});
        listening.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let fault = cluster::read_init(&listening).unwrap_err();
        assert_eq!((fault.status.as_u16(), fault.message.as_str()), (status, words), "{body}");
    }
    let good = json!({"ListenAddr": ":1", "Spec": {"Name": "default"},
        "DefaultAddrPool": ["10.0.0.0/8"], "SubnetSize": 24});
    assert!(cluster::read_init(&good).is_ok());
    for (pools, size, read) in [
        (json!(null), 26, (vec!["10.0.0.0/8".to_owned()], 24)),
        (json!([]), 26, (vec![], 26)),
        (json!(["10.3.0.0/16"]), 26, (vec!["10.3.0.0/16".to_owned()], 26)),
    ] {
        let init = json!({"ListenAddr": ":1", "DefaultAddrPool": pools, "SubnetSize": size});
        let init = cluster::read_init(&init).unwrap();
        assert_eq!((init.default_addr_pool, init.subnet_size), read);
    }
}

#[test]
fn secrets_are_never_shown() {
    let secret = wire::swarmkit::Secret {
        id: "s".into(),
        spec: Some(wire::swarmkit::SecretSpec { data: b"hush".to_vec(), ..Default::default() }),
        ..Default::default()
    };
    assert!(object::secret(&secret)["Spec"].get("Data").is_none());
}

#[test]
fn an_overlay_is_told_from_a_network_of_the_host() {
    assert!(networks::is_swarm_scoped(&json!({"Driver": "overlay"})));
    assert!(networks::is_swarm_scoped(&json!({"Ingress": true})));
    assert!(!networks::is_swarm_scoped(&json!({"Driver": "bridge"})));
    assert!(!networks::is_swarm_scoped(&json!({})));
}
