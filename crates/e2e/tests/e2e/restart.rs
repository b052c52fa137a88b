//! The daemon is killed and comes back: what ran runs on, and what happened meanwhile is told.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::terminal::Terminal;
use e2e::{answers, hosts, hosts_of_skep};
use lab::host::wait_until;
use lab::{Engine, Host, Lab, Plan};

/// What a daemon that is there again may need to find out, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn is(host: &Host, container: &str, format: &str, expected: &str) -> Result<()> {
    let now = || host.docker(&["inspect", "-f", format, container]);
    wait_until(PATIENCE, || Ok(now()? == expected)).with_context(|| {
        let now = now().unwrap_or_default();
        format!("{container}: {now} instead of {expected}\n{}", host.log_tail(20))
    })
}

/// Waits until a container that prints numbers has printed `least`; they must have no hole.
fn counted(host: &Host, container: &str, least: usize) -> Result<()> {
    let numbers = || -> Result<Vec<usize>> {
        Ok(host
            .docker(&["logs", container])?
            .lines()
            .filter_map(|l| l.trim().parse().ok())
            .collect())
    };
    wait_until(PATIENCE, || Ok(numbers()?.len() >= least))?;
    let numbers = numbers()?;
    ensure!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "the log of {container} has a hole"
    );
    ensure!(numbers.first() == Some(&1), "the log of {container} has lost its beginning");
    Ok(())
}

const COUNT: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done";

/// Containers in every relation to a daemon's end, made before it.
fn before_the_end(host: &Host) -> Result<()> {
    for tty in ["-d", "-dt"] {
        host.docker(&["run", tty, "--name", &format!("count{tty}"), "httpd", "sh", "-c", COUNT])?;
    }
    host.docker(&[
        "run",
        "-d",
        "--name",
        "local",
        "--log-driver",
        "local",
        "httpd",
        "sh",
        "-c",
        COUNT,
    ])?;
    host.dk("run -dit --name shell httpd sh")?;
    host.dk("run -d --name paused httpd")?;
    host.dk("pause paused")?;
    // These end while no daemon looks: each waits for a file that is made then.
    let wait = |code: u8| format!("until test -e /go/go; do sleep 0.05; done; exit {code}");
    std::fs::create_dir_all(host.folder.join("go"))?;
    let bind = format!("{}:/go", host.folder.join("go").display());
    for (name, extra, code) in [
        ("plain", "--restart=no", 9),
        ("removed", "--rm", 0),
        ("retried", "--restart=on-failure:1", 3),
        ("content", "--restart=on-failure:1", 0),
    ] {
        host.docker(&[
            "run",
            "-d",
            "-v",
            &bind,
            "--name",
            name,
            extra,
            "httpd",
            "sh",
            "-c",
            &wait(code),
        ])?;
    }
    let serving =
        "test -e /go/go && exec httpd -f -p 80 -h /www; until test -e /go/go; do sleep 0.05; done";
    host.docker(&[
        "run",
        "-d",
        "-v",
        &bind,
        "--name",
        "always",
        "--restart=always",
        "httpd",
        "sh",
        "-c",
        serving,
    ])?;
    host.dk("run -d --name stopped --restart=unless-stopped httpd")?;
    host.dk("stop -t 0 stopped").map(drop)
}

/// The processes of the four that wait have ended: seen from the host, no daemon asked.
fn until_ended(host: &Host, pids: &[String]) -> Result<()> {
    std::fs::write(host.folder.join("go/go"), "")?;
    wait_until(PATIENCE, || Ok(pids.iter().all(|pid| host.exec(&["kill", "-0", pid]).is_err())))
}

