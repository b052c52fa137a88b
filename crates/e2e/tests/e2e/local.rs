//! Containers, images and volumes on one host.

use std::process::Stdio;

use anyhow::{Result, ensure};
use e2e::{answers, cases, hosts, refused};
use lab::Lab;

#[test]
fn one_host() -> Result<()> {
    let lab = hosts(1)?;
    cases(
        &lab,
        &[
            ("a container prints and ends", a_container_prints_and_ends),
            ("an exit code is passed on", an_exit_code_is_passed_on),
            ("standard input reaches the container", standard_input_reaches_the_container),
            (
                "a detached container runs until it is stopped",
                a_detached_container_runs_until_it_is_stopped,
            ),
            ("exec runs beside the first process", exec_runs_beside_the_first_process),
            ("logs hold what was printed", logs_hold_what_was_printed),
            ("names are unique", names_are_unique),
            ("environment, directory, user and hostname", environment_directory_user_and_hostname),
            ("files are copied in both directions", files_are_copied_in_both_directions),
            ("a volume keeps its data", a_volume_keeps_its_data),
            ("a bind mount shows the host's folder", a_bind_mount_shows_the_hosts_folder),
            ("a restart policy brings a container back", a_restart_policy_brings_a_container_back),
            ("health is checked", health_is_checked),
            ("limits are set", limits_are_set),
            (
                "images are tagged, saved, loaded and removed",
                images_are_tagged_saved_loaded_and_removed,
            ),
            ("a change is seen, committed and exported", a_change_is_seen_and_committed),
            ("events tell what happened", events_tell_what_happened),
            ("unknown things are named", unknown_things_are_named),
            ("bad input changes nothing", bad_input_changes_nothing),
        ],
    )
}

fn a_container_prints_and_ends(lab: &Lab) -> Result<()> {
    answers(lab.host(1), "run --rm httpd echo hello", "hello")?;
    answers(lab.host(1), "ps -aq", "")
}

fn an_exit_code_is_passed_on(lab: &Lab) -> Result<()> {
    let status = lab.host(1).try_docker(&["run", "--rm", "httpd", "sh", "-c", "exit 7"])?.status;
    ensure!(status.code() == Some(7), "{status}");
    let status = lab.host(1).try_docker(&["run", "--rm", "httpd", "no-such-program"])?.status;
    ensure!(status.code() == Some(127), "{status}");
    Ok(())
}

fn standard_input_reaches_the_container(lab: &Lab) -> Result<()> {
    use std::io::Write;
    let mut child = lab
        .host(1)
        .cli(&["run", "--rm", "-i", "httpd", "md5sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Larger than any pipe: nothing may be lost or wait for ever.
    let text = vec![b'x'; 1 << 20];
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text)?;
    }
    let output = child.wait_with_output()?;
    let sum = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(sum.starts_with("b561f87202d04959e37588ee05cf5b10"), "{sum}");
    ensure!(output.status.success(), "{}", output.status);
    Ok(())
}

fn a_detached_container_runs_until_it_is_stopped(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let id = host.dk("run -d --name web httpd")?;
    ensure!(id.len() == 64, "{id}");
    answers(host, "inspect -f {{.State.Status}} web", "running")?;
    answers(host, "ps --format {{.Names}} --filter status=running", "web")?;
    host.dk("pause web")?;
    answers(host, "inspect -f {{.State.Status}} web", "paused")?;
    host.dk("unpause web")?;
    host.dk("stop -t 1 web")?;
    answers(host, "inspect -f {{.State.Status}} web", "exited")?;
    host.dk("start web")?;
    host.dk("restart -t 1 web")?;
    answers(host, "inspect -f {{.State.Running}} web", "true")?;
    host.dk("kill web")?;
    answers(host, "wait web", "137")?;
    host.dk("rename web web2")?;
    answers(host, "rm web2", "web2")
}

fn exec_runs_beside_the_first_process(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name exec httpd")?;
    answers(host, "exec exec echo hi", "hi")?;
    let status = host.try_docker(&["exec", "exec", "sh", "-c", "exit 5"])?.status;
    ensure!(status.code() == Some(5), "{status}");
    answers(host, "exec -e A=b -w /www exec sh -c pwd", "/www")?;
    answers(host, "exec -u www exec id -un", "www")?;
    let top = host.dk("top exec")?;
    ensure!(top.contains("httpd"), "{top}");
    host.dk("rm -f exec").map(drop)
}

