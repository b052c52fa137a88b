//! The daemon itself: its options, its file, its sockets, and what a second one is told.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::registry::{Door, Turn};
use e2e::{answers, cases, hosts, hosts_of_skep, refused};
use lab::command::{output, run};
use lab::host::wait_until;
use lab::{Host, Lab, Plan, registry};

const RELOAD_MAX: Duration = Duration::from_secs(20);

#[test]
fn the_daemon_does_as_it_is_told() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("options of the default bridge act", options_of_the_default_bridge_act),
            ("a flag and the file that contradict are refused", contradictions_are_refused),
            ("daemon.json is read again on SIGHUP", the_file_is_read_again_on_sighup),
            ("the socket has the group that was asked for", the_socket_has_its_group),
            ("TCP wants a certificate of the CA", tcp_wants_a_certificate_of_the_ca),
            ("mirrors are asked before the hub", mirrors_are_asked_before_the_hub),
            ("a registry without TLS has to be named", a_registry_without_tls_has_to_be_named),
        ],
    )
}

#[test]
fn what_only_this_daemon_promises() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    cases(
        &lab,
        &[
            ("what is not honoured is named", what_is_not_honoured_is_named),
            ("a second daemon is refused", a_second_daemon_is_refused),
            ("sockets are taken over from systemd", sockets_are_taken_over),
            ("figures and structured logs", figures_and_structured_logs),
            ("under the name dockerd", under_the_name_dockerd),
            ("a host without certificates", a_host_without_certificates),
            ("what is not supported names the way round", the_way_round_is_named),
        ],
    )
}

/// Runs a case with further options, and leaves the host with its usual daemon.
fn with_options(host: &Host, options: &[&str], case: impl FnOnce() -> Result<()>) -> Result<()> {
    host.stop()?;
    let done = host.start_with(options, &[]).and_then(|()| case());
    let stopped = host.stop();
    fs::write(host.folder.join("daemon.json"), "{}\n")?;
    host.start()?;
    done.and(stopped)
}

fn options_of_the_default_bridge_act(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let options = [
        "--bip=172.17.0.1/16",
        "--default-gateway=172.17.0.99",
        "--ipv6",
        "--fixed-cidr-v6=fd00:17::/64",
        "--default-cgroupns-mode=private",
        "--default-ulimit=nofile=1000:2000",
        "--default-shm-size=32m",
    ];
    with_options(host, &options, || {
        let routes = host.dk("run --rm httpd ip route")?;
        ensure!(routes.contains("default via 172.17.0.99"), "{routes}");
        let addresses = host.dk("run --rm httpd ip -6 addr show eth0")?;
        ensure!(addresses.contains("fd00:17::"), "{addresses}");
        answers(host, "network inspect -f {{.EnableIPv6}} bridge", "true")?;
        host.dk("create --name private httpd")?;
        answers(host, "inspect -f {{.HostConfig.CgroupnsMode}} private", "private")?;
        host.dk("rm private")?;
        let limit = host.docker(&["run", "--rm", "httpd", "sh", "-c", "ulimit -n"])?;
        ensure!(limit == "1000", "{limit}");
        let shm = host.dk("run --rm httpd df -k /dev/shm")?;
        ensure!(shm.contains("32768"), "{shm}");
        Ok(())
    })
}

