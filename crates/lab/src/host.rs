//! One host of a lab: its namespaces, its engine, the docker CLI against it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{self, output, run};
use crate::plan::{Engine, Plan};
use crate::{cable, guard, interrupt};

/// How long a daemon may take to answer after its start, or to end after SIGTERM.
const DAEMON_MAX: Duration = Duration::from_secs(60);
/// How long a host's init may take to come or to go.
const BOOT_MAX: Duration = Duration::from_secs(30);
/// The file with the init's process id.
const INIT: &str = "init-pid";

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
    namespace: String,
    plan: Plan,
}

impl Host {
    /// Makes the host's cable and starts its init in fresh namespaces.
    pub(crate) fn up(number: usize, lab: &str, folder: &Path, plan: &Plan) -> Result<Host> {
        let host = Host {
            number,
            name: format!("sathish-vm{number}"),
            address: plan.address(number),
            engine: plan.engines[number - 1],
            cli: folder.join("cli"),
            router: format!("{lab}-r"),
            namespace: format!("{lab}-h{number}"),
            plan: plan.clone(),
            folder: folder.join(format!("h{number}")),
        };
        fs::create_dir_all(&host.folder)?;
        fs::write(host.folder.join("daemon.json"), "{}\n")?;
        guard::note(folder, "namespaces", &host.namespace)?;
        host.boot()?;
        Ok(host)
    }

    /// From no power to a running init.
    fn boot(&self) -> Result<()> {
        cable::host_up(&self.router, &self.namespace, self.number, &self.plan)?;
        let mut init = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .args(["unshare", "-m", "-u", "-i", "-p", "-f", "--mount-proc"])
            .args(["--propagation", "private"])
            .arg(&self.plan.lab)
            .arg("host-init")
            .arg(&self.folder)
            .args([&self.name, &self.plan.gateway(self.number)])
            .stdin(Stdio::null())
            .stdout(fs::File::create(self.folder.join("init.log"))?)
            .stderr(fs::File::create(self.folder.join("init.err"))?)
            .spawn()
            .context("cannot start a host's init")?;
        let ready = self.folder.join("ready");
        wait_until(BOOT_MAX, || Ok(ready.exists())).with_context(|| {
            let said = fs::read_to_string(self.folder.join("init.err")).unwrap_or_default();
            format!("{} did not come up: {}", self.name, said.trim())
        })?;
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id()))?;
        let pid = children.split_whitespace().next().context("the host's init is gone")?;
        fs::write(self.folder.join(INIT), pid)?;
        // The outer process ends with the init that it waits for.
        std::thread::spawn(move || init.wait());
        Ok(())
    }

    /// Switches the host off: all that runs on it ends at once, and what lay in memory is gone.
    pub fn power_off(&self) -> Result<()> {
        let init = self.init_pid();
        command::sh(&format!("kill -KILL {init}"))?;
        wait_until(BOOT_MAX, || Ok(!Path::new(&format!("/proc/{init}")).exists()))
            .with_context(|| format!("{} does not end", self.name))?;
        command::sh(&format!("ip -n {} link del h{}", self.router, self.number))?;
        command::sh(&format!("ip netns del {}", self.namespace))?;
        for file in ["ready", "pid", "docker.sock", INIT] {
            remove(fs::remove_file(self.folder.join(file)))?;
        }
        remove(fs::remove_dir_all(self.folder.join("exec")))
    }

    /// Switches the host on again; its engine starts as after any boot.
    pub fn power_on(&self) -> Result<()> {
        self.boot()?;
        self.start()
    }

    /// The init's process id on this machine; empty while the host is off.
    pub fn init_pid(&self) -> String {
        fs::read_to_string(self.folder.join(INIT)).unwrap_or_default()
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
        command.args(["-t", &self.init_pid(), "-n", "-u", "-i", "-m", "-p", "--"]).args(words);
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

    /// Does `work` on a thread in the network namespace that `file` (as the host sees it) keeps;
    /// sockets made there stay there.
    ///
    /// # Errors
    /// When the file keeps no namespace, and the work's own.
    pub fn within<T: Send>(
        &self,
        file: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        within(&format!("/proc/{}/root{file}", self.init_pid()), work)
    }

    /// The file of a running container's network namespace, as the host sees it.
    pub fn netns_of(&self, container: &str) -> Result<String> {
        self.docker(&["inspect", "-f", "{{.NetworkSettings.SandboxKey}}", container])
    }

    /// One request to the API: status and body.
    pub fn api(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let socket = self.folder.join("docker.sock");
        let answer = run(Command::new("curl")
            .args(["-sS", "--max-time", "30", "-w", "\n%{http_code}", "-X", method])
            .args(["-H", "Content-Type: application/json", "-d", body, "--unix-socket"])
            .arg(socket)
            .arg(format!("http://d{path}")))?;
        let (body, status) = answer.rsplit_once('\n').context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[], &[])
    }

    /// The same with further options, and variables in the daemon's environment.
    pub fn start_with(&self, options: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        let mut daemon = self
            .daemon(options)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
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

    /// The daemon's command line on this host, ready to be started.
    pub fn daemon(&self, options: &[&str]) -> Command {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut words = Vec::new();
        if self.engine == Engine::Skep {
            words.extend([self.plan.skep.display().to_string(), "daemon".into()]);
            words.extend(self.plan.daemon_args.iter().cloned());
        } else {
            words.push("dockerd".into());
        }
        words.extend(["--config-file".into(), at("daemon.json")]);
        if self.engine == Engine::Dockerd {
            words.extend(["--storage-driver".into(), "overlay2".into()]);
            // systemd, where it has booted the machine, does not know a host's process ids.
            words.extend(["--exec-opt".into(), "native.cgroupdriver=cgroupfs".into()]);
        }
        words.extend(["-H".into(), self.docker_host(), "--data-root".into(), at("data")]);
        words.extend(["--exec-root".into(), at("exec"), "--pidfile".into(), at("pid")]);
        words.extend(options.iter().map(|word| (*word).to_owned()));
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

/// What is gone already needs no removal.
fn remove(outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// See [`Host::within`]; `file` as this process sees it.
pub fn within<T: Send>(file: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = fs::File::open(file).with_context(|| file.to_owned())?;
            let fd = std::os::fd::AsFd::as_fd(&namespace);
            move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("the work in {file} panicked"))
    })
}

/// Asks every 50 ms until the answer is yes. `LAB_PATIENCE=5` makes every limit five times as long, for
/// a machine that is emulated.
///
/// # Errors
/// The question's own error, or that `limit` has passed.
pub fn wait_until(limit: Duration, mut question: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    let patience = std::env::var("LAB_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    let limit = limit * patience.unwrap_or(1);
    loop {
        interrupt::check()?;
        if question()? {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("not so after {:.0} s", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
