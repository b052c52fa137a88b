//! A lab that stands: its hosts, and the way to take it down.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::command::run;
use crate::guard::{Guard, note};
use crate::host::Host;
use crate::plan::{Engine, Plan};
use crate::{cable, image};

/// Programs that a lab cannot do without, and the Debian packages they are in.
pub const NEEDS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("sysctl", "procps"),
    ("curl", "curl"),
    ("busybox", "busybox-static"),
    ("tcpdump", "tcpdump"),
    ("nft", "nftables"),
    ("docker", "docker.io"),
];

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Hosts, router and files; all of it goes when this is dropped.
pub struct Lab {
    pub hosts: Vec<Host>,
    pub router: String,
    pub folder: PathBuf,
    pub httpd_tar: PathBuf,
    pub plan: Plan,
    guard: Option<Guard>,
}

impl Lab {
    /// Makes the hosts and starts their engines, without a swarm.
    ///
    /// # Errors
    /// When not root, when a program is missing, or when a host or daemon does not come up; what was
    /// made until then is removed.
    pub fn up(plan: &Plan) -> Result<Lab> {
        check_machine(plan)?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("skep{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(folder.join("cli"))?;
        // Containers with other users must be able to reach their bind mounts.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let guard = Some(Guard::start(&plan.lab, &folder)?);
        let router = format!("{name}-r");
        let mut lab = Lab {
            hosts: Vec::new(),
            router,
            httpd_tar: image::httpd(&folder)?,
            plan: plan.clone(),
            folder,
            guard,
        };
        note(&lab.folder, "namespaces", &lab.router)?;
        cable::router_up(&lab.router, plan)?;
        lab.start_names(&plan.lab)?;
        for number in 1..=plan.engines.len() {
            lab.hosts.push(Host::up(number, &name, &lab.folder, plan)?);
        }
        for host in &lab.hosts {
            host.start()?;
        }
        Ok(lab)
    }

    /// Host `number`, counted from 1.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// The router's address as a host sees it, from which the world outside asks.
    pub fn gateway(&self, host: &Host) -> String {
        self.plan.gateway(host.number)
    }

    /// Gives every host the document's image under the name `reference`.
    pub fn import_httpd(&self, reference: &str) -> Result<()> {
        let tar = self.httpd_tar.display().to_string();
        for host in &self.hosts {
            host.docker(&["import", "-c", image::HTTPD_COMMAND, &tar, reference])?;
        }
        Ok(())
    }

    /// Gives every host an image with one more program of the workspace's, under its name.
    pub fn import_program(&self, name: &str, command: &str) -> Result<()> {
        let program = crate::plan::binaries()?.join(name);
        let tar = image::with_program(&self.folder, &program)?.display().to_string();
        for host in &self.hosts {
            host.docker(&["import", "-c", command, &tar, &format!("{name}:latest")])?;
        }
        Ok(())
    }

    /// `swarm init` on host 1, `swarm join` on the others; the first `managers` become managers.
    pub fn swarm(&self, managers: usize) -> Result<()> {
        let first = self.host(1);
        first.docker(&["swarm", "init", "--advertise-addr", &first.address])?;
        for host in &self.hosts[1..] {
            let role = if host.number <= managers { "manager" } else { "worker" };
            let token = first.docker(&["swarm", "join-token", "-q", role])?;
            let manager = format!("{}:2377", first.address);
            host.docker(&[
                "swarm",
                "join",
                "--advertise-addr",
                &host.address,
                "--token",
                &token,
                &manager,
            ])?;
        }
        Ok(())
    }

    /// Takes the lab down and waits for the end of it.
    pub fn down(mut self) -> Result<()> {
        self.guard.take().map_or(Ok(()), Guard::clean_up)
    }

    /// Lets the lab stand after this process; `lab down FOLDER` takes it down.
    pub fn keep(mut self) -> Result<PathBuf> {
        if let Some(guard) = self.guard.take() {
            guard.dismiss()?;
        }
        Ok(self.folder.clone())
    }

    /// A responder in the router answers every question with NXDOMAIN, so that nothing hangs.
    fn start_names(&self, lab: &Path) -> Result<()> {
        let mut names = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.router))
            .arg("setsid")
            .arg(lab)
            .arg("names")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("names.log"))?)
            .spawn()?;
        std::thread::spawn(move || names.wait());
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take()
            && let Err(error) = guard.clean_up()
        {
            eprintln!("lab {}: {error}", self.folder.display());
        }
    }
}

fn check_machine(plan: &Plan) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a lab makes network namespaces: run this as root");
    }
    let missing: Vec<&str> =
        NEEDS.iter().filter(|need| !on_path(need.0)).map(|need| need.1).collect();
    if !missing.is_empty() {
        bail!("missing packages: {} (cargo xtask setup installs them)", missing.join(" "));
    }
    if plan.engines.contains(&Engine::Dockerd) && !on_path("dockerd") {
        bail!(
            "a host with the Docker Engine was asked for, and dockerd is missing: install docker.io"
        );
    }
    for binary in [&plan.skep, &plan.lab] {
        if plan.engines.contains(&Engine::Skep) && !binary.exists() {
            bail!("{} is not built: cargo build --bins", binary.display());
        }
    }
    Ok(())
}

/// Is there such a program?
pub fn on_path(program: &str) -> bool {
    run(Command::new("sh").args(["-c", &format!("command -v {program}")])).is_ok()
}

/// Takes down a lab that was kept.
///
/// # Errors
/// When `folder` is not a lab's.
pub fn down(folder: &Path) -> Result<()> {
    if !folder.join("namespaces").exists() {
        bail!("{} is not the folder of a lab", folder.display());
    }
    crate::guard::clean_up(folder).context("taking the lab down")
}
