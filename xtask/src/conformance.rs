//! `cargo xtask conformance`: docker-py's own integration tests, against skep and the Docker Engine.
//!
//! `cargo xtask conformance [--engine skep|dockerd] [swarm | MODULE]...`: all modules, those of the
//! swarm, or those that are named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use lab::command::{output, run};
use lab::{Engine, Lab, Plan};

use crate::{setup, suite};

/// The release whose tests are run, and what they need beside it, as its own list pins it.
const PACKAGES: &[&str] = &[
    "docker==7.0.0",
    "pytest==7.4.2",
    "pytest-timeout==2.1.0",
    "requests==2.31.0",
    "urllib3==1.26.18",
    "websocket-client==1.3.3",
    "paramiko",
    "setuptools",
];
/// What skep answers for; build, plugins and checkpoints are not among it.
const MODULES: &[&str] = &[
    "api_client",
    "api_container",
    "api_exec",
    "api_healthcheck",
    "api_image",
    "api_network",
    "api_volume",
    "client",
    "errors",
    "models_containers",
    "models_images",
    "models_networks",
    "models_resources",
    "models_volumes",
    "regression",
    "api_swarm",
    "api_service",
    "api_config",
    "api_secret",
    "models_nodes",
    "models_services",
    "models_swarm",
];
/// Of these, what `swarm` stands for: services, nodes, secrets, configs, and networks.
const SWARM_MODULES: &[&str] = &[
    "api_swarm",
    "api_service",
    "api_config",
    "api_secret",
    "models_nodes",
    "models_services",
    "models_swarm",
    "api_network",
    "models_networks",
];
/// Names under which the tests expect an image.
const IMAGES: &[&str] = &["alpine:3.10", "alpine:latest", "busybox:latest"];
/// What they pull from Docker's hub: a registry in the lab mirrors it.
const HUB: &[&str] = &["hello-world:latest", "alpine:3.10", "alpine:latest", "busybox:latest"];
/// The registry's port on the host's loopback.
const HUB_PORT: u16 = 5000;
/// Tests that skep need not pass, by the beginning of their names, and why.
const EXCLUDED: &[(&str, &str)] =
    &[("models_images_test.py::ImageCollectionTest::test_build", "docker build is not supported")];
/// A single test may take this long; a hang is a failure.
const TEST_SECONDS_MAX: &str = "60";

/// Result by test.
type Outcomes = BTreeMap<String, String>;

pub fn main(words: &[String]) -> Result<()> {
    let (engines, modules) = parse(words)?;
    setup::install()?;
    suite::cargo(&["build", "--quiet", "--package", "skep", "--package", "lab", "--bins"])?;
    let tests = prepare()?;
    let mut outcomes = BTreeMap::new();
    for engine in &engines {
        let outcome = run_against(*engine, &tests, &modules)?;
        println!("{engine:?}: {}", counts(&outcome));
        outcomes.insert(format!("{engine:?}"), outcome);
    }
    let (Some(skep), Some(dockerd)) = (outcomes.get("Skep"), outcomes.get("Dockerd")) else {
        return Ok(());
    };
    let (worse, excluded) = compare(skep, dockerd);
    for (name, why) in &excluded {
        println!("only the Docker Engine passes {name}: {why}");
    }
    for name in &worse {
        println!("only the Docker Engine passes {name}");
    }
    for name in compare(dockerd, skep).0 {
        println!("only skep passes {name}");
    }
    if !worse.is_empty() {
        bail!("{} tests pass with the Docker Engine and not with skep", worse.len());
    }
    println!("skep passes whatever the Docker Engine passes, {} excluded", excluded.len());
    Ok(())
}

/// What `peer` passes and `own` does not, and of it what is excluded, with the reason.
fn compare<'a>(own: &Outcomes, peer: &'a Outcomes) -> (Vec<&'a str>, Vec<(&'a str, &'static str)>) {
    let passed = |result: &str| matches!(result, "PASSED" | "XPASS");
    let worse = peer.iter().filter(|(name, result)| {
        passed(result) && !own.get(*name).is_some_and(|result| passed(result))
    });
    let (mut missing, mut excluded) = (Vec::new(), Vec::new());
    for (name, _) in worse {
        match EXCLUDED.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            Some((_, why)) => excluded.push((name.as_str(), *why)),
            None => missing.push(name.as_str()),
        }
    }
    (missing, excluded)
}

fn parse(words: &[String]) -> Result<(Vec<Engine>, Vec<String>)> {
    let mut engines = vec![Engine::Skep, Engine::Dockerd];
    let mut modules = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--engine" => match words.next().map(String::as_str) {
                Some("skep") => engines = vec![Engine::Skep],
                Some("dockerd") => engines = vec![Engine::Dockerd],
                other => bail!("--engine wants skep or dockerd, got {other:?}"),
            },
            "swarm" => modules.extend(SWARM_MODULES.iter().map(|module| (*module).to_owned())),
            module if MODULES.contains(&module) => modules.push(module.to_owned()),
            other => bail!("no module {other:?}: swarm, or some of {}", MODULES.join(", ")),
        }
    }
    if modules.is_empty() {
        modules = MODULES.iter().map(|module| (*module).to_owned()).collect();
    }
    Ok((engines, modules))
}