fn after_the_end(host: &Host) -> Result<()> {
    is(host, "plain", "{{.State.Status}}/{{.State.ExitCode}}", "exited/9")?;
    wait_until(PATIENCE, || Ok(host.dk("ps -aq --filter name=removed")?.is_empty()))?;
    is(host, "retried", "{{.State.Status}}/{{.State.ExitCode}}/{{.RestartCount}}", "exited/3/1")?;
    is(host, "content", "{{.State.Status}}/{{.RestartCount}}", "exited/0")?;
    is(host, "always", "{{.State.Status}}", "running")?;
    is(host, "stopped", "{{.State.Status}}", "exited")?;
    is(host, "paused", "{{.State.Status}}", "paused")?;
    host.dk("unpause paused")?;
    for container in ["count-d", "count-dt", "local"] {
        let so_far = host.docker(&["logs", container])?.lines().count();
        counted(host, container, so_far + 5)?;
    }
    // The streams of what ran all the time are there for who attaches now, and for exec.
    let mut terminal = Terminal::open(host, "attach shell")?;
    terminal.type_in("echo still$((1+1))\n")?;
    terminal.expect("still2")?;
    terminal.type_in("exit 7\n")?;
    ensure!(terminal.end()? == 7, "the exit code is lost");
    answers(host, "exec paused echo here", "here")?;
    answers(host, "wait plain", "9")
}

fn the_daemon_goes_and_comes(lab: &Lab, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let host = lab.host(1);
    before_the_end(host)?;
    let ending = ["plain", "removed", "retried", "content", "always"];
    let pid = |name: &&str| host.docker(&["inspect", "-f", "{{.State.Pid}}", name]);
    let pids = ending.iter().map(pid).collect::<Result<Vec<_>>>()?;
    host.kill()?;
    until_ended(host, &pids)?;
    meanwhile()?;
    host.start()?;
    after_the_end(host)
}

#[test]
fn a_killed_daemon_catches_up_when_it_is_back() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    the_daemon_goes_and_comes(&lab, || Ok(()))?;
    lab.down()
}

/// Clients that are there when the daemon is killed end, and their container does not. The Docker Engine does the same
/// with `--live-restore`.
#[test]
fn clients_of_a_killed_daemon_end_and_their_container_goes_on() -> Result<()> {
    let lab = hosts(1)?;
    let host = lab.host(1);
    if lab.plan.engines[0] == Engine::Dockerd {
        host.stop()?;
        host.start_with(&["--live-restore"], &[])?;
    }
    host.docker(&["run", "-d", "--name", "count", "httpd", "sh", "-c", COUNT])?;
    let mut clients = Vec::new();
    for words in [
        &["attach", "--no-stdin", "--sig-proxy=false", "count"][..],
        &["logs", "-f", "count"],
        &["exec", "count", "sh", "-c", COUNT],
    ] {
        let said = host.folder.join(format!("{}.said", words[0]));
        let output = std::fs::File::create(&said)?;
        let client = host.cli(words).stdout(output).stderr(Stdio::null()).spawn()?;
        clients.push((words[0], said, client));
    }
    let lines = |said: &Path| std::fs::read_to_string(said).map(|text| text.lines().count());
    for (name, said, _) in &clients {
        wait_until(PATIENCE, || Ok(lines(said)? > 3))
            .with_context(|| format!("{name} is silent"))?;
    }
    host.kill()?;
    for (name, _, client) in &mut clients {
        wait_until(PATIENCE, || Ok(client.try_wait()?.is_some()))
            .with_context(|| format!("docker {name} hangs"))?;
    }
    let before = clients.iter().map(|(_, said, _)| lines(said)).collect::<Result<Vec<_>, _>>()?;
    if lab.plan.engines[0] == Engine::Dockerd {
        host.start_with(&["--live-restore"], &[])?;
    } else {
        host.start()?;
    }
    is(host, "count", "{{.State.Running}}/{{.RestartCount}}", "true/0")?;
    counted(host, "count", before.iter().max().copied().unwrap_or_default() + 20)?;
    answers(host, "exec count echo here", "here")?;
    lab.down()
}

