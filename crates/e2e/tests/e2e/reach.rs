//! A container that has just been started on an attachable overlay is reached from other hosts at
//! once, also by one that has asked for it before it was there.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::hosts_of_skep;
use lab::Lab;
use lab::host::wait_until;
use lab::reach::{first_answer, started_at};

const STARTS: u8 = 9;
/// Half of the starts are no slower; the rest is left to a busy machine. A client that had to ask
/// again by itself would do so once a second.
const MEDIAN_MAX: Duration = Duration::from_millis(150);

#[test]
fn a_new_container_is_reached_from_other_hosts_as_soon_as_it_runs() -> Result<()> {
    let lab = hosts_of_skep(2)?;
    lab.swarm(1)?;
    lab.host(1).dk("network create -d overlay --attachable --subnet 10.77.0.0/24 web")?;
    lab.host(1).dk("run -d --name asker --network web httpd")?;
    let alone = times(&lab)?;
    lab.host(2).dk("run -d --name other --network web httpd")?;
    let later = times(&lab)?;
    for (what, times) in [("the first on its host", alone), ("a further one", later)] {
        eprintln!("{what}: {times:?}");
        ensure!(times[times.len() / 2] < MEDIAN_MAX, "{what}: {times:?}");
    }
    lab.down()
}

/// From running to reached, in order.
fn times(lab: &Lab) -> Result<Vec<Duration>> {
    let (asker, far) = (lab.host(1), lab.host(2));
    let mut times = Vec::new();
    for number in 0..STARTS {
        let address = format!("10.77.0.{}", 100 + number);
        let line = format!("run -d --name new --network web --ip {address} httpd");
        let to = format!("{address}:80").parse()?;
        let answered = first_answer(asker, "asker", to, || far.dk(&line).map(drop))?;
        // One that answers before its start is on record was reached at once.
        times.push(answered.duration_since(started_at(far, "new")?).unwrap_or_default());
        far.dk("rm -f new")?;
        // A host without a container on the network does not know it.
        wait_until(Duration::from_secs(10), || {
            let seen = far.try_docker(&["network", "inspect", "web"])?.stdout;
            Ok(!String::from_utf8_lossy(&seen).contains(&address))
        })?;
    }
    times.sort();
    Ok(times)
}
