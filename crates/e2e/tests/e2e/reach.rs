//! A container that has just been started on an attachable overlay is reached from other hosts at
//! once, also by one that has asked for it before it was there.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::hosts_of_skep;
use lab::Lab;
use lab::host::wait_until;
use lab::reach::first_answer;

const STARTS: u8 = 3;

#[test]
fn a_new_container_is_reached_from_other_hosts_as_soon_as_it_runs() -> Result<()> {
    let lab = hosts_of_skep(2)?;
    lab.swarm(1)?;
    lab.host(1).dk("network create -d overlay --attachable --subnet 10.77.0.0/24 web")?;
    lab.host(1).dk("run -d --name asker --network web httpd")?;
    asks_once(&lab)?;
    reach(&lab).context("the first on its host")?;
    lab.host(2).dk("run -d --name other --network web httpd")?;
    reach(&lab).context("a further one")?;
    lab.down()
}

/// The kernel of the asker would ask again for an address after a second; so it does after a minute,
/// which is longer than anybody waits here: it has to be told.
fn asks_once(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let pid = host.dk("inspect -f {{.State.Pid}} asker")?;
    let path = "/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms";
    let line = format!("echo 60000 > {path}");
    host.exec(&["nsenter", "-t", &pid, "-n", "sh", "-c", &line]).map(drop)
}

fn reach(lab: &Lab) -> Result<()> {
    let (asker, far) = (lab.host(1), lab.host(2));
    for number in 0..STARTS {
        let address = format!("10.77.0.{}", 100 + number);
        let line = format!("run -d --name new --network web --ip {address} httpd");
        let to = format!("{address}:80").parse()?;
        first_answer(asker, "asker", to, || far.dk(&line).map(drop))?;
        far.dk("rm -f new")?;
        // A host without a container on the network does not know it.
        wait_until(Duration::from_secs(10), || {
            let seen = far.try_docker(&["network", "inspect", "web"])?.stdout;
            Ok(!String::from_utf8_lossy(&seen).contains(&address))
        })?;
    }
    Ok(())
}
