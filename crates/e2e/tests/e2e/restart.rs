//! The daemon is killed and comes back: what ran runs on, and what happened meanwhile is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{answers, hosts_of_skep};
use lab::host::wait_until;

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
    let numbers: Vec<u32> =
        host.dk("logs counter")?.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(numbers.len() > 20, "too few lines: {}", numbers.len());
    ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "the log has a hole");
    host.dk("rm -f web counter short")?;
    host.dk("network rm net")?;
    lab.down()
}
