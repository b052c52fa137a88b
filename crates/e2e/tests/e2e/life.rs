//! Services live their life under load: updates, scaling, a drained node, daemons that die. Nothing
//! that was asked goes without an answer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::{Client, From, until_running, virtual_address};
use e2e::{cases, hosts_with_caller};
use lab::Lab;
use lab::host::wait_until;

/// Requests a second of each of the four clients: two on the virtual address, two on the mesh.
const RATE: u32 = 125;

#[test]
fn services_lose_no_request() -> Result<()> {
    let lab = hosts_with_caller(3)?;
    let host = lab.host(1);
    host.dk("service create -q --no-resolve-image --name app --network web --replicas 3 -p 8080:80 load")?;
    wait_until(Duration::from_secs(30), || {
        Ok(lab.hosts.iter().all(|at| {
            host.sh(&format!("curl -sf --max-time 2 http://{}:8080/", at.address)).is_ok()
        }))
    })?;
    cases(
        &lab,
        &[
            ("an update, stop first", |lab| under_load(lab, |lab| update(lab, "stop-first", 1))),
            ("an update, start first", |lab| under_load(lab, |lab| update(lab, "start-first", 2))),
            ("a scale up and down", |lab| under_load(lab, scale)),
            ("a drained node", |lab| under_load(lab, drain)),
            ("daemons that are killed", |lab| under_load(lab, kill_daemons)),
        ],
    )
}

/// What `change` does to the service `app` costs no request, through the virtual address and through
/// the mesh, on connections of their own and on kept ones.
fn under_load(lab: &Lab, change: fn(&Lab) -> Result<()>) -> Result<()> {
    let host = lab.host(1);
    let vip = format!("{}:80", virtual_address(host, "app", "web")?);
    let mesh = format!("{}:8080", lab.host(3).address);
    let mut clients = Vec::new();
    for mode in ["close", "keep"] {
        let caller = From::Container(host, "caller");
        clients.push(Client::requests(&caller, mode, RATE, &vip)?);
        clients.push(Client::requests(&From::Host(lab.host(2)), mode, RATE, &mesh)?);
    }
    let changed = change(lab);
    std::thread::sleep(Duration::from_secs(1));
    let mut worst = Ok(());
    for client in clients {
        worst = worst.and(client.lost_nothing(u64::from(RATE)).map(drop));
    }
    changed.and(worst).with_context(|| {
        let tails = lab.hosts.iter().map(|host| format!("{}:\n{}\n", host.name, host.log_tail(12)));
        let tails = tails.collect::<String>();
        format!("{tails}{}", seen_by_caller(host).unwrap_or_else(|error| format!("{error:#}")))
    })
}

/// For who reads a failure: where the caller's packets go, and where the tasks are.
fn seen_by_caller(host: &lab::Host) -> Result<String> {
    let neighbours =
        From::Container(host, "caller").command("ip")?.args(["-s", "neigh"]).output()?;
    let mut seen = String::from_utf8_lossy(&neighbours.stdout).into_owned();
    let tasks = host.api("GET", "/tasks", "")?.1;
    for task in serde_json::from_str::<Vec<serde_json::Value>>(&tasks)? {
        let (status, id) = (&task["Status"], &task["ID"]);
        let on = &task["NetworksAttachments"];
        let addresses: Vec<_> =
            on.as_array().into_iter().flatten().map(|one| &one["Addresses"]).collect();
        seen += &format!("{id} {} {} {addresses:?}\n", status["State"], status["Timestamp"]);
    }
    Ok(seen)
}

fn update(lab: &Lab, order: &str, version: u32) -> Result<()> {
    let answer = lab.host(1).dk(&format!(
        "service update --detach=false --no-resolve-image --update-order {order} --update-parallelism 1 --env-add V={version} app"
    ))?;
    ensure!(answer.contains("converged"), "{answer}");
    until_running(lab.host(1), "app", 3)
}

fn scale(lab: &Lab) -> Result<()> {
    for count in [6, 2, 3] {
        lab.host(1).dk(&format!("service scale -d app={count}"))?;
        until_running(lab.host(1), "app", count)?;
    }
    Ok(())
}

fn drain(lab: &Lab) -> Result<()> {
    let (host, drained) = (lab.host(1), &lab.host(3).name);
    host.dk(&format!("node update --availability drain {drained}"))?;
    wait_until(Duration::from_secs(60), || {
        let format = "{{.Node}} {{.CurrentState}}";
        let list = host.docker(&["service", "ps", "--format", format, "app"])?;
        Ok(!list.lines().any(|line| line.starts_with(&format!("{drained} Running"))))
    })?;
    until_running(host, "app", 3)?;
    host.dk(&format!("node update --availability active {drained}")).map(drop)
}

/// The daemons of the caller, of the node that receives and of a task's node, one after the other.
fn kill_daemons(lab: &Lab) -> Result<()> {
    let before = lab.host(1).dk("inspect -f {{.NetworkSettings.Networks.web.IPAddress}} caller")?;
    let caller = From::Container(lab.host(1), "caller");
    let questions = Client::questions(&caller, 200, &["app", "tasks.app", "caller"])?;
    for host in lab.hosts.iter().rev() {
        host.kill()?;
        std::thread::sleep(Duration::from_secs(1));
        host.start().with_context(|| format!("the daemon of {} after its death", host.name))?;
    }
    questions.lost_nothing(600)?;
    let after = lab.host(1).dk("inspect -f {{.NetworkSettings.Networks.web.IPAddress}} caller")?;
    ensure!(before == after, "the caller's address: {before}, then {after}");
    // The tasks that ran still do.
    wait_until(Duration::from_secs(40), || {
        Ok(lab.host(1).dk("node ls")?.matches("Ready").count() == 3)
    })?;
    until_running(lab.host(1), "app", 3)
}
