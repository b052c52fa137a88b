//! `cargo xtask conformance`: docker-py's own integration tests, against skep and the Docker Engine.

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
/// Names under which the tests expect an image.
const IMAGES: &[&str] = &["alpine:3.10", "alpine:latest", "busybox:latest"];
/// A single test may take this long; a hang is a failure.
const TEST_SECONDS_MAX: &str = "60";

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
    let worse: Vec<&String> = dockerd
        .iter()
        .filter(|(name, result)| *result == "PASSED" && skep.get(*name) != Some(result))
        .map(|(n, _)| n)
        .collect();
    for name in &worse {
        println!("only the Docker Engine passes {name}");
    }
    if !worse.is_empty() {
        bail!("{} tests pass with the Docker Engine and not with skep", worse.len());
    }
    Ok(())
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
            module => modules.push(module.to_owned()),
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
fn run_against(
    engine: Engine,
    tests: &Path,
    modules: &[String],
) -> Result<BTreeMap<String, String>> {
    let plan = Plan { engines: vec![engine], ..Plan::skep(1)? };
    let lab = Lab::up(&plan)?;
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

/// Lines such as `tests/…::Class::test_name PASSED [ 3%]`.
fn parse_outcomes(text: &str) -> BTreeMap<String, String> {
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

fn counts(outcomes: &BTreeMap<String, String>) -> String {
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
    fn both_engines_and_all_modules_unless_told_otherwise() {
        let (engines, modules) = parse(&[]).expect("no words");
        assert_eq!((engines.len(), modules.len()), (2, MODULES.len()));
        assert!(parse(&["--engine".into(), "podman".into()]).is_err());
    }
}
