//! What the demo promises beside its ten steps: it shares the machine, can be kept, and leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::command::{output, run, sh};
use lab::host::wait_until;
use lab::{Host, Lab, Plan, registry};

use crate::suite;

const DEMO_MAX: Duration = Duration::from_secs(600);
/// How long a demo that was told to end may take to remove everything.
const GONE_MAX: Duration = Duration::from_secs(60);
const INTERRUPTED: i32 = 130;
/// What the registry of [`registry`] holds, by the name that its own host pulls it under.
const IMAGE: &str = "127.0.0.1:5000/httpd:2";
const REGISTRY_PORT: u16 = 5000;

/// Three demos beside each other: one on this terminal, one with a host of the Docker Engine and
/// behind a router, with an image from a registry, that is kept and then taken down by hand, one
/// that is interrupted.
pub fn main() -> Result<()> {
    lab::interrupt::listen()?;
    let shop = registry()?;
    let words = ["--with-dockerd", "--routed", "--keep", "--image", IMAGE];
    let kept = Demo::start("kept", &words, Some(shop.host(1)))?;
    let interrupted = Demo::start("interrupted", &["--hosts", "3"], None)?;
    interrupt(interrupted).context("a demo that is interrupted")?;
    super::main(&[]).context("a demo beside another")?;
    keep(kept).context("demo --with-dockerd --routed --keep")
}

/// A host with a registry, and in it the image that a demo is to serve.
fn registry() -> Result<Lab> {
    let lab = Lab::up(&Plan::skep(1)?)?;
    lab.import_httpd(IMAGE)?;
    registry::start(lab.host(1), REGISTRY_PORT, &[])?;
    lab.host(1).docker(&["push", "-q", IMAGE])?;
    Ok(lab)
}

/// A demo in a process of its own; all that it says goes to a file.
struct Demo {
    process: Child,
    log: PathBuf,
}

