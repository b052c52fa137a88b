//! The process that takes a lab down: when told to, and also when the lab's owner is gone.
//!
//! The owner holds the other end of the guard's standard input. The end of that pipe is the order
//! to clean up, so neither Ctrl-C nor a killed test leaves anything behind.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::sh;

/// How long the guard retries what the kernel still holds busy.
const CLEAN_UP_MAX: Duration = Duration::from_secs(20);

pub struct Guard {
    process: Child,
}

impl Guard {
    /// Starts the guard of the lab in `folder`.
    pub fn start(lab: &Path, folder: &Path) -> Result<Guard> {
        let log = fs::File::create(folder.join("guard.log"))?;
        let process = Command::new("setsid")
            .arg(lab)
            .arg("guard")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", lab.display()))?;
        Ok(Guard { process })
    }

    /// Takes the lab down and waits for the end of it.
    pub fn clean_up(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        self.process.wait()?;
        Ok(())
    }

    /// Lets the lab stand after its owner is gone.
    pub fn dismiss(mut self) -> Result<()> {
        if let Some(mut pipe) = self.process.stdin.take() {
            pipe.write_all(b"keep\n")?;
        }
        self.process.wait()?;
        Ok(())
    }
}

/// Writes down what must be removed with the lab in `folder`, before it is made.
pub fn note(folder: &Path, list: &str, line: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(folder.join(list))?;
    writeln!(file, "{line}").with_context(|| format!("{}: {list}", folder.display()))
}

/// The guard's own life: wait for the order, then clean up unless told to keep.
pub fn main(folder: &Path) -> Result<()> {
    let mut order = String::new();
    // A read error is the end of the pipe as well.
    if std::io::stdin().read_to_string(&mut order).is_ok() && order.trim() == "keep" {
        return Ok(());
    }
    clean_up(folder)
}

/// Ends every process of the lab in `folder` and removes its namespaces, cgroups and files.
pub fn clean_up(folder: &Path) -> Result<()> {
    for pid in helpers(folder) {
        end(&pid);
    }
    // Containers have their own cgroups; these outlive the processes that were in them.
    for container in containers(folder) {
        remove_cgroups(Path::new("/sys/fs/cgroup"), &container, 0);
    }
    for namespace in listed(&folder.join("namespaces")) {
        // A host that is switched off has none.
        if !Path::new("/run/netns").join(&namespace).exists() {
            continue;
        }
        if let Err(error) = sh(&format!("ip netns del {namespace}")) {
            eprintln!("{error}");
        }
    }
    let deadline = Instant::now() + CLEAN_UP_MAX;
    while folder.exists() && fs::remove_dir_all(folder).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn listed(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The inits of the lab's hosts, which take all that runs on them along, and its name server: each
/// was started as `lab host-init FOLDER/hN ...` or `lab names FOLDER`.
fn helpers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_helper(&String::from_utf8_lossy(&line), folder) {
            found.push(pid);
        }
    }
    found
}

fn is_helper(line: &str, folder: &Path) -> bool {
    let words: Vec<&str> = line.split('\0').collect();
    words.windows(2).any(|pair| {
        let path = Path::new(pair[1]);
        (pair[0] == "host-init" && path.parent() == Some(folder))
            || (pair[0] == "names" && path == folder)
    })
}

/// Kills a process and waits for its end.
fn end(pid: &str) {
    if let Err(error) = sh(&format!("kill -KILL {pid}")) {
        eprintln!("{error}");
    }
    let deadline = Instant::now() + CLEAN_UP_MAX;
    while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn containers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for host in fs::read_dir(folder).into_iter().flatten().flatten() {
        for entry in
            fs::read_dir(host.path().join("data/containers")).into_iter().flatten().flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 64 {
                found.push(name);
            }
        }
    }
    found
}

fn remove_cgroups(folder: &Path, container: &str, depth: usize) {
    const DEPTH_MAX: usize = 5;
    let Ok(entries) = fs::read_dir(folder) else { return };
    let folders: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect();
    for path in folders {
        if depth < DEPTH_MAX {
            remove_cgroups(&path, container, depth + 1);
        }
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(container))
            && let Err(error) = fs::remove_dir(&path)
        {
            eprintln!("{}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_ends_the_helpers_of_its_own_lab_only() {
        let ours = |line: &str| is_helper(&line.replace(' ', "\0"), Path::new("/tmp/skep1-0"));
        assert!(ours("/t/lab host-init /tmp/skep1-0/h1 sathish-vm1 192.168.68.1"));
        assert!(ours("unshare -m /t/lab host-init /tmp/skep1-0/h2 sathish-vm2 192.168.68.1"));
        assert!(ours("/t/lab names /tmp/skep1-0"));
        assert!(!ours("/t/lab names /tmp/skep1-01"));
        assert!(!ours("/t/lab host-init /tmp/skep1-01/h1 sathish-vm1 192.168.68.1"));
        assert!(!ours("tail -f /tmp/skep1-0/h1/log"));
    }
}
