//! One host of a lab: its namespaces, its engine, the docker CLI against it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{self, output, run};
use crate::plan::{Engine, Plan};

/// How long a daemon may take to answer after its start, or to end after SIGTERM.
const DAEMON_MAX: Duration = Duration::from_secs(60);

/// A handle on a host; copies speak of the same host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Counted from 1.
    pub number: usize,
    pub name: String,
    pub address: String,
    pub engine: Engine,
    /// The host's folder: `docker.sock`, `data`, `exec`, `log`, `pid`.
    pub folder: PathBuf,
    /// The CLI's own configuration, so that the user's is neither read nor changed.
    pub cli: PathBuf,
    pub router: String,
    init: String,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Host {
    /// Starts the host's init in fresh namespaces around the network namespace `namespace`.
    pub(crate) fn up(
        number: usize,
        namespace: &str,
        router: &str,
        lab: &Path,
        plan: &Plan,
    ) -> Result<Host> {
        let folder = lab.join(format!("h{number}"));
        fs::create_dir_all(&folder)?;
        let name = format!("sathish-vm{number}");
        let gateway = plan.gateway(number);
        let mut init = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args([
                "unshare",
                "-m",
                "-u",
                "-i",
                "-p",
                "-f",
                "--mount-proc",
                "--propagation",
                "private",
            ])
            .arg(&plan.lab)
            .arg("host-init")
            .arg(&folder)
            .args([&name, &gateway])
            .stdin(Stdio::null())
            .stdout(fs::File::create(folder.join("init.log"))?)
            .stderr(fs::File::create(folder.join("init.err"))?)
            .spawn()
            .context("cannot start a host's init")?;
        let ready = folder.join("ready");
        wait_until(Duration::from_secs(20), || Ok(ready.exists())).with_context(|| {
            let said = fs::read_to_string(folder.join("init.err")).unwrap_or_default();
            format!("host {number} did not come up: {}", said.trim())
        })?;
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id()))?;
        let pid = children.split_whitespace().next().context("the host's init is gone")?.to_owned();
        // The outer process ends with the init that it waits for.
        std::thread::spawn(move || init.wait());
        let engine = plan.engines[number - 1];
        Ok(Host {
            number,
            name,
            address: plan.address(number),
            engine,
            cli: lab.join("cli"),
            router: router.to_owned(),
            init: pid,
            program: if engine == Engine::Skep {
                plan.skep.clone()
            } else {
                PathBuf::from("dockerd")
            },
            arguments: if engine == Engine::Skep { plan.daemon_args.clone() } else { Vec::new() },
            folder,
        })
    }

    /// The init's process id on this machine.
    pub fn init_pid(&self) -> &str {
        &self.init
    }

    /// The API socket as `DOCKER_HOST` wants it.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// The docker CLI against this host.
    pub fn cli(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(words).env("DOCKER_HOST", self.docker_host()).env("DOCKER_CONFIG", &self.cli);
        command
    }

    /// What a docker command prints.
    ///
    /// # Errors
    /// When the CLI ends with another status than 0; the error holds all that it said.
    pub fn docker(&self, words: &[&str]) -> Result<String> {
        run(&mut self.cli(words)).with_context(|| format!("on {}", self.name))
    }

    /// Like [`Host::docker`], the words split at spaces.
    pub fn dk(&self, line: &str) -> Result<String> {
        self.docker(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Status and output of a docker command that may fail.
    pub fn try_docker(&self, words: &[&str]) -> Result<Output> {
        output(&mut self.cli(words))
    }

    /// A command as if typed on the host.
    pub fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-n", "-u", "-i", "-m", "-p", "--"]).args(words);
        command
    }

    /// What a command on the host prints.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        run(&mut self.inside(words)).with_context(|| format!("on {}", self.name))
    }

    /// Like [`Host::exec`], the words split at spaces.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.exec(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        let mut daemon =
            self.daemon().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let answered = wait_until(DAEMON_MAX, || {
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon of {} ended: {status}\n{}", self.name, self.log_tail(15));
            }
            Ok(self.answers())
        });
        std::thread::spawn(move || daemon.wait());
        answered.with_context(|| {
            format!("the daemon of {} did not come up\n{}", self.name, self.log_tail(15))
        })
    }

    fn daemon(&self) -> Command {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut words = vec![self.program.display().to_string()];
        if self.engine == Engine::Skep {
            words.push("daemon".into());
        } else {
            words.extend(["--config-file".into(), at("daemon.json")]);
            words.extend(["--storage-driver".into(), "overlay2".into()]);
        }
        words.extend(["-H".into(), self.docker_host(), "--data-root".into(), at("data")]);
        words.extend(["--exec-root".into(), at("exec"), "--pidfile".into(), at("pid")]);
        words.extend(self.arguments.iter().cloned());
        self.inside(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Does the API answer?
    pub fn answers(&self) -> bool {
        let socket = self.folder.join("docker.sock");
        run(Command::new("curl")
            .args(["-sf", "--max-time", "2", "--unix-socket"])
            .arg(socket)
            .arg("http://d/_ping"))
        .is_ok()
    }

    /// The daemon's process id as the host sees it.
    pub fn daemon_pid(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("pid"))?.trim().to_owned())
    }

    /// Ends the daemon with SIGTERM and waits for it.
    pub fn stop(&self) -> Result<()> {
        let pid = self.daemon_pid()?;
        self.exec(&["kill", "-TERM", &pid])?;
        self.wait_for_end(&pid)
    }

    /// Ends the daemon with SIGKILL and waits for it.
    pub fn kill(&self) -> Result<()> {
        let pid = self.daemon_pid()?;
        self.exec(&["kill", "-KILL", &pid])?;
        self.wait_for_end(&pid)
    }

    fn wait_for_end(&self, pid: &str) -> Result<()> {
        wait_until(DAEMON_MAX, || {
            Ok(!output(&mut self.inside(&["kill", "-0", pid]))?.status.success())
        })
        .with_context(|| format!("the daemon of {} does not end", self.name))
    }

    /// Takes the host's cable out.
    pub fn cut(&self) -> Result<()> {
        command::sh(&format!("ip -n {} link set h{} down", self.router, self.number)).map(drop)
    }

    /// Puts the host's cable back.
    pub fn heal(&self) -> Result<()> {
        command::sh(&format!("ip -n {} link set h{} up", self.router, self.number)).map(drop)
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Asks every 50 ms until the answer is yes.
///
/// # Errors
/// The question's own error, or that `limit` has passed.
pub fn wait_until(limit: Duration, mut question: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        if question()? {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("not so after {:.0} s", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