fn logs_hold_what_was_printed(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "run",
        "--name",
        "logs",
        "httpd",
        "sh",
        "-c",
        "for i in 1 2 3; do echo line $i; done",
    ])?;
    answers(host, "logs logs", "line 1\nline 2\nline 3")?;
    answers(host, "logs --tail 1 logs", "line 3")?;
    let stamped = host.dk("logs -t --tail 1 logs")?;
    ensure!(stamped.contains('T') && stamped.ends_with("Z line 3"), "{stamped}");
    host.dk("rm logs").map(drop)
}

fn names_are_unique(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("create --name once httpd")?;
    refused(host, "create --name once httpd", "is already in use by container")?;
    host.dk("rm once")?;
    refused(host, "create --name bad/name httpd", "Invalid container name")
}

fn environment_directory_user_and_hostname(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let env = host.dk("run --rm -e COLOUR=red httpd env")?;
    ensure!(env.lines().any(|line| line == "COLOUR=red"), "{env}");
    answers(host, "run --rm -w /tmp httpd pwd", "/tmp")?;
    answers(host, "run --rm -u 33 httpd id -u", "33")?;
    answers(host, "run --rm -h box httpd hostname", "box")?;
    let output = host.try_docker(&["run", "--rm", "--read-only", "httpd", "touch", "/x"])?;
    ensure!(!output.status.success(), "a read-only root was written to");
    answers(host, "run --rm --entrypoint echo httpd a b", "a b")
}

fn files_are_copied_in_both_directions(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let file = host.folder.join("note");
    std::fs::write(&file, "text\n")?;
    host.dk("run -d --name copy httpd")?;
    host.docker(&["cp", &file.display().to_string(), "copy:/tmp/note"])?;
    answers(host, "exec copy cat /tmp/note", "text")?;
    let back = host.folder.join("back");
    host.docker(&["cp", "copy:/www/index.html", &back.display().to_string()])?;
    ensure!(std::fs::read_to_string(&back)?.contains("It works!"));
    refused(host, "cp copy:/nothing /tmp", "/nothing")?;
    host.dk("rm -f copy").map(drop)
}

fn a_volume_keeps_its_data(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("volume create --label a=b data")?;
    host.docker(&["run", "--rm", "-v", "data:/d", "httpd", "sh", "-c", "echo kept > /d/f"])?;
    answers(host, "run --rm -v data:/d:ro httpd cat /d/f", "kept")?;
    host.dk("create --name user -v data:/d httpd")?;
    refused(host, "volume rm data", "volume is in use")?;
    host.dk("rm user")?;
    answers(host, "volume ls -q --filter label=a=b", "data")?;
    answers(host, "volume rm data", "data")?;
    // A volume begins with what the image has at that place.
    answers(host, "run --rm -v pages:/www httpd cat /www/index.html", lab::image::IT_WORKS)?;
    host.dk("volume rm pages").map(drop)
}

fn a_bind_mount_shows_the_hosts_folder(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let folder = host.folder.join("shared");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("f"), "host\n")?;
    answers(host, &format!("run --rm -v {}:/s httpd cat /s/f", folder.display()), "host")?;
    refused(
        host,
        "run --rm --mount type=bind,src=/no/such/place,dst=/s httpd true",
        "/no/such/place",
    )
}

fn a_restart_policy_brings_a_container_back(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "on-failure:2",
        "httpd",
        "sh",
        "-c",
        "exit 3",
    ])?;
    lab::host::wait_until(std::time::Duration::from_secs(20), || {
        Ok(host.dk("inspect -f {{.RestartCount}}/{{.State.Status}} again")? == "2/exited")
    })?;
    answers(host, "inspect -f {{.State.ExitCode}} again", "3")?;
    host.dk("rm again").map(drop)
}