/// The program is another file when the daemon comes back; shims of the old one go on.
#[test]
fn a_newer_program_takes_over_from_an_older_one() -> Result<()> {
    let mut plan = Plan::skep(1)?;
    let folder = std::env::temp_dir().join(format!("skep-upgrade-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("skep");
    std::fs::copy(&plan.skep, &program)?;
    let newer = std::mem::replace(&mut plan.skep, program.clone());
    let tried = (|| {
        let lab = Lab::up(&plan)?;
        lab.import_httpd("httpd:latest")?;
        the_daemon_goes_and_comes(&lab, || {
            // As a package manager does: a new file takes the name, the old one lives on while it is used.
            let draft = folder.join("skep.new");
            std::fs::copy(&newer, &draft)?;
            // Bytes behind an ELF file change nothing but make it another.
            let mut file = std::fs::OpenOptions::new().append(true).open(&draft)?;
            std::io::Write::write_all(&mut file, b"newer")?;
            drop(file);
            Ok(std::fs::rename(&draft, &program)?)
        })?;
        lab.down()
    })();
    std::fs::remove_dir_all(&folder)?;
    tried
}

/// Docker ends containers with its daemon unless told otherwise, so this runs against skep only.
#[test]
fn containers_outlive_the_daemon() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    host.dk("network create net")?;
    host.dk("run -d --name web --network net -p 8080:80 httpd")?;
    host.docker(&[
        "run",
        "-d",
        "--name",
        "counter",
        "httpd",
        "sh",
        "-c",
        "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done",
    ])?;
    host.docker(&["run", "-d", "--name", "short", "httpd", "sh", "-c", "sleep 2; exit 9"])?;
    let started = host.dk("inspect -f {{.State.Pid}} web")?;
    host.kill()?;
    let page = host.sh(&format!("curl -sS --max-time 5 http://{}:8080/", host.address))?;
    ensure!(page == lab::image::IT_WORKS, "the published port while the daemon is dead: {page}");
    std::thread::sleep(Duration::from_secs(3));
    host.start()?;
    answers(host, "inspect -f {{.State.Pid}} web", &started)?;
    wait_until(Duration::from_secs(10), || {
        Ok(host.dk("inspect -f {{.State.Status}}/{{.State.ExitCode}} short")? == "exited/9")
    })?;
    answers(host, "exec web wget -qO- http://web/", lab::image::IT_WORKS)?;
    counted(host, "counter", 21)?;
    host.dk("rm -f web counter short")?;
    host.dk("network rm net")?;
    lab.down()
}

/// It is as if it were not there, and has lost nothing once its file is mended.
#[test]
fn a_container_whose_configuration_is_damaged_is_left_alone() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let write = "echo precious >/file; echo precious >/kept/file; sleep 1000";
    host.docker(&["run", "-d", "--name", "hurt", "-v", "kept:/kept", "httpd", "sh", "-c", write])?;
    wait_until(PATIENCE, || Ok(host.dk("exec hurt cat /kept/file").is_ok()))?;
    let id = host.dk("inspect -f {{.Id}} hurt")?;
    let pid = host.dk("inspect -f {{.State.Pid}} hurt")?;
    let file = host.folder.join(format!("data/containers/{id}/config.json"));
    let good = std::fs::read(&file)?;
    host.kill()?;
    std::fs::write(&file, "{")?;
    host.start()?;
    ensure!(host.dk("inspect hurt").is_err(), "a container without a configuration is shown");
    host.dk("volume prune -f")?;
    host.exec(&["kill", "-0", &pid]).context("its process was ended")?;
    host.stop()?;
    std::fs::write(&file, good)?;
    host.start()?;
    is(host, "hurt", "{{.State.Pid}} {{.State.Running}}", &format!("{pid} true"))?;
    answers(host, "exec hurt cat /file /kept/file", "precious\nprecious")
}

/// The shim of a container, stopped: who connects to it waits for ever.
fn stop_shim(host: &Host, container: &str) -> Result<String> {
    let pid = host.docker(&["inspect", "-f", "{{.State.Pid}}", container])?;
    let shim = host.exec(&["sed", "-n", "s/^PPid:\t//p", &format!("/proc/{pid}/status")])?;
    host.exec(&["kill", "-STOP", shim.trim()])?;
    Ok(shim.trim().to_owned())
}

