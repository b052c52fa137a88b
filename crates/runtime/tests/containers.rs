//! Real containers through real shims, on a busybox root file system of the test's own.

mod support;

use std::time::Duration;

use ::runtime::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use support::{Bench, WAIT, exec, read_frames};

#[tokio::test]
async fn output_exit_code_and_log_are_the_commands() {
    let bench = Bench::new();
    let spec = bench.spec(&["sh", "-c", "echo out; echo err >&2; hostname; exit 7"]);
    let (code, output) = bench.run(&spec).await;
    assert_eq!(code, 7);
    assert!(output.contains("out\n") && output.contains("err\n"), "{output}");
    let log = bench.logs(&spec, None).await;
    assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
    let raw = std::fs::read_to_string(&spec.log.path).unwrap();
    assert!(
        raw.lines().next().unwrap().starts_with(r#"{"log":""#)
            && raw.contains(r#"","stream":"stderr","time":"20"#),
        "{raw}"
    );
}

#[tokio::test]
async fn a_missing_command_is_told_as_docker_does_and_leaves_nothing() {
    let bench = Bench::new();
    for (command, kind, text) in [
        (
            "nosuch",
            ErrorKind::CommandNotFound,
            r#"exec: "nosuch": executable file not found in $PATH"#,
        ),
        (
            "/no/such",
            ErrorKind::CommandNotFound,
            r#"exec: "/no/such": stat /no/such: no such file or directory"#,
        ),
        (
            "/etc/passwd",
            ErrorKind::CommandNotExecutable,
            r#"exec: "/etc/passwd": permission denied"#,
        ),
    ] {
        let spec = bench.spec(&[command]);
        let error = bench.runtime.create(&spec).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.text.contains(text), "{error}");
        assert!(!bench.dir.path().join("exec/containers").join(&spec.id).exists());
    }
}

#[tokio::test]
async fn signals_end_it_with_128_and_the_number() {
    let bench = Bench::new();
    let spec =
        bench.spec(&["sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done"]);
    let attach =
        bench.runtime.attach(&spec.id, AttachOptions { stdout: true, ..Default::default() });
    bench.start(&spec).await;
    let mut stream = attach.ready().await.unwrap();
    let mut first = [0; 14];
    stream.read_exact(&mut first).await.unwrap();
    bench.runtime.kill(&spec.id, 10).await.unwrap();
    let status = tokio::time::timeout(WAIT, bench.runtime.wait(&spec.id)).await.unwrap().unwrap();
    assert_eq!(status.code, 5);
    bench.end(&spec).await;
    let spec = bench.spec(&["sleep", "100"]);
    bench.start(&spec).await;
    assert_eq!(bench.end(&spec).await.code, 137);
}

#[tokio::test]
async fn stdin_reaches_the_command_and_its_end_too() {
    let bench = Bench::new();
    let mut spec = bench.spec(&["cat"]);
    spec.open_stdin = true;
    spec.stdin_once = true;
    let attach =
        bench.runtime.attach(&spec.id, AttachOptions { stdin: true, stdout: true, stderr: true });
    bench.start(&spec).await;
    let mut stream = attach.ready().await.unwrap();
    let text = "x".repeat(1_000);
    let (_, mut write) = stream.split();
    write.write_all(text.as_bytes()).await.unwrap();
    write.shutdown().await.unwrap();
    let output = read_frames(stream, false).await;
    assert_eq!(output.len(), 1000);
    assert_eq!(bench.end(&spec).await.code, 0);
}

#[tokio::test]
async fn a_terminal_is_a_terminal_with_a_size() {
    let bench = Bench::new();
    let mut spec = bench.spec(&["sh", "-c", "tty; stty size; ls -l /dev/console"]);
    spec.tty = true;
    spec.console_size = (33, 101);
    let (code, output) = bench.run(&spec).await;
    assert_eq!(code, 0);
    assert!(output.contains("/dev/pts/0") && output.contains("33 101"), "{output}");
}

#[tokio::test]
async fn an_exec_runs_inside_with_its_own_user_terminal_and_code() {
    let bench = Bench::new();
    let spec = bench.spec(&["sleep", "100"]);
    bench.start(&spec).await;
    let (code, output) = bench
        .exec(&spec, exec("e1", &["sh", "-c", "hostname; readlink /proc/1/exe; exit 9"]))
        .await;
    assert_eq!((code, output.as_str()), (9, "box\n/bin/busybox\n"));
    let user = ExecSpec {
        user: "web".into(),
        cwd: "/tmp".into(),
        env: vec!["A=b".into()],
        ..exec("e2", &["sh", "-c", "id; pwd; echo $A $HOME; grep CapEff /proc/self/status"])
    };
    let (_, output) = bench.exec(&spec, user).await;
    assert!(
        output.starts_with("uid=33(web) gid=34(web) groups=29(audio),34(web)\n/tmp\nb /srv\n"),
        "{output}"
    );
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    let terminal = ExecSpec {
        tty: true,
        console_size: (20, 50),
        ..exec("e3", &["sh", "-c", "tty; stty size"])
    };
    let (_, output) = bench.exec(&spec, terminal).await;
    assert!(output.contains("/dev/pts/") && output.contains("20 50"), "{output}");
    let error = bench.runtime.exec(&spec.id, &exec("e4", &["nosuch"])).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{error}");
    let groups = bench.runtime.pids(&spec.id).await.unwrap();
    assert_eq!(groups.len(), 1, "execs have ended");
    bench.end(&spec).await;
}

#[tokio::test]
async fn capabilities_and_seccomp_are_dockers_defaults() {
    let bench = Bench::new();
    let script = "grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp || echo no-mount; unshare -U true || echo no-userns";
    let (_, output) = bench.run(&bench.spec(&["sh", "-c", script])).await;
    assert!(
        output.contains("CapEff:\t00000000a80425fb") && output.contains("Seccomp:\t2"),
        "{output}"
    );
    assert!(output.contains("no-mount") && output.contains("no-userns"), "{output}");
    let spec = bench.spec(&["sleep", "100"]);
    bench.start(&spec).await;
    let (_, inside) = bench.exec(&spec, exec("e", &["sh", "-c", script])).await;
    assert!(
        inside.contains("CapEff:\t00000000a80425fb") && inside.contains("Seccomp:\t2"),
        "{inside}"
    );
    assert!(inside.contains("no-mount") && inside.contains("no-userns"), "{inside}");
    bench.end(&spec).await;
    let mut admin = bench.spec(&["sh", "-c", script]);
    admin.cap_add = vec!["SYS_ADMIN".into()];
    admin.cap_drop = vec!["CHOWN".into()];
    let (_, output) = bench.run(&admin).await;
    assert!(
        output.contains("CapEff:\t00000000a82425fa") && !output.contains("no-mount"),
        "{output}"
    );
    let mut free = bench.spec(&["sh", "-c", script]);
    free.privileged = true;
    let (_, output) = bench.run(&free).await;
    assert!(output.contains("Seccomp:\t0"), "{output}");
}

#[tokio::test]
async fn user_limits_masks_and_mounts_are_as_asked() {
    let bench = Bench::new();
    let volume = bench.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "from the host").unwrap();
    let mut spec = bench.spec(&[
        "sh",
        "-c",
        "id -u; id -g; pwd; ulimit -n; cat /v/file; echo; touch /v/x 2>/dev/null || echo ro-volume; \
         echo x > /rootfile 2>/dev/null || echo ro-root; echo x > /t/f && echo tmpfs-ok; \
         head -c1 /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic || echo ro-sys; cat /proc/self/oom_score_adj; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep NoNewPrivs /proc/self/status",
    ]);
    spec.user = "33:34".into();
    spec.cwd = "/srv/app".into();
    spec.read_only = true;
    spec.no_new_privileges = true;
    spec.oom_score_adj = 500;
    spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 123, hard: 456 }];
    let tmpfs = MountKind::Tmpfs { options: vec!["mode=1777".into(), "size=1m".into()] };
    let bind =
        MountKind::Bind { source: volume, propagation: Propagation::RPrivate, recursive: true };
    spec.mounts = vec![
        Mount { destination: "/t".into(), kind: tmpfs, read_only: false },
        Mount { destination: "/v".into(), kind: bind, read_only: true },
    ];
    let (_, output) = bench.run(&spec).await;
    for expected in [
        "33\n34\n/srv/app\n123\nfrom the host\n",
        "ro-volume",
        "ro-root",
        "tmpfs-ok",
        "ro-sys",
        "500\n",
        "NoNewPrivs:\t1",
    ] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
}

