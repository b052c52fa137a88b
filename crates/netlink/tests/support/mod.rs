//! Hosts for tests: network namespaces of their own, joined by cables, planned from views.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink::{Kernel, namespace};
use netplan::{View, World, desired, diff};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace under /var/run/netns with a kernel that takes it for the host's.
pub struct Host {
    pub name: String,
    pub directory: PathBuf,
}

impl Host {
    pub fn new(word: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skt-{}-{number}-{word}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let directory = std::env::temp_dir().join(&name);
        let host = Self { name, directory };
        host.ip("link set lo up");
        host
    }

    /// Two hosts on one cable, with addresses 192.0.2.1 and .2.
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Self::new("a"), Self::new("b"));
        a.ip(&format!("link add eth0 type veth peer eth0 netns {}", b.name));
        for (host, n) in [(&a, 1), (&b, 2)] {
            host.ip(&format!("addr add 192.0.2.{n}/24 dev eth0"));
            host.ip("link set eth0 up");
        }
        (a, b)
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    /// Does `work` with a kernel, on a thread in this host's namespace.
    pub fn with<T: Send>(&self, work: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        let directory = self.directory.clone();
        namespace::visit(&self.path(), move || {
            let mut kernel = Kernel::open(&directory)?;
            Ok(work(&mut kernel))
        })
        .expect("work in the host's namespace")
    }

    /// Applies the view to what is there, and says what the second look still finds to do.
    pub fn apply(&self, view: &View) {
        self.with(|kernel| {
            let wanted = desired(view);
            settle(kernel, &wanted);
            let again = diff(&kernel.observe(&wanted), &wanted);
            // A table written by an earlier kernel handle is not known to this one.
            assert!(again.is_empty(), "second difference: {}", text(&again));
        });
    }

    pub fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(arguments.split(' '));
        run("ip", &all);
    }

    /// Runs a program in the host's namespace.
    pub fn exec(&self, line: &str) -> Output {
        nsenter(&self.path(), line)
    }

    /// Runs a program in a sandbox or overlay namespace of this host.
    pub fn exec_in(&self, sandbox: &str, line: &str) -> Output {
        nsenter(&self.directory.join(sandbox), line)
    }

    pub fn spawn_in(&self, sandbox: &str, line: &str) -> Running {
        Running(
            Command::new("nsenter")
                .arg(format!("--net={}", self.directory.join(sandbox).display()))
                .args(["sh", "-c", &format!("exec {line}")])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("nsenter"),
        )
    }
}

pub struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(entries) = std::fs::read_dir(&self.directory) {
            for entry in entries.flatten() {
                let _ = namespace::remove(&entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// One round of the controller: observe, difference, apply; nothing may fail.
pub fn settle(kernel: &mut Kernel, wanted: &World) {
    let observed = kernel.observe(wanted);
    assert!(kernel.unreadable.is_empty(), "{:?}", kernel.unreadable);
    let failures = kernel.apply(&diff(&observed, wanted));
    assert!(failures.is_empty(), "{failures:#?}");
}

pub fn text(steps: &[netplan::Step]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

fn nsenter(path: &std::path::Path, line: &str) -> Output {
    Command::new("nsenter")
        .arg(format!("--net={}", path.display()))
        .args(["sh", "-c", line])
        .output()
        .expect("nsenter")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
