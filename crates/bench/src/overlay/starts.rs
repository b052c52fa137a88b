//! From a container's start to the first answer that one on the other host gets from it.

use std::time::Duration;

use anyhow::Result;
use lab::host::wait_until;
use lab::reach::{first_answer, started_at};

use super::Pair;
use crate::figures::{Report, quantile};

const STARTS: u8 = 50;
/// Addresses that are asked for before they are anybody's, one for each start.
const SUBNET: &str = "10.77.0";
const FIRST: u8 = 100;

pub(super) fn reached(pairs: [&Pair; 2], report: &mut Report) -> Result<()> {
    for pair in pairs {
        let host = pair.lab.host(1);
        host.dk(&format!("network create -d overlay --attachable --subnet {SUBNET}.0/24 starts"))?;
        host.dk("run -d --name asker --network starts httpd")?;
    }
    for (early, client) in [(false, "asks once it runs"), (true, "asks all the while")] {
        let mut samples = [Vec::new(), Vec::new()];
        for number in 0..STARTS {
            for (pair, list) in pairs.iter().zip(&mut samples) {
                list.push(start(pair, number, early)?.as_secs_f64() * 1_000.0);
            }
        }
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let [a, b] = samples.each_ref().map(|list| vec![quantile(list, part)]);
            let what = format!("running to reached by one on the other host that {client}, {name}");
            report.add(&what, "ms", a, Ok(b));
        }
    }
    for pair in pairs {
        pair.lab.host(1).dk("rm -f asker")?;
        pair.lab.host(1).dk("network rm starts")?;
    }
    Ok(())
}

/// One start, with a client that began before it or only after it.
fn start(pair: &Pair, number: u8, early: bool) -> Result<Duration> {
    let (asker, far) = (pair.lab.host(1), pair.lab.host(2));
    let address = format!("{SUBNET}.{}", FIRST + number);
    let to = format!("{address}:80").parse()?;
    let run = || {
        far.dk(&format!("run -d --name started --network starts --ip {address} httpd")).map(drop)
    };
    let answered = if early {
        first_answer(asker, "asker", to, run)?
    } else {
        run()?;
        first_answer(asker, "asker", to, || Ok(()))?
    };
    // An answer may come before the engine has put the start on record.
    let time = answered.duration_since(started_at(far, "started")?).unwrap_or_default();
    far.dk("rm -f started")?;
    wait_until(Duration::from_secs(20), || {
        let seen = far.try_docker(&["network", "inspect", "starts"])?.stdout;
        Ok(!String::from_utf8_lossy(&seen).contains(&address))
    })?;
    Ok(time)
}
