//! Installs what building, the demo and the tests need, and nothing that is there already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lab::lab::on_path;

/// Files that a build needs, and the packages they come in.
const FILES: &[(&str, &str)] = &[("/usr/include/seccomp.h", "libseccomp-dev")];

/// Programs beyond the lab's own that the tests use.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("docker-registry", "docker-registry"),
    ("runc", "runc"),
    ("openssl", "openssl"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("ping", "iputils-ping"),
    ("dockerd", "docker.io"),
    ("strip", "binutils"),
    ("pgrep", "procps"),
    ("debootstrap", "debootstrap"),
    ("faketime", "faketime"),
    ("zstd", "zstd"),
];

/// A package's own start-up script asks this file whether it may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the missing packages; without root or without apt, says which ones they are. Since
/// Debian 13 the docker command is a package beside docker.io, which brought it before.
pub fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    let root = lab::command::sh("id -u")? == "0";
    if !root || !on_path("apt-get") {
        bail!("these packages are missing, install them as root: {}", missing.join(" "));
    }
    let policy = refuse_services()?;
    let outcome = apt(&["update", "-qq"]).and_then(|()| {
        let mut packages = missing.clone();
        if !on_path("docker") && lab::command::sh("apt-cache show docker-cli").is_ok() {
            packages.push("docker-cli");
        }
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages.as_slice()].concat())
    });
    if policy {
        fs::remove_file(POLICY)?;
    }
    outcome
}

fn missing() -> Vec<&'static str> {
    let programs = lab::lab::NEEDS.iter().chain(PROGRAMS).filter(|need| !on_path(need.0));
    let files = FILES.iter().filter(|need| !Path::new(need.0).exists());
    let mut packages: Vec<&str> = programs.chain(files).map(|need| need.1).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// No package may start an engine of its own here. True when the file is ours to remove again.
fn refuse_services() -> Result<bool> {
    if Path::new(POLICY).exists() {
        return Ok(false);
    }
    fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
    Ok(true)
}

fn apt(words: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", words.join(" "));
    }
    Ok(())
}
