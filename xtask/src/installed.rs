//! The package and the tarball in a clean Debian without Rust: they install there, and the
//! walk-through runs from them. And a clean Debian with Rust alone, where the README is typed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use lab::command::{run, sh};
use lab::lab::NEEDS;

use crate::{dist, suite, tidy};

/// The release that the clean root is made of.
const SUITE: &str = "bookworm";
/// What a demo is asked for there: what the other walk-throughs of the suite leave out.
const DEMO: &[&str] = &["demo", "--hosts", "3", "--ipv6"];
/// What a Rust installation itself asks for, and what a clone needs.
const BESIDE_RUST: &[&str] = &["ca-certificates", "gcc", "libc6-dev"];
/// Where the toolchain lies on the machine with Rust alone.
const RUST: &str = "/opt/rust";
/// Runs with a root of its own, as on a machine of its own: who enters one of the hosts' mount
/// namespaces later gets that namespace's root, which a mere chroot would leave the machine's.
/// A folder named by TOOLCHAIN is seen in it, read-only.
const ENTER: &str = "set -e; root=$1; shift; mount --bind \"$root\" \"$root\"; cd \"$root\"; \
    if [ \"$TOOLCHAIN\" ]; then mkdir -p opt/rust; mount --bind -o ro \"$TOOLCHAIN\" opt/rust; fi; \
    mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; \
    mount -t tmpfs tmpfs run; mkdir -p run/lock; mount -t tmpfs tmpfs tmp; \
    pivot_root . mnt; umount -l /mnt; cd /; exec \"$@\"";

/// Packs the binary that the suite has built and proves the package. `SKEP_BIN` names another one,
/// for example that of `cargo xtask dist`.
pub fn main() -> Result<()> {
    lab::interrupt::listen()?;
    let built = suite::target_folder()?;
    let target = built.parent().context("no target folder")?;
    let binary = std::env::var_os("SKEP_BIN").map_or(built.join("skep"), PathBuf::from);
    let release = dist::pack(&binary, &target.join("dist-test"))?;
    let root = clean_root(&target.join("clean-root"))?;
    let package = format!("/opt/{}", file_name(&release.package)?);
    fs::copy(&release.package, inside(&root, &package))?;
    // What runs the walk-through is not part of the package, and needs nothing but libc either.
    for tool in ["xtask", "lab"] {
        fs::copy(built.join(tool), root.join("opt").join(tool))?;
    }
    let cargo = run(&mut enter(&root, &["sh", "-c", "command -v cargo rustc gcc skep"]));
    if let Ok(found) = cargo {
        bail!("the clean root is not clean: {found}");
    }
    // Recommends, a docker command, are in the root already.
    run(&mut enter(&root, &["dpkg", "--install", &package]))?;
    let outcome = check(&root);
    run(&mut enter(&root, &["dpkg", "--purge", "skep"]))?;
    outcome?;
    unpacked(&root, &release.tarball)
}

/// The tarball brings the package's files and nothing else, and its program runs.
fn unpacked(root: &Path, tarball: &Path) -> Result<()> {
    let archive = format!("/opt/{}", file_name(tarball)?);
    fs::copy(tarball, inside(root, &archive))?;
    // As the README says; into a folder of its own, to compare it with what was packed.
    let folder = "/opt/unpacked";
    run(&mut enter(root, &["rm", "-rf", folder]))?;
    run(&mut enter(root, &["mkdir", folder]))?;
    run(&mut enter(root, &["tar", "-C", folder, "-xzf", &archive]))?;
    let packed = tarball.parent().context("no folder")?.join("root");
    run(Command::new("diff")
        .args(["-r", "--exclude=DEBIAN"])
        .arg(packed)
        .arg(inside(root, folder)))
    .context("the tarball differs from the package")?;
    let said = run(&mut enter(root, &[&format!("{folder}/usr/bin/skep"), "version"]))?;
    println!("unpacked in a clean root: {said}");
    Ok(())
}

