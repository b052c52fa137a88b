//! Containers for tests: a busybox root file system of the test's own, and what is often done with it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::runtime::*;
use tokio::io::AsyncReadExt;

/// A runtime of its own under a temporary directory; containers left over are removed at the end.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub runtime: Runtime,
}

pub const WAIT: Duration = Duration::from_secs(30);

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for sub in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))
            .expect("busybox-static is installed");
        for name in [
            "sh", "cat", "echo", "sleep", "id", "ls", "stty", "tty", "true", "mount", "unshare",
            "ulimit", "kill", "ps", "env", "pwd", "grep", "head", "dd", "tail", "chmod", "ping",
            "mknod", "readlink", "yes", "stat",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\naudio:x:29:web\n").unwrap();
        let runtime = Bench::runtime(dir.path());
        Bench { dir, runtime }
    }

    pub fn runtime(dir: &std::path::Path) -> Runtime {
        Runtime::new(Config {
            exec_root: dir.join("exec"),
            shim_exe: PathBuf::from(env!("CARGO_BIN_EXE_runtime-shim")),
            cgroup_parent: format!("/skep-test-{}", std::process::id()),
            init_program: None,
        })
        .unwrap()
    }

    pub fn spec(&self, args: &[&str]) -> ContainerSpec {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id =
            format!("{:032x}{:032x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ContainerSpec {
            rootfs: self.dir.path().join("rootfs"),
            args: args.iter().map(|a| a.to_string()).collect(),
            hostname: "box".into(),
            log: LogConfig {
                path: self.dir.path().join(format!("{id}-json.log")),
                max_file: 1,
                ..Default::default()
            },
            id,
            ..Default::default()
        }
    }

    /// Runs to the end; the exit code and everything written to stdout and stderr.
    pub async fn run(&self, spec: &ContainerSpec) -> (i32, String) {
        let everything = AttachOptions { stdin: false, stdout: true, stderr: true };
        let attach = self.runtime.attach(&spec.id, everything);
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&spec.id).await.unwrap();
        let output = read_frames(attach.ready().await.unwrap(), spec.tty).await;
        let status =
            tokio::time::timeout(WAIT, self.runtime.wait(&spec.id)).await.unwrap().unwrap();
        self.runtime.delete(&spec.id).await.unwrap();
        (status.code, output)
    }

    pub async fn start(&self, spec: &ContainerSpec) {
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&spec.id).await.unwrap();
    }

    pub async fn end(&self, spec: &ContainerSpec) -> ExitStatus {
        let _ = self.runtime.kill(&spec.id, 9).await;
        let status =
            tokio::time::timeout(WAIT, self.runtime.wait(&spec.id)).await.unwrap().unwrap();
        self.runtime.delete(&spec.id).await.unwrap();
        status
    }

    /// Runs a command in the container: exit code and output.
    pub async fn exec(&self, spec: &ContainerSpec, exec: ExecSpec) -> (i32, String) {
        let everything = AttachOptions { stdin: false, stdout: true, stderr: true };
        let attach = self.runtime.attach_exec(&spec.id, &exec.id, everything);
        self.runtime.exec(&spec.id, &exec).await.unwrap();
        let output = read_frames(attach.ready().await.unwrap(), exec.tty).await;
        let status = tokio::time::timeout(WAIT, self.runtime.exec_wait(&spec.id, &exec.id))
            .await
            .unwrap()
            .unwrap();
        (status.code, output)
    }

    pub async fn logs(&self, spec: &ContainerSpec, tail: Option<usize>) -> String {
        let options = LogOptions { stdout: true, stderr: true, tail, ..Default::default() };
        let mut reader =
            LogReader::open(&spec.log, options, tokio::sync::watch::channel(true).1).unwrap();
        let mut text = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            text.extend(entry.line);
        }
        String::from_utf8(text).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ =
                std::fs::remove_dir(entry.path().join(format!("skep-test-{}", std::process::id())));
        }
    }
}

pub fn exec(id: &str, args: &[&str]) -> ExecSpec {
    ExecSpec {
        id: id.into(),
        args: args.iter().map(|a| a.to_string()).collect(),
        ..Default::default()
    }
}

pub async fn read_frames(mut stream: tokio::net::UnixStream, raw: bool) -> String {
    let mut data = Vec::new();
    tokio::time::timeout(WAIT, stream.read_to_end(&mut data)).await.unwrap().unwrap();
    if raw {
        return String::from_utf8_lossy(&data).into_owned();
    }
    let mut text = Vec::new();
    let mut rest = &data[..];
    while let [1 | 2, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        text.extend_from_slice(&tail[..length]);
        rest = &tail[length..];
    }
    assert!(rest.is_empty(), "the stream ends between frames");
    String::from_utf8_lossy(&text).into_owned()
}