fn health_is_checked(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "run",
        "-d",
        "--name",
        "well",
        "--health-cmd",
        "test -f /tmp/ok",
        "--health-interval",
        "1s",
        "--health-retries",
        "2",
        "httpd",
    ])?;
    let is = |state: &str| {
        lab::host::wait_until(std::time::Duration::from_secs(20), || {
            Ok(host.dk("inspect -f {{.State.Health.Status}} well")? == state)
        })
    };
    is("unhealthy")?;
    host.dk("exec well touch /tmp/ok")?;
    is("healthy")?;
    host.dk("rm -f well").map(drop)
}

fn limits_are_set(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("run -d --name small -m 64m --pids-limit 50 --cpus 0.5 httpd")?;
    answers(
        host,
        "inspect -f {{.HostConfig.Memory}}/{{.HostConfig.PidsLimit}}/{{.HostConfig.NanoCpus}} small",
        "67108864/50/500000000",
    )?;
    let stats = host.dk("stats --no-stream --format {{.MemUsage}} small")?;
    ensure!(stats.contains("64MiB"), "{stats}");
    host.dk("rm -f small")?;
    // A container over its memory is ended, and the reason is told.
    let output = host.try_docker(&[
        "run",
        "--name",
        "fat",
        "-m",
        "8m",
        "--memory-swap",
        "8m",
        "httpd",
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/null bs=64M count=1",
    ])?;
    ensure!(!output.status.success(), "a container used more than its limit");
    // The Docker Engine does not learn of it where cgroups are v1 beside v2.
    if host.engine == lab::Engine::Skep {
        answers(host, "inspect -f {{.State.OOMKilled}} fat", "true")?;
    }
    host.dk("rm fat").map(drop)
}

fn images_are_tagged_saved_loaded_and_removed(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.dk("tag httpd example:1")?;
    let file = host.folder.join("saved.tar").display().to_string();
    host.docker(&["save", "-o", &file, "example:1"])?;
    let removed = host.dk("rmi example:1")?;
    ensure!(removed.contains("Untagged: example:1"), "{removed}");
    refused(host, "image inspect example:1", "No such image: example:1")?;
    let loaded = host.docker(&["load", "-i", &file])?;
    ensure!(loaded.contains("Loaded image: example:1"), "{loaded}");
    answers(host, "images --format {{.Repository}}:{{.Tag}} example", "example:1")?;
    host.dk("rmi example:1").map(drop)
}

fn a_change_is_seen_and_committed(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    host.docker(&[
        "run",
        "--name",
        "changed",
        "httpd",
        "sh",
        "-c",
        "echo new > /tmp/new; rm /www/index.html",
    ])?;
    let diff = host.dk("diff changed")?;
    ensure!(diff.contains("A /tmp/new") && diff.contains("D /www/index.html"), "{diff}");
    host.dk("commit changed mine:1")?;
    answers(host, "run --rm mine:1 cat /tmp/new", "new")?;
    host.dk("rm changed")?;
    host.dk("rmi mine:1").map(drop)
}

fn events_tell_what_happened(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let since = host.sh("date +%s")?;
    host.dk("run --rm --name seen httpd true")?;
    let until = host.sh("date +%s")?.parse::<u64>()? + 1;
    let format = "{{.Type}} {{.Action}}";
    let events = host.docker(&[
        "events",
        "--since",
        &since,
        "--until",
        &until.to_string(),
        "--filter",
        "container=seen",
        "--format",
        format,
    ])?;
    for action in ["create", "attach", "start", "die", "destroy"] {
        ensure!(
            events.lines().any(|line| line == format!("container {action}")),
            "{action} is missing: {events}"
        );
    }
    Ok(())
}

fn unknown_things_are_named(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    refused(host, "inspect --type container nobody", "No such container: nobody")?;
    refused(host, "network rm nowhere", "nowhere")?;
    refused(host, "volume rm nothing", "no such volume")?;
    refused(host, "image rm nothing", "No such image: nothing")
}

fn bad_input_changes_nothing(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let before = host.dk("ps -aq")?;
    refused(host, "create -p 99999:80 httpd", "nvalid")?;
    refused(host, "create -v relative:x:y:z httpd", "nvalid")?;
    refused(host, "create --network nowhere --name lost httpd", "network nowhere not found")
        .or_else(|_| host.dk("rm lost").map(drop))?;
    answers(host, "ps -aq", &before)
}