/// The README's first command, typed in a clone of what is committed, on a machine with nothing but
/// Rust. The root is made anew each time, because the command installs what it needs there.
/// `FRESH_DEBIAN` names another release than the package's.
pub fn fresh() -> Result<()> {
    lab::interrupt::listen()?;
    let target = suite::target_folder()?;
    let root = target.parent().context("no target folder")?.join("fresh-root");
    let release = std::env::var("FRESH_DEBIAN").unwrap_or(SUITE.into());
    debootstrap(&root, &release, BESIDE_RUST)?;
    let sources = root.join("opt/skep");
    run(Command::new("git").args(["clone", "--quiet"]).arg(tidy::workspace()).arg(&sources))?;
    // The way to the package registries is this machine's: its resolver and whom it trusts.
    for file in ["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"] {
        fs::copy(Path::new("/").join(file), root.join(file)).with_context(|| file.to_owned())?;
    }
    let typed = first_command(&fs::read_to_string(sources.join("README.md"))?)?;
    println!("typing {typed:?} in {}", root.display());
    let line = format!("cd /opt/skep && {typed}");
    let mut machine = enter(&root, &["sh", "-c", &line]);
    machine.env("TOOLCHAIN", sh("rustc --print sysroot")?).env("HOME", "/root");
    machine.env("PATH", format!("{RUST}/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
    for name in std::env::vars_os().map(|variable| variable.0) {
        if name.to_string_lossy().starts_with("CARGO") || name == "SKEP_BIN" {
            machine.env_remove(name);
        }
    }
    let status = machine.status()?;
    lab::interrupt::check()?;
    if !status.success() {
        bail!("{typed} on a machine with nothing but Rust: {status}");
    }
    fs::remove_dir_all(&root).with_context(|| root.display().to_string())
}

/// The first line that a reader is told to type, without what is said about it.
fn first_command(readme: &str) -> Result<String> {
    let typed = readme.lines().find_map(|line| line.strip_prefix("    cargo ")).map(|rest| {
        let words = rest.split('#').next().unwrap_or_default();
        format!("cargo {}", words.trim())
    });
    typed.context("README.md tells nobody to type cargo")
}

fn check(root: &Path) -> Result<()> {
    for file in [
        "/usr/bin/skep",
        "/usr/lib/systemd/system/skep.service",
        "/usr/lib/systemd/system/skep.socket",
        "/usr/share/bash-completion/completions/skep",
        "/usr/share/man/man8/skep-daemon.8",
    ] {
        if fs::metadata(inside(root, file)).map_or(0, |found| found.len()) == 0 {
            bail!("the package has no {file}");
        }
    }
    let said = run(&mut enter(root, &["skep", "version"]))?;
    println!("installed in a clean root: {said}");
    let words = [&["/opt/xtask"], DEMO].concat();
    let mut demo = enter(root, &words);
    let status = demo.env("SKEP_BIN", "/usr/bin/skep").status()?;
    lab::interrupt::check()?;
    if !status.success() {
        bail!("the walk-through from the package: {status}");
    }
    Ok(())
}

/// A Debian with the demo's own programs and nothing else, made once.
fn clean_root(folder: &Path) -> Result<PathBuf> {
    if folder.join("opt/made").exists() {
        return Ok(folder.to_path_buf());
    }
    let mut packages: Vec<&str> = NEEDS.iter().map(|need| need.1).collect();
    // The Docker Engine's package holds the docker command.
    packages.sort_unstable();
    packages.dedup();
    debootstrap(folder, SUITE, &packages)?;
    fs::write(folder.join("opt/made"), "")?;
    Ok(folder.to_path_buf())
}

/// A Debian with the named packages and what every Debian has, in place of what was there.
pub fn debootstrap(folder: &Path, release: &str, packages: &[&str]) -> Result<()> {
    println!("making a clean Debian {release} in {}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    run(Command::new("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={}", packages.join(",")))
        .arg(release)
        .arg(folder)
        .arg(mirror()?))?;
    Ok(())
}

/// The mirror that this machine's apt uses.
fn mirror() -> Result<String> {
    let known = sh("apt-get indextargets --format $(REPO_URI)")?;
    let site = known.lines().find(|line| line.trim_end_matches('/').ends_with("/debian"));
    Ok(site.map_or("http://deb.debian.org/debian".into(), str::to_owned))
}

fn enter(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
    command.arg(root).args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LC_ALL", "C.UTF-8").env_remove("TMPDIR");
    command
}

fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn file_name(path: &Path) -> Result<String> {
    Ok(path.file_name().context("no name")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_readme_tells_to_type_first_is_the_demo() -> Result<()> {
        let readme = fs::read_to_string(tidy::workspace().join("README.md"))?;
        assert_eq!(first_command(&readme)?, "cargo xtask demo");
        assert!(first_command("# skep\n\n    apt install skep\n").is_err());
        Ok(())
    }
}