fn contradictions_are_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.stop()?;
    let file = host.folder.join("daemon.json");
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            r#"{"debug":false}"#,
            "both as a flag and in the configuration file: debug: (from flag: true, from file: false)",
        ),
        (r#"{"fast":true}"#, "the following directives don't match any configuration option: fast"),
        (r#"{"mtu":"#, "unable to configure the"),
        (r#"{"icc":false,"iptables":false}"#, "Please set --icc or --iptables to true"),
        (r#"{"labels":["colour"]}"#, "bad attribute format: colour"),
    ] {
        fs::write(&file, text)?;
        let answer = output(&mut host.daemon(&["--debug"]))?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        if answer.status.success() || !said.contains(expected) {
            wrong.push(format!("{text}: {said}"));
        }
    }
    fs::write(&file, "{}\n")?;
    host.start()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn the_file_is_read_again_on_sighup(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let file = host.folder.join("daemon.json");
    let reload = |text: &str| -> Result<()> {
        fs::write(&file, text)?;
        host.exec(&["kill", "-HUP", &host.daemon_pid()?]).map(drop)
    };
    let labels = |expected: &str| {
        wait_until(RELOAD_MAX, || Ok(host.dk("info -f {{.Labels}}")? == expected))
            .with_context(|| format!("labels are not {expected}"))
    };
    let since = host.sh("date +%s")?;
    reload(r#"{"labels":["a=b"],"debug":true,"insecure-registries":["reg.example:5000"]}"#)?;
    labels("[a=b]")?;
    answers(host, "info -f {{.Debug}}", "true")?;
    let registries = host.docker(&["info", "-f", "{{json .RegistryConfig.IndexConfigs}}"])?;
    ensure!(registries.contains("reg.example:5000"), "{registries}");
    // What cannot be used changes nothing.
    reload(r#"{"labels":["colour"]}"#)?;
    reload(r#"{"labels":"#)?;
    reload(r#"{"labels":["a=b","c=d"]}"#)?;
    labels("[a=b c=d]")?;
    let until = (host.sh("date +%s")?.parse::<u64>()? + 1).to_string();
    let format = "{{.Type}} {{.Action}}";
    let events = host.docker(&[
        "events",
        "--since",
        &since,
        "--until",
        &until,
        "--filter",
        "type=daemon",
        "--format",
        format,
    ])?;
    ensure!(events.lines().filter(|line| *line == "daemon reload").count() >= 2, "{events}");
    reload("{}")?;
    // A key that is gone is the default again; the Docker Engine keeps its value until it restarts.
    let expected = if host.engine == lab::Engine::Skep { "[]" } else { "[a=b c=d]" };
    labels(expected)
}

fn the_socket_has_its_group(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let socket = host.folder.join("docker.sock").display().to_string();
    with_options(host, &["--group=12345"], || {
        let shown = host.exec(&["stat", "-c", "%a %g", &socket])?;
        ensure!(shown == "660 12345", "{shown}");
        Ok(())
    })
}

/// Gives a registry at `address` an image that is nowhere else, under `name`.
fn publish(host: &Host, address: &str, name: &str) -> Result<()> {
    let name = format!("{address}/{name}");
    host.docker(&["run", "--name", "maker", "httpd", "sh", "-c", "echo there > /there"])?;
    host.dk(&format!("commit maker {name}"))?;
    host.dk("rm maker")?;
    host.dk(&format!("push -q {name}"))?;
    host.dk(&format!("rmi {name}")).map(drop)
}

fn mirrors_are_asked_before_the_hub(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    registry::start(host, 5000, &[])?;
    publish(host, "127.0.0.1:5000", "library/mirrored:1")?;
    // One that fails stands before the one that has it.
    let broken = Door::open(host, 5001, 5000, |asked| match asked.path.as_str() {
        "/v2/" => Turn::Forward,
        _ => Turn::json("503 Service Unavailable", "{}"),
    })?;
    let mirrors = [
        "--registry-mirror",
        "http://127.0.0.1:5001",
        "--registry-mirror",
        "http://127.0.0.1:5000",
    ];
    with_options(host, &mirrors, || {
        host.dk("pull -q mirrored:1")?;
        answers(host, "run --rm mirrored:1 cat /there", "there")?;
        answers(host, "images --format {{.Repository}}:{{.Tag}} mirrored", "mirrored:1")?;
        let asked = broken.asked();
        ensure!(asked.iter().any(|asked| asked.path.contains("/library/mirrored/")), "{asked:?}");
        host.dk("rmi mirrored:1")?;
        // What no mirror has the hub is asked for, which nobody here knows.
        let said = host.try_docker(&["pull", "nowhere:1"])?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains("registry-1.docker.io"), "{said}");
        // Mirrors are the hub's alone.
        let before = broken.asked().len();
        refused(host, "pull 127.0.0.1:5000/library/mirrored:2", "manifest unknown")?;
        ensure!(broken.asked().len() == before, "a mirror was asked for another registry");
        Ok(())
    })
}

fn a_registry_without_tls_has_to_be_named(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    registry::start(host, 5010, &[("REGISTRY_HTTP_ADDR", "0.0.0.0:5010")])?;
    let address = format!("{}:5010", host.address);
    publish(host, "127.0.0.1:5010", "app:1")?;
    let pull = format!("pull {address}/app:1");
    refused(host, &pull, "server gave HTTP response to HTTPS client")?;
    let network = format!("{}/24", host.address);
    for named in [&address, &network] {
        with_options(host, &["--insecure-registry", named], || {
            host.dk(&pull)?;
            answers(host, &format!("run --rm {address}/app:1 cat /there"), "there")?;
            host.dk(&format!("push -q {address}/app:1"))?;
            host.dk(&format!("rmi {address}/app:1")).map(drop)
        })?;
    }
    Ok(())
}

/// A CA, and a certificate of it for a server and for a client; `other` is nobody's.
fn certificates(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let openssl = |words: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(words.split_whitespace());
        run(&mut command).map(drop)
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for name in ["ca", "other"] {
        openssl(&format!(
            "req -x509 {new} -keyout {name}-key.pem -out {name}.pem -subj /CN={name} -days 2"
        ))?;
    }
    for (name, use_of) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let extensions = folder.join(format!("{name}.ext"));
        fs::write(extensions, format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={use_of}\n"))?;
        openssl(&format!("req {new} -keyout {name}-key.pem -out {name}.csr -subj /CN={name}"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -out {name}.pem -days 2 -extfile {name}.ext"
        ))?;
    }
    Ok(())
}

fn tcp_wants_a_certificate_of_the_ca(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("tls");
    certificates(&folder)?;
    let at = |name: &str| folder.join(name).display().to_string();
    let options = [
        "-H=tcp://127.0.0.1:2376".to_owned(),
        "--tlsverify".to_owned(),
        format!("--tlscacert={}", at("ca.pem")),
        format!("--tlscert={}", at("server.pem")),
        format!("--tlskey={}", at("server-key.pem")),
    ];
    let ask = |certificate: &str| {
        let (ca, cert, key) = (
            at("ca.pem"),
            at(&format!("{certificate}.pem")),
            at(&format!("{certificate}-key.pem")),
        );
        let mut words = vec!["docker", "-H", "tcp://127.0.0.1:2376"];
        words.extend(["--tlsverify", "--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key]);
        words.extend(["ps", "-q"]);
        output(host.inside(&words).env_remove("DOCKER_HOST"))
    };
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    with_options(host, &options, || {
        let known = ask("client")?;
        ensure!(known.status.success(), "{}", String::from_utf8_lossy(&known.stderr));
        let stranger = ask("other")?;
        ensure!(!stranger.status.success(), "a stranger's certificate was taken");
        let plain = "curl -s --max-time 5 http://127.0.0.1:2376/_ping";
        let plain = output(&mut host.inside(&plain.split(' ').collect::<Vec<_>>()))?;
        ensure!(!plain.stdout.starts_with(b"OK"), "plain HTTP was answered");
        Ok(())
    })
}

fn what_is_not_honoured_is_named(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let options = [
        "--userns-remap=default",
        "--shutdown-timeout=30",
        "--log-driver=journald",
        "--experimental",
    ];
    with_options(host, &options, || {
        let info = host.try_docker(&["info"])?;
        let said = String::from_utf8_lossy(&info.stderr).into_owned()
            + &String::from_utf8_lossy(&info.stdout);
        for name in ["--userns-remap", "--shutdown-timeout", "--log-driver", "--experimental"] {
            ensure!(said.contains(&format!("WARNING: {name} is not honoured")), "{name}: {said}");
        }
        answers(host, "info -f {{.LoggingDriver}}", "json-file")
    })
}

/// The program itself, with words of its own.
fn program(host: &Host, words: &[&str]) -> Result<std::process::Output> {
    let skep = Plan::skep(1)?.skep.display().to_string();
    output(&mut host.inside(&[&[skep.as_str(), "daemon"], words].concat()))
}

fn a_second_daemon_is_refused(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let at = |name: &str| host.folder.join(name).display().to_string();
    let (socket, pid, other) = (format!("unix://{}", at("second.sock")), at("second.pid"), at("2"));
    let place = |data: &str, exec: &str| {
        program(host, &["-H", &socket, "--pidfile", &pid, "--data-root", data, "--exec-root", exec])
    };
    for (flag, data, exec) in
        [("--data-root", at("data"), other.clone()), ("--exec-root", other.clone(), at("exec"))]
    {
        let answer = place(&data, &exec)?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(!answer.status.success(), "a second daemon ran");
        ensure!(
            said.contains(&format!("{flag} ")) && said.contains("belongs to a daemon"),
            "{said}"
        );
        ensure!(!Path::new(&at("second.sock")).exists(), "its socket is still there");
        ensure!(!Path::new(&pid).exists(), "its pidfile is still there");
    }
    let answer = program(host, &["-H", &host.docker_host(), "--pidfile", &pid])?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(said.contains("another daemon answers on it"), "{said}");
    let answer = program(host, &["-H", &socket, "--pidfile", &at("pid")])?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(said.contains("is still running"), "{said}");
    host.dk("ps").map(drop)
}

fn sockets_are_taken_over(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let at = |name: &str| host.folder.join(name).display().to_string();
    let skep = Plan::skep(1)?.skep.display().to_string();
    let path = host.folder.join("activated.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path)?;
    let line = format!(
        "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec {skep} daemon -H fd:// --data-root {} --exec-root {} --pidfile {}",
        at("fd-data"),
        at("fd-exec"),
        at("fd-pid"),
    );
    let log = fs::File::create(host.folder.join("fd-log"))?;
    let mut daemon = host
        .inside(&["sh", "-c", &line])
        .stdin(std::os::fd::OwnedFd::from(socket))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // The socket is open before the daemon is: the first question waits.
    let version = run(Command::new("docker")
        .args(["-H", &format!("unix://{}", path.display()), "version", "-f", "{{.Server.Os}}"])
        .env("DOCKER_CONFIG", &host.cli));
    let pid = fs::read_to_string(at("fd-pid")).unwrap_or_default();
    if !pid.is_empty() {
        host.exec(&["kill", "-TERM", pid.trim()])?;
    }
    daemon.wait()?;
    ensure!(version? == "linux");
    ensure!(path.exists(), "systemd's socket was removed");
    let none = program(host, &["-H", "fd://", "--pidfile", &at("fd-pid")])?;
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    ensure!(said.contains("no sockets found"), "{said}");
    Ok(())
}

fn figures_and_structured_logs(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let log = host.folder.join("log");
    let before = fs::metadata(&log)?.len() as usize;
    with_options(host, &["--metrics-addr=127.0.0.1:9323", "--log-format=json"], || {
        host.dk("run -d --name counted httpd")?;
        host.dk("swarm init --advertise-addr 127.0.0.1")?;
        let page = || host.sh("curl -s --max-time 5 http://127.0.0.1:9323/metrics");
        wait_until(RELOAD_MAX, || Ok(page()?.contains("swarm_manager_nodes{state=\"ready\"} 1")))?;
        let page = page()?;
        for expected in [
            "engine_daemon_container_states_containers{state=\"running\"} 1",
            "engine_images 1",
            "skep_network_steps_applied_total",
            "swarm_node_manager 1",
            "swarm_manager_services_total 0",
        ] {
            ensure!(page.contains(expected), "{expected} is missing in\n{page}");
        }
        host.dk("swarm leave --force")?;
        host.dk("rm -f counted")?;
        let text = fs::read_to_string(&log)?;
        let lines: Vec<&str> =
            text[before..].lines().filter(|line| line.starts_with('{')).collect();
        ensure!(!lines.is_empty(), "no line of the log is JSON");
        for line in lines {
            let entry: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
            ensure!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
        }
        Ok(())
    })
}

fn a_host_without_certificates(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    lab::registry::start(host, 5000, &[])?;
    host.dk("tag httpd 127.0.0.1:5000/plain:1")?;
    host.stop()?;
    host.start_with(&[], &[("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")])?;
    host.dk("push -q 127.0.0.1:5000/plain:1")?;
    host.dk("rmi 127.0.0.1:5000/plain:1")?;
    host.dk("pull -q 127.0.0.1:5000/plain:1")?;
    refused(host, "pull reg.example:5000/app", "install ca-certificates or set SSL_CERT_FILE")?;
    host.dk("rmi 127.0.0.1:5000/plain:1")?;
    host.stop()?;
    host.start()
}

fn under_the_name_dockerd(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let name = host.folder.join("dockerd");
    std::os::unix::fs::symlink(Plan::skep(1)?.skep, &name)?;
    let name = name.display().to_string();
    let file = host.folder.join("valid.json");
    fs::write(&file, r#"{"debug":true}"#)?;
    let file = file.display().to_string();
    let valid = host.exec(&[&name, "--validate", "--config-file", &file])?;
    ensure!(valid == "configuration OK", "{valid}");
    let help = host.exec(&[&name, "--help"])?;
    ensure!(help.contains("--registry-mirror") && help.contains("--data-root"), "{help}");
    let version = host.exec(&[&name, "--version"])?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    Ok(())
}

fn the_way_round_is_named(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("context");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("Dockerfile"), "FROM httpd\n")?;
    let folder = folder.display().to_string();
    let said = |words: &[&str]| -> Result<String> {
        let answer = output(host.cli(words).env("DOCKER_BUILDKIT", "0"))?;
        ensure!(!answer.status.success(), "docker {}: accepted", words.join(" "));
        Ok(String::from_utf8_lossy(&answer.stderr).into_owned()
            + &String::from_utf8_lossy(&answer.stdout))
    };
    host.dk("create --name alone httpd")?;
    for (words, way) in [
        (&["build", &folder][..], "docker save and load"),
        (&["plugin", "install", "--grant-all-permissions", "x/y"], "local volume driver"),
        (&["search", "httpd"], "docker pull"),
    ] {
        let said = said(words)?;
        ensure!(said.contains("not supported by skep") && said.contains(way), "{words:?}: {said}");
    }
    let socket = host.folder.join("docker.sock").display().to_string();
    let answer = run(Command::new("curl").args([
        "-s",
        "-XPOST",
        "-H",
        "Content-Type: application/json",
        "-d",
        r#"{"CheckpointID":"c"}"#,
        "-w",
        "%{http_code}",
        "--unix-socket",
        &socket,
        "http://d/containers/alone/checkpoints",
    ]))?;
    ensure!(answer.contains("docker commit") && answer.ends_with("501"), "{answer}");
    host.dk("rm alone").map(drop)
}
