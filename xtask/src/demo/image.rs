//! The service's image: made on the spot, or one that the user names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Lab;
use lab::command::run;
use lab::host::wait_until;

const PULL_START_MAX: Duration = Duration::from_secs(60);

/// Gives every host the image; the answer is its name in the service.
pub fn provide(lab: &Lab, image: Option<&str>) -> Result<String> {
    let Some(image) = image else {
        lab.import_httpd("httpd:latest")?;
        return Ok("httpd".into());
    };
    let (archive, reference) = match image.split_once('=') {
        Some((archive, reference)) => (PathBuf::from(archive), reference),
        None => (fetch(lab, image)?, image),
    };
    let archive = archive.display().to_string();
    for host in &lab.hosts {
        println!("{}: {}", host.name, host.docker(&["load", "-i", &archive])?);
    }
    Ok(reference.to_owned())
}

/// From the engine that the user's docker command speaks to, if it has the image; the hosts
/// themselves lead nowhere. Else pulled by a skep on this machine's own network, which it only uses.
fn fetch(lab: &Lab, reference: &str) -> Result<PathBuf> {
    let archive = lab.folder.join("image.tar");
    let target = archive.display().to_string();
    let save = ["save", "-o", &target, reference];
    if run(Command::new("docker").args(["image", "inspect", reference])).is_ok() {
        println!("taking {reference} from the engine of your docker command");
        run(Command::new("docker").args(save))?;
        return Ok(archive);
    }
    println!("pulling {reference}");
    let folder = lab.folder.join("pull");
    fs::create_dir_all(&folder)?;
    let mut daemon = daemon(lab, &folder)?;
    let outcome = pull(lab, &folder, reference, &save);
    run(Command::new("kill").args(["-TERM", &daemon.id().to_string()]))?;
    daemon.wait()?;
    outcome.with_context(|| {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        format!("cannot get the image {reference}; {}", log.lines().last().unwrap_or_default())
    })?;
    Ok(archive)
}

fn daemon(lab: &Lab, folder: &Path) -> Result<std::process::Child> {
    let log = fs::File::create(folder.join("log"))?;
    let at = |name: &str| folder.join(name);
    // Its mounts stay its own.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(&lab.plan.skep).arg("daemon");
    command.args(["--bridge", "none", "-H"]).arg(format!("unix://{}", at("docker.sock").display()));
    command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
    command.arg("--pidfile").arg(at("pid"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("cannot start skep")
}

fn pull(lab: &Lab, folder: &Path, reference: &str, save: &[&str]) -> Result<()> {
    let docker = |words: &[&str]| {
        let mut command = Command::new("docker");
        command.args(words).env("DOCKER_CONFIG", lab.folder.join("cli"));
        command.env("DOCKER_HOST", format!("unix://{}", folder.join("docker.sock").display()));
        command
    };
    wait_until(PULL_START_MAX, || {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.contains("failed to start daemon") {
            bail!("{log}");
        }
        Ok(run(&mut docker(&["version"])).is_ok())
    })?;
    lab::terminal::run(&mut docker(&["pull", reference]))?;
    run(&mut docker(save)).map(drop)
}