/// The folder with docker-py's sources and a Python environment, both under `target`.
fn prepare() -> Result<PathBuf> {
    let folder = suite::target_folder()?.join("conformance");
    let python = folder.join("python");
    if !python.join("bin/pytest").exists() {
        fs::create_dir_all(&folder)?;
        run(Command::new("python3").args(["-m", "venv"]).arg(&python))
            .context("python3 with venv is needed")?;
        run(Command::new(python.join("bin/pip")).args(["install", "--quiet"]).args(PACKAGES))?;
        let mut download = Command::new(python.join("bin/pip"));
        download
            .args(["download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGES[0], "-d"])
            .arg(&folder);
        run(&mut download)?;
        let archive = folder.join("docker-7.0.0.tar.gz");
        run(Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(archive))?;
    }
    Ok(folder)
}

/// The outcome of each test by its name.
fn run_against(engine: Engine, tests: &Path, modules: &[String]) -> Result<Outcomes> {
    let plan = Plan { engines: vec![engine], ..Plan::skep(1)? };
    let lab = Lab::up(&plan)?;
    add_what_tests_expect(&lab)?;
    mirror_hub(&lab)?;
    for image in IMAGES {
        lab.import_httpd(image)?;
    }
    let files = modules.iter().map(|module| format!("tests/integration/{module}_test.py"));
    // The tests run on the host: some connect to what they publish.
    let host = lab.host(1);
    let pytest = tests.join("python/bin/python").display().to_string();
    let mut command =
        host.inside(&["env", "-C", &tests.join("docker-7.0.0").display().to_string(), &pytest]);
    command.args([
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "--timeout",
        TEST_SECONDS_MAX,
    ]);
    command.args(files).env("DOCKER_HOST", host.docker_host()).env("DOCKER_CONFIG", &host.cli);
    let said = output(&mut command)?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let log = tests.join(format!("{engine:?}.log").to_lowercase());
    fs::write(&log, &text)?;
    println!("the whole output is in {}", log.display());
    let outcomes = parse_outcomes(&text);
    if outcomes.is_empty() {
        bail!("no test ran: {text}{}", String::from_utf8_lossy(&said.stderr));
    }
    lab.down()?;
    Ok(outcomes)
}

/// A registry with what the tests pull, which the engine asks in the hub's place.
fn mirror_hub(lab: &Lab) -> Result<()> {
    let (host, address) = (lab.host(1), format!("127.0.0.1:{HUB_PORT}"));
    lab::registry::start(host, HUB_PORT, &[])?;
    for image in HUB {
        let name = format!("{address}/library/{image}");
        lab.import_httpd(&name)?;
        host.docker(&["push", "--quiet", &name])?;
        host.docker(&["rmi", &name])?;
    }
    host.stop()?;
    fs::write(
        host.folder.join("daemon.json"),
        format!("{{\"registry-mirrors\": [\"http://{address}\"]}}\n"),
    )?;
    host.start()
}

/// The tests were written against images with one user and one folder more than the lab's.
fn add_what_tests_expect(lab: &Lab) -> Result<()> {
    let root = lab.folder.join("httpd-root");
    fs::create_dir_all(root.join("var/opt"))?;
    let passwd = root.join("etc/passwd");
    let mut users = fs::read_to_string(&passwd)?;
    users.push_str("postgres:x:70:70::/tmp:/bin/sh\n");
    fs::write(passwd, users)?;
    let mut pack = Command::new("tar");
    pack.args(["--owner=0", "--group=0", "-C"]).arg(&root).arg("-cf").arg(&lab.httpd_tar).arg(".");
    run(&mut pack).map(drop)
}

/// Lines such as `tests/…::Class::test_name PASSED [ 3%]`.
fn parse_outcomes(text: &str) -> Outcomes {
    let mut outcomes = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("tests/") && line.contains("::")) {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(result)) = (words.next(), words.next())
            && ["PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS"].contains(&result)
        {
            outcomes.insert(
                name.trim_start_matches("tests/integration/").to_owned(),
                result.to_owned(),
            );
        }
    }
    outcomes
}

fn counts(outcomes: &Outcomes) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for result in outcomes.values() {
        *counts.entry(result).or_default() += 1;
    }
    counts
        .iter()
        .map(|(result, count)| format!("{count} {}", result.to_lowercase()))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_the_runner_s_lines() {
        let text = "tests/integration/a_test.py::A::test_x PASSED [ 1%]\nnoise\ntests/integration/a_test.py::A::test_y FAILED [ 2%]\n";
        let outcomes = parse_outcomes(text);
        assert_eq!(outcomes.get("a_test.py::A::test_y").map(String::as_str), Some("FAILED"));
        assert_eq!(counts(&outcomes), "1 failed, 1 passed");
    }

    #[test]
    fn a_test_that_only_the_peer_passes_is_missing_unless_it_is_excluded() {
        let outcomes = |list: &[(&str, &str)]| -> Outcomes {
            list.iter().map(|(name, result)| ((*name).to_owned(), (*result).to_owned())).collect()
        };
        let build = "models_images_test.py::ImageCollectionTest::test_build_with_error";
        let peer =
            outcomes(&[("a", "PASSED"), ("b", "FAILED"), ("c", "PASSED"), (build, "PASSED")]);
        let own = outcomes(&[("a", "FAILED"), ("b", "PASSED"), ("c", "XPASS"), (build, "FAILED")]);
        let (missing, excluded) = compare(&own, &peer);
        assert_eq!(missing, ["a"]);
        assert_eq!(excluded.len(), 1);
        assert_eq!(compare(&peer, &own).0, ["b"]);
    }

    #[test]
    fn both_engines_and_all_modules_unless_told_otherwise() {
        let (engines, modules) = parse(&[]).expect("no words");
        assert_eq!((engines.len(), modules.len()), (2, MODULES.len()));
        assert!(parse(&["--engine".into(), "podman".into()]).is_err());
        let (engines, modules) = parse(&["swarm".into()]).expect("a group");
        assert_eq!((engines.len(), modules.len()), (2, SWARM_MODULES.len()));
        assert!(modules.iter().all(|module| MODULES.contains(&module.as_str())));
        assert!(parse(&["api_swam".into()]).is_err());
    }
}