/// Its container alone cannot be used: it is there, its port is open, it is not started a second time. Once the shim
/// goes on, everything does. The Docker Engine with `--live-restore` waits for its shims.
#[test]
fn a_shim_that_does_not_answer_holds_up_nobody() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    host.dk("run -d --name other httpd")?;
    host.dk("run -d --name hung --restart=always -p 8080:80 httpd")?;
    // As after a daemon's end between a start and its note.
    host.dk("run -d --name unnoted --restart=always httpd")?;
    let pids = "inspect -f {{.State.Pid}} hung unnoted other";
    let before = host.dk(pids)?;
    let shims = [stop_shim(host, "hung")?, stop_shim(host, "unnoted")?];
    let id = host.dk("inspect -f {{.Id}} unnoted")?;
    host.kill()?;
    let state = host.folder.join(format!("data/containers/{id}/state.json"));
    let noted = std::fs::read_to_string(&state)?;
    std::fs::write(&state, noted.replace("\"Running\"", "\"Exited\""))?;
    host.start()?;
    answers(host, "exec other echo here", "here")?;
    answers(host, "inspect -f {{.State.Running}} hung", "true")?;
    for container in ["hung", "unnoted"] {
        let error = host.docker(&["inspect", "-f", "{{.State.Error}}", container])?;
        ensure!(error.contains("does not answer") && error.contains("kill -CONT"), "{error}");
    }
    for (words, reason) in [
        ("exec hung true", "does not answer"),
        ("start unnoted", "does not answer"),
        ("rm unnoted", "does not answer"),
        ("rm hung", "stop the container"),
        ("run --rm --name hung httpd true", "already in use"),
        ("run --rm -p 8080:80 httpd true", "port is already allocated"),
    ] {
        let error = host.dk(words).map_or_else(|error| format!("{error:#}"), |_| "accepted".into());
        ensure!(error.contains(reason), "{words}: {error}");
    }
    let page = host.sh(&format!("curl -sS --max-time 5 http://{}:8080/", host.address))?;
    ensure!(page == lab::image::IT_WORKS, "the published port: {page}");
    for shim in &shims {
        host.exec(&["kill", "-CONT", shim])?;
    }
    for container in ["hung", "unnoted"] {
        is(host, container, "{{.State.Status}}/{{.State.Error}}/{{.RestartCount}}", "running//0")?;
        answers(host, &format!("exec {container} echo here"), "here")?;
    }
    answers(host, pids, &before)?;
    lab.down()
}

/// Who asks for a container's end gets it, whatever its shim does.
#[test]
fn a_container_whose_shim_does_not_answer_can_be_ended() -> Result<()> {
    let lab = hosts_of_skep(1)?;
    let host = lab.host(1);
    let end = "trap 'echo bye; exit 0' TERM; echo begun; while :; do sleep 0.1; done";
    for container in ["stopped", "removed", "later"] {
        host.docker(&[
            "run", "-d", "--name", container, "-v", "kept:/v", "httpd", "sh", "-c", end,
        ])?;
        wait_until(PATIENCE, || Ok(host.docker(&["logs", container])?.contains("begun")))?;
    }
    let pids = host.dk("inspect -f {{.State.Pid}} stopped removed later")?;
    stop_shim(host, "stopped")?;
    stop_shim(host, "removed")?;
    host.kill()?;
    host.start()?;
    host.dk("stop -t 3 stopped")?;
    is(host, "stopped", "{{.State.Status}}/{{.State.ExitCode}}", "exited/137")?;
    host.dk("rm -f removed")?;
    ensure!(host.dk("inspect removed").is_err(), "it is still there");
    // The same without a new daemon between.
    stop_shim(host, "later")?;
    host.dk("kill later")?;
    is(host, "later", "{{.State.Status}}/{{.State.ExitCode}}", "exited/137")?;
    for pid in pids.lines() {
        ensure!(host.exec(&["kill", "-0", pid]).is_err(), "process {pid} is left");
    }
    host.dk("start stopped later")?;
    answers(host, "exec stopped echo here", "here")?;
    host.dk("rm -f stopped later")?;
    host.dk("volume rm kept")?;
    lab.down()
}