#[tokio::test]
async fn limits_are_in_the_control_groups_and_running_out_is_reported() {
    let bench = Bench::new();
    let mut spec = bench.spec(&["sh", "-c", "x=a; while :; do x=$x$x$x$x; done"]);
    spec.resources = Resources {
        memory: 16 << 20,
        memory_swap: 16 << 20,
        nano_cpus: 500_000_000,
        pids_limit: 50,
        ..Default::default()
    };
    bench.runtime.create(&spec).await.unwrap();
    let stats = bench.runtime.stats(&spec.id).await.unwrap();
    assert_eq!((stats.memory_limit, stats.pids_limit), (16 << 20, 50));
    bench
        .runtime
        .update(&spec.id, &Resources { pids_limit: 60, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(bench.runtime.stats(&spec.id).await.unwrap().pids_limit, 60);
    bench.runtime.start(&spec.id).await.unwrap();
    let status = tokio::time::timeout(WAIT, bench.runtime.wait(&spec.id)).await.unwrap().unwrap();
    bench.runtime.delete(&spec.id).await.unwrap();
    assert_eq!((status.code, status.oom), (137, true));
}

#[tokio::test]
async fn a_start_returns_when_the_command_is_executed_and_does_not_wait_for_more() {
    let bench = Bench::new();
    let spec = bench.spec(&["sleep", "60"]);
    bench.runtime.create(&spec).await.unwrap();
    // The shim's patience with a process that does not get there is five seconds.
    let start = tokio::time::timeout(Duration::from_secs(4), bench.runtime.start(&spec.id));
    start.await.expect("the shim waits for what has happened").unwrap();
    for pid in bench.runtime.pids(&spec.id).await.unwrap() {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm.trim(), "sleep", "not the runtime any more");
    }
    bench.end(&spec).await;
}

#[tokio::test]
async fn a_paused_container_stands_still() {
    let bench = Bench::new();
    let spec = bench.spec(&["sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    bench.start(&spec).await;
    bench.runtime.pause(&spec.id).await.unwrap();
    let before = std::fs::metadata(&spec.log.path).unwrap().len();
    let before = before.max(std::fs::metadata(&spec.log.path).unwrap().len());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(std::fs::metadata(&spec.log.path).unwrap().len() <= before + 200);
    bench.runtime.resume(&spec.id).await.unwrap();
    bench.runtime.pause(&spec.id).await.unwrap();
    assert_eq!(bench.end(&spec).await.code, 137, "SIGKILL ends a paused one too");
}

#[tokio::test]
async fn the_init_collects_zombies_and_passes_signals() {
    let bench = Bench::new();
    let mut spec = bench.spec(&[
        "sh",
        "-c",
        "trap 'exit 6' TERM; (sleep 0.1 & ) ; echo go; while :; do sleep 0.1; done",
    ]);
    spec.init = true;
    bench.start(&spec).await;
    let (_, output) = bench
        .exec(
            &spec,
            exec("e", &["sh", "-c", "sleep 0.5; readlink /proc/1/exe; ps | grep -c 'Z' || true"]),
        )
        .await;
    assert!(output.starts_with("/sbin/docker-init\n"), "{output}");
    bench.runtime.kill(&spec.id, 15).await.unwrap();
    let status = tokio::time::timeout(WAIT, bench.runtime.wait(&spec.id)).await.unwrap().unwrap();
    assert_eq!(status.code, 6);
    bench.end(&spec).await;
}

#[tokio::test]
async fn a_daemon_that_was_gone_finds_everything_again() {
    let bench = Bench::new();
    let spec = bench.spec(&[
        "sh",
        "-c",
        "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line $n; sleep 0.005; done; exit 4",
    ]);
    let idle = bench.spec(&["sleep", "100"]);
    bench.start(&spec).await;
    bench.start(&idle).await;
    // Another handle on the same directory is what a restarted daemon is; the first one is given up.
    let second = Bench::runtime(bench.dir.path());
    let adopted = second.adopt().await.unwrap();
    assert_eq!(adopted.len(), 2);
    let status = tokio::time::timeout(WAIT, second.wait(&spec.id)).await.unwrap().unwrap();
    assert_eq!(status.code, 4);
    let third = Bench::runtime(bench.dir.path());
    let adopted = third.adopt().await.unwrap();
    let ended = adopted.iter().find(|a| a.id == spec.id).unwrap();
    assert_eq!(ended.exit.as_ref().map(|e| e.code), Some(4), "the exit is still known");
    let running = adopted.iter().find(|a| a.id == idle.id).unwrap();
    assert!(running.exit.is_none() && running.pid > 0 && running.started_at.is_some());
    assert_eq!(bench.logs(&spec, None).await.lines().count(), 400, "no hole in the log");
    third.kill(&idle.id, 9).await.unwrap();
    assert_eq!(third.wait(&idle.id).await.unwrap().code, 137);
    third.delete(&idle.id).await.unwrap();
    third.delete(&spec.id).await.unwrap();
    assert_eq!(std::fs::read_dir(bench.dir.path().join("exec/containers")).unwrap().count(), 0);
}

const GONE: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

#[tokio::test]
async fn a_shim_that_cannot_be_asked_is_not_taken_for_dead() {
    let bench = Bench::new();
    let bundle = bench.dir.path().join("exec/containers").join(GONE);
    std::fs::create_dir(&bundle).unwrap();
    let spec = format!(r#"{{"id":"{GONE}","cgroup":"/skep-test-{}/{GONE}"}}"#, std::process::id());
    std::fs::write(bundle.join("shim.json"), spec).unwrap();
    // As good as a daemon without a free descriptor: the way to the shim cannot be gone.
    std::os::unix::fs::symlink("shim.sock", bundle.join("shim.sock")).unwrap();
    let again = || Bench::runtime(bench.dir.path());
    let error = again().adopt().await.unwrap_err();
    assert!(error.text.contains(GONE) && error.text.contains("runs on"), "{error}");
    // Without a socket it is.
    std::fs::remove_file(bundle.join("shim.sock")).unwrap();
    let adopted = again().adopt().await.unwrap();
    assert_eq!(adopted[0].exit.as_ref().map(|exit| exit.code), Some(137));
}

#[tokio::test]
async fn a_bundle_that_cannot_be_read_is_left_and_one_that_was_never_complete_goes() {
    let bench = Bench::new();
    let bundle = bench.dir.path().join("exec/containers").join(GONE);
    std::fs::create_dir_all(bundle.join("shim.json")).unwrap();
    let again = || Bench::runtime(bench.dir.path());
    assert!(again().adopt().await.is_err());
    assert!(bundle.exists());
    std::fs::remove_dir(bundle.join("shim.json")).unwrap();
    assert!(again().adopt().await.unwrap().is_empty());
    assert!(!bundle.exists());
}

#[tokio::test]
async fn a_daemon_takes_more_open_files_and_gives_its_containers_no_more_than_it_was_given() {
    use rustix::process::{Resource, getrlimit};
    let before = getrlimit(Resource::Nofile);
    limits::raise_open_files();
    assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    let bench = Bench::new();
    let spec = bench.spec(&["sh", "-c", "ulimit -n"]);
    let given = before.current.unwrap().to_string();
    assert_eq!(bench.run(&spec).await, (0, given + "\n"));
}

#[tokio::test]
async fn logs_rotate_and_are_read_back_in_order() {
    let bench = Bench::new();
    for driver in [LogDriver::JsonFile, LogDriver::Local] {
        let mut spec = bench.spec(&[
            "sh",
            "-c",
            "n=0; while [ $n -lt 500 ]; do n=$((n+1)); echo line $n; done",
        ]);
        spec.log = LogConfig { driver, max_size: 5 << 10, max_file: 3, ..spec.log };
        bench.run(&spec).await;
        let text = bench.logs(&spec, None).await;
        let numbers: Vec<u32> = text.lines().map(|l| l[5..].parse().unwrap()).collect();
        assert!(
            numbers.windows(2).all(|w| w[1] == w[0] + 1) && numbers.last() == Some(&500),
            "{driver:?}"
        );
        assert!(numbers.len() < 500, "{driver:?}: the oldest are gone");
        assert_eq!(bench.logs(&spec, Some(200)).await.lines().count(), 200.min(numbers.len()));
        assert_eq!(bench.logs(&spec, Some(1)).await, "line 500\n");
        assert!(!spec.log.path.with_extension("log.3").exists());
    }
}

#[tokio::test]
async fn a_container_waits_for_its_log_unless_its_log_does_not_block() {
    const BUFFER: u64 = 100_000;
    let bench = Bench::new();
    for buffer in [None, Some(BUFFER)] {
        let name = format!("written-{}", buffer.is_some());
        let script = format!("yes 0123456789 | head -c 1000000; touch /{name}; sleep 1000");
        let mut spec = bench.spec(&["sh", "-c", &script]);
        // A disk that takes nothing: a pipe that nobody reads yet.
        let path = bench.dir.path().join(format!("{}.fifo", spec.id));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        spec.log = LogConfig { driver: LogDriver::Local, path: path.clone(), buffer, ..spec.log };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let log = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let written = || bench.dir.path().join("rootfs").join(&name).exists();
        bench.start(&spec).await;
        until(|| written() || rustix::io::ioctl_fionread(&log).unwrap() > 60_000).await;
        match buffer {
            Some(_) => until(written).await,
            None => assert!(!written(), "the container waits"),
        }
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let (mut taken, mut space) = (0, vec![0; 64 << 10]);
            loop {
                match rustix::io::read(&log, &mut space) {
                    Ok(count) if count > 0 => taken += count,
                    _ if stopped.try_recv().is_ok() => return taken,
                    _ => std::thread::yield_now(),
                }
            }
        });
        until(written).await;
        bench.end(&spec).await;
        stop.send(()).unwrap();
        let taken = reader.join().unwrap();
        assert_eq!(taken > 1_000_000, buffer.is_none(), "{taken} bytes of log");
        assert!(taken > 60_000);
    }
}

async fn until(mut question: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + WAIT;
    while !question() {
        assert!(std::time::Instant::now() < end, "never so");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn following_a_log_ends_with_the_container() {
    let bench = Bench::new();
    let spec = bench.spec(&["sh", "-c", "n=0; while [ $n -lt 20 ]; do n=$((n+1)); echo line $n; sleep 0.02; done; yes | head -c 20000 | tr -d '\\n'"]);
    bench.start(&spec).await;
    let (ended, watch) = tokio::sync::watch::channel(false);
    let options = LogOptions { follow: true, stdout: true, stderr: true, ..Default::default() };
    let mut reader = LogReader::open(&spec.log, options, watch).unwrap();
    let runtime = bench.runtime.clone();
    let id = spec.id.clone();
    tokio::spawn(async move {
        runtime.wait(&id).await.unwrap();
        ended.send(true).unwrap();
    });
    let mut lines = Vec::new();
    while let Some(entry) = tokio::time::timeout(WAIT, reader.next()).await.unwrap().unwrap() {
        lines.push(entry.line);
    }
    bench.runtime.delete(&spec.id).await.unwrap();
    assert_eq!(lines[19], b"line 20\n");
    assert!(lines[20..].iter().all(|l| l.len() <= 16 * 1024), "long lines come in pieces");
}

#[tokio::test]
async fn an_oci_runtimes_binary_does_the_same() {
    let bench = Bench::new();
    let runc = OciRuntime::Binary { path: "/usr/sbin/runc".into(), args: Vec::new() };
    let spec = ContainerSpec {
        runtime: runc.clone(),
        ..bench.spec(&["sh", "-c", "echo by runc; exit 3"])
    };
    assert_eq!(bench.run(&spec).await, (3, "by runc\n".to_owned()));
    let mut spec = ContainerSpec { runtime: runc.clone(), ..bench.spec(&["sleep", "100"]) };
    spec.tty = true;
    bench.start(&spec).await;
    let (code, output) = bench.exec(&spec, exec("e", &["sh", "-c", "echo inside; exit 8"])).await;
    assert_eq!((code, output.as_str()), (8, "inside\n"));
    bench.end(&spec).await;
    let spec = ContainerSpec { runtime: runc, ..bench.spec(&["nosuch"]) };
    let error = bench.runtime.create(&spec).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{error}");
}

#[tokio::test]
async fn a_shim_that_is_killed_takes_its_container_along() {
    let bench = Bench::new();
    let spec = bench.spec(&["sleep", "100"]);
    let pid = bench.runtime.create(&spec).await.unwrap().pid;
    bench.runtime.start(&spec.id).await.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim: i32 = stat.split_whitespace().nth(3).unwrap().parse().unwrap();
    std::process::Command::new("kill").args(["-9", &shim.to_string()]).status().unwrap();
    let status = tokio::time::timeout(WAIT, bench.runtime.wait(&spec.id)).await.unwrap().unwrap();
    assert_eq!(status.code, 137);
    bench.runtime.delete(&spec.id).await.unwrap();
}
