//! `lab`: labs by hand, and the helpers that a lab starts (host init, DNS responder, guard).

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lab::command::sh;
use lab::{Engine, Lab, Plan};

const USAGE: &str = "usage: lab up [HOSTS] [--routed] [--ipv6] [--with-dockerd|--dockerd|--engines skep,dockerd,...] [--swarm]   make hosts and leave them up
       lab down FOLDER                                             take them down";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["up", options @ ..] => up(options),
        ["down", folder] => lab::lab::down(Path::new(folder)),
        ["guard", folder] => lab::guard::main(Path::new(folder)),
        ["names", _folder] => names(),
        ["host-init", folder, name, gateway] => host_init(Path::new(folder), name, gateway),
        _ => bail!("{USAGE}"),
    }
}

fn up(options: &[&str]) -> Result<()> {
    let hosts = options.iter().find_map(|word| word.parse().ok()).unwrap_or(2);
    let mut plan = Plan::skep(hosts)?;
    plan.routed = options.contains(&"--routed");
    plan.ipv6 = options.contains(&"--ipv6");
    if options.contains(&"--dockerd") {
        plan.engines = vec![Engine::Dockerd; hosts];
    }
    if options.contains(&"--with-dockerd") {
        plan.engines.push(Engine::Dockerd);
    }
    if let Some(at) = options.iter().position(|word| *word == "--engines") {
        let list =
            options.get(at + 1).with_context(|| format!("--engines wants a list\n{USAGE}"))?;
        plan.engines = list.split(',').map(engine).collect::<Result<_>>()?;
    }
    let lab = Lab::up(&plan)?;
    lab.import_httpd("httpd:latest")?;
    if options.contains(&"--swarm") {
        lab.swarm(1)?;
    }
    for host in &lab.hosts {
        println!("export DOCKER_HOST={}   # {} {}", host.docker_host(), host.name, host.address);
        println!("nsenter -t {} -n -u -i -m -p   # a shell on {}", host.init_pid(), host.name);
    }
    println!("lab down {}", lab.keep()?.display());
    Ok(())
}

fn engine(name: &str) -> Result<Engine> {
    match name {
        "skep" => Ok(Engine::Skep),
        "dockerd" => Ok(Engine::Dockerd),
        other => bail!("{other:?} is no engine: skep or dockerd"),
    }
}

/// PID 1 of a host: its own /sys, /run parts, names and hosts file; then it reaps for ever.
fn host_init(folder: &Path, name: &str, gateway: &str) -> Result<()> {
    sh(&format!("hostname {name}"))?;
    let cgroups = folder.join("cg");
    for made in [&cgroups, &folder.join("etc-docker")] {
        fs::create_dir_all(made)?;
    }
    let at = |name: &str| folder.join(name).display().to_string();
    // A fresh sysfs shows this network namespace; the cgroup tree is carried over to it.
    sh(&format!("mount --rbind /sys/fs/cgroup {}", cgroups.display()))?;
    sh("mount -t sysfs sysfs /sys")?;
    sh(&format!("mount --rbind {} /sys/fs/cgroup", cgroups.display()))?;
    sh(&format!("umount -l {}", cgroups.display()))?;
    // Where the kernel has AppArmor, its profiles are listed below the new /sys, too.
    if Path::new("/sys/module/apparmor").exists() {
        sh("mount -t securityfs securityfs /sys/kernel/security")?;
    }
    for private in ["/run/docker", "/run/containerd"] {
        fs::create_dir_all(private)?;
        sh(&format!("mount -t tmpfs tmpfs {private}"))?;
    }
    fs::create_dir_all("/etc/docker")?;
    sh(&format!("mount --bind {} /etc/docker", at("etc-docker")))?;
    fs::write(folder.join("resolv.conf"), format!("nameserver {gateway}\n"))?;
    fs::write(folder.join("hosts"), format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
    sh(&format!("mount --bind {} /etc/resolv.conf", at("resolv.conf")))?;
    sh(&format!("mount --bind {} /etc/hosts", at("hosts")))?;
    // One child that never ends, so that waiting for any child blocks.
    let mut anchor = Command::new("sleep").arg("infinity").spawn()?;
    fs::write(folder.join("ready"), "")?;
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
    anchor.kill().context("the host's init had nothing left to wait for")
}

/// Answers every question with NXDOMAIN at once.
fn names() -> Result<()> {
    let socket = UdpSocket::bind(("::", 53))?;
    let mut question = [0u8; 4096];
    loop {
        let (length, asker) = socket.recv_from(&mut question)?;
        if let Some(answer) = nxdomain(&question[..length]) {
            // An asker that is gone already is no reason to stop answering the others.
            if let Err(error) = socket.send_to(&answer, asker) {
                eprintln!("{asker}: {error}");
            }
        }
    }
}

/// QR and RA set, RD copied, RCODE 3, the question repeated, no further records (RFC 1035 section 4.1).
fn nxdomain(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    let asked = question.get(12..end + 5)?;
    let mut answer = vec![question[0], question[1], 0x80 | question[2] & 0x79, 0x83, 0, 1];
    answer.extend([0; 6]);
    answer.extend(asked);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_gets_its_own_name_back_as_unknown() {
        let mut question = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let answer = nxdomain(&question).expect("a well-formed question");
        assert_eq!(&answer[..4], &[7, 9, 0x81, 0x83]);
        assert_eq!(&answer[12..], &question[12..]);
        question.truncate(13);
        assert_eq!(nxdomain(&question), None);
    }

    #[test]
    fn usage_names_both_commands() {
        assert!(USAGE.contains("lab up") && USAGE.contains("lab down"));
    }
}