impl Demo {
    /// Started on the network of `host`, or of this machine.
    fn start(name: &str, words: &[&str], host: Option<&Host>) -> Result<Demo> {
        let folder = suite::target_folder()?;
        let log = folder.join(format!("demo-{name}.log"));
        let file = fs::File::create(&log)?;
        // Not current_exe(): the build step may have put a newer file in this one's place.
        let program = folder.join("xtask");
        let mut command = match host {
            Some(host) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &host.init_pid(), "-n", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let process = command
            .arg("demo")
            .args(words)
            .env("SKEP_BIN", std::env::var_os("SKEP_BIN").unwrap_or(folder.join("skep").into()))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Demo { process, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&mut self, text: &str) -> Result<()> {
        wait_until(DEMO_MAX, || {
            let said = self.said();
            if let Some(status) = self.process.try_wait()?
                && !said.contains(text)
            {
                bail!("it ended ({status}) before it said {text:?}:\n{said}");
            }
            Ok(said.contains(text))
        })
    }

    /// The exit status; `None` when a signal ended it.
    fn status(&mut self) -> Result<Option<i32>> {
        let mut status = None;
        wait_until(DEMO_MAX, || {
            status = self.process.try_wait()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("it does not end:\n{}", self.said()))?;
        Ok(status.and_then(|status| status.code()))
    }

    /// The folder of its lab.
    fn folder(&self) -> Result<PathBuf> {
        let said = self.said();
        let line = said.lines().find_map(|line| line.strip_prefix("they are in "));
        line.map(PathBuf::from).with_context(|| format!("no folder in:\n{said}"))
    }
}

impl Drop for Demo {
    /// A demo that is still there when its test has failed cleans up after SIGTERM, too.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let told = sh(&format!("kill -TERM {}", self.process.id()));
            if let Err(error) = told.and_then(|_| Ok(self.process.wait()?)) {
                eprintln!("demo {}: {error}", self.process.id());
            }
        }
    }
}

fn interrupt(mut demo: Demo) -> Result<()> {
    // Tasks are being started: daemons, shims, mounts, cgroups and namespaces are all there.
    demo.wait_for("=== 3.")?;
    let folder = demo.folder()?;
    wait_until(DEMO_MAX, || Ok(!containers(&folder).is_empty()))?;
    let containers = containers(&folder);
    sh(&format!("kill -INT {}", demo.process.id()))?;
    let status = demo.status()?;
    if status != Some(INTERRUPTED) {
        bail!("it ended with {status:?} rather than {INTERRUPTED}:\n{}", demo.said());
    }
    gone(&folder, &containers)?;
    println!("  [ok] an interrupted demo leaves nothing");
    Ok(())
}

fn keep(mut demo: Demo) -> Result<()> {
    if demo.status()? != Some(0) {
        bail!("it failed:\n{}", demo.said());
    }
    let folder = demo.folder()?;
    let containers = containers(&folder);
    let outcome = go_on(&demo.said());
    // The very line that the user is told to type.
    let said = demo.said();
    let down =
        said.lines().rfind(|line| line.contains(" down ")).context("no way to take it down")?;
    run(Command::new("sh").args(["-c", down])).context(down.to_owned())?;
    outcome?;
    gone(&folder, &containers)?;
    println!("  [ok] a demo with the Docker Engine, kept, used by hand and taken down");
    Ok(())
}

/// Each `export DOCKER_HOST` that the user is told to type leads to a host of the swarm.
fn go_on(said: &str) -> Result<()> {
    let exports: Vec<&str> =
        said.lines().filter(|line| line.contains("export DOCKER_HOST")).collect();
    if exports.len() != 3 {
        bail!("three hosts, and these lines: {exports:?}");
    }
    for export in exports {
        let line = export.split(" #").next().unwrap_or_default();
        let script = format!("{line}; docker info --format '{{{{.Swarm.LocalNodeState}}}}'");
        let state = run(Command::new("sh").args(["-c", &script]))?;
        if state != "active" {
            bail!("{line}: the host's state in the swarm is {state}");
        }
    }
    Ok(())
}

/// Ids of all containers of a lab.
fn containers(lab: &Path) -> Vec<String> {
    let hosts = fs::read_dir(lab).into_iter().flatten().flatten();
    let folders = hosts.flat_map(|host| fs::read_dir(host.path().join("data/containers")));
    let names = folders.flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.len() == 64).collect()
}

/// Neither files, namespaces, mounts, processes nor cgroups are left of a lab.
fn gone(lab: &Path, containers: &[String]) -> Result<()> {
    let name = lab.file_name().context("a lab's folder")?.to_string_lossy().into_owned();
    let mut left = Vec::new();
    let outcome = wait_until(GONE_MAX, || {
        left = remains(lab, &name, containers)?;
        Ok(left.is_empty())
    });
    outcome.with_context(|| format!("left of {name}: {left:?}"))
}

fn remains(lab: &Path, name: &str, containers: &[String]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if lab.exists() {
        left.push(lab.display().to_string());
    }
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    left.extend(
        lines(sh("ip netns list")?).into_iter().filter(|line| line.contains(&format!("{name}-"))),
    );
    left.extend(
        lines(fs::read_to_string("/proc/mounts")?)
            .into_iter()
            .filter(|l| l.contains(&format!("{name}/"))),
    );
    // pgrep's own command line is not among its answers.
    let processes = output(Command::new("pgrep").args(["-f", &format!("{name}/")]))?;
    left.extend(lines(String::from_utf8_lossy(&processes.stdout).into_owned()));
    // Others' groups may come and go meanwhile, which find reports as its failure.
    let groups = output(Command::new("find").args(["/sys/fs/cgroup", "-type", "d"]))?;
    let of_ours = |line: &String| containers.iter().any(|id| line.contains(id.as_str()));
    left.extend(
        lines(String::from_utf8_lossy(&groups.stdout).into_owned()).into_iter().filter(of_ours),
    );
    Ok(left)
}
