//! Clients under way while a case goes on: requests, questions, pings; what each saw is counted.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Host;
use lab::host::wait_until;
use serde_json::Value;

/// Where a client runs.
pub enum From<'a> {
    /// On the host itself, as a client of the mesh does.
    Host(&'a Host),
    /// In the network of a container of the host.
    Container(&'a Host, &'a str),
}

impl From<'_> {
    /// A program of this machine, in the network of the place.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        match self {
            From::Host(host) => command.args(["-t", &host.init_pid(), "-n", "--", program]),
            From::Container(host, name) => {
                let pid = host.dk(&format!("inspect -f {{{{.State.Pid}}}} {name}"))?;
                command.args([
                    "-t",
                    &host.init_pid(),
                    "-p",
                    "-m",
                    "--",
                    "nsenter",
                    "-t",
                    &pid,
                    "-n",
                ]);
                command.args(["--", program])
            }
        };
        Ok(command)
    }
}

/// A client that runs until it is told to end.
pub struct Client {
    what: String,
    process: Child,
}

impl Client {
    /// `load requests MODE RATE ... ADDRESS:PORT`.
    pub fn requests(from: &From, mode: &str, rate: u32, to: &str) -> Result<Client> {
        let rate = rate.to_string();
        Self::start(from, &["requests", mode, &rate, "600", to])
    }

    /// Questions to the resolver of a container.
    pub fn questions(from: &From, rate: u32, names: &[&str]) -> Result<Client> {
        let rate = rate.to_string();
        Self::start(from, &[&["names", "600", &rate], names].concat())
    }

    fn start(from: &From, words: &[&str]) -> Result<Client> {
        let program = lab::plan::binaries()?.join("load").display().to_string();
        let process = from
            .command(&program)?
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{program} is not built: cargo build --bins"))?;
        Ok(Client { what: words.join(" "), process })
    }

    /// Ends it and gives what it counted.
    pub fn end(mut self) -> Result<Value> {
        drop(self.process.stdin.take());
        let mut said = String::new();
        if let Some(mut out) = self.process.stdout.take() {
            out.read_to_string(&mut said)?;
        }
        self.process.wait()?;
        serde_json::from_str(&said).with_context(|| format!("{}: {said:?}", self.what))
    }

    /// Ends it and wants every request answered, `least` at the least.
    pub fn lost_nothing(self, least: u64) -> Result<Value> {
        let what = self.what.clone();
        let report = self.end()?;
        eprintln!("{what}: {report}");
        ensure!(report["failed"] == 0, "{what}: {report}");
        ensure!(report["answered"].as_u64() >= Some(least), "too few: {what}: {report}");
        Ok(report)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It ends with its standard input; this waits for it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The virtual address of a service on a network.
pub fn virtual_address(host: &Host, service: &str, network: &str) -> Result<String> {
    let id = host.dk(&format!("network inspect -f {{{{.Id}}}} {network}"))?;
    let format = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}";
    let list = host.docker(&["service", "inspect", "-f", format, service])?;
    let line = list.lines().find_map(|line| line.strip_prefix(&format!("{id} ")));
    let address = line.and_then(|address| address.split('/').next());
    address.map(str::to_owned).with_context(|| format!("no address of {service} on {network}"))
}

/// Waits until so many tasks of a service run, and none beside them.
pub fn until_running(host: &Host, service: &str, count: usize) -> Result<()> {
    let format = "{{.DesiredState}} {{.CurrentState}}";
    wait_until(Duration::from_secs(60), || {
        let list = host.docker(&["service", "ps", "--format", format, service])?;
        let wanted = list.lines().filter(|line| line.starts_with("Running "));
        let running = wanted.clone().filter(|line| line.starts_with("Running Running")).count();
        Ok(running == count && wanted.count() == count)
    })
    .with_context(|| host.dk(&format!("service ps {service}")).unwrap_or_default())
}
