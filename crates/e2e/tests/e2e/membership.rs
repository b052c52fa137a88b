//! Who is in a swarm, and what keeps the others out: init's options, locks, tokens, authorities, removal.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::until_running;
use e2e::{answers, cases, hosts, hosts_with, refused, task_on};
use lab::host::wait_until;
use lab::{Engine, Host, Lab};

/// For what nodes do among themselves: sessions, renewals, states.
const SETTLED_MAX: Duration = Duration::from_secs(60);

#[test]
fn membership() -> Result<()> {
    let lab = hosts(2)?;
    cases(
        &lab,
        &[
            ("a swarm begins as it was asked to", a_swarm_begins_as_asked),
            ("a locked manager opens with its key alone", a_locked_manager_opens_with_its_key),
            ("an unlock key is replaced", an_unlock_key_is_replaced),
            ("an old token lets nobody in", an_old_token_lets_nobody_in),
            ("a secret is on no disk", a_secret_is_on_no_disk),
            ("another authority, the same tasks", another_authority_the_same_tasks),
            ("a node that was removed stays out", a_node_that_was_removed_stays_out),
            ("a manager that cannot begin forgets nothing", a_manager_that_cannot_begin),
        ],
    )?;
    lab.down()
}

/// What the manager itself runs goes on while it is locked, and it comes back under another name. With the Docker
/// Engine the tasks of a daemon that was stopped are started anew.
#[test]
fn a_locked_manager_goes_on_with_its_tasks_under_a_new_name() -> Result<()> {
    let lab = hosts(2)?;
    lab.swarm(1)?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    manager.dk("service create -q -d --no-resolve-image --name web --replicas 4 httpd")?;
    until_running(manager, "web", 4)?;
    manager.dk("network create -d overlay --attachable side")?;
    manager.dk("run -d --name own --network side httpd")?;
    let open = key_file(manager)?;
    manager.dk("swarm update --autolock")?;
    let key = manager.dk("swarm unlock-key -q")?;
    let before = manager.dk("ps -q --no-trunc")?;
    until_sealed_otherwise(manager, &open)?;
    manager.stop()?;
    manager.sh("hostname renamed1")?;
    manager.start()?;
    ensure!(locked(manager)?);
    let skep = manager.engine == Engine::Skep;
    let kept = || -> Result<()> {
        let now = manager.dk("ps -q --no-trunc")?;
        ensure!(!skep || now == before, "other containers: {before} {now}");
        Ok(())
    };
    kept().context("while it is locked")?;
    ensure!(unlock(manager, &key)?.0 == 200);
    until_managing(manager)?;
    until_shown(manager, "renamed1")?;
    until_running(manager, "web", 4)?;
    kept().context("after it was unlocked")?;
    let known =
        || manager.docker(&["network", "inspect", "-v", "-f", "{{json .Services}}", "side"]);
    wait_until(SETTLED_MAX, || Ok(!skep || known()?.contains("\"own\"")))
        .context("the user's own container has its name")?;
    worker.stop()?;
    worker.sh("hostname renamed2")?;
    worker.start()?;
    until_shown(manager, "renamed2")?;
    refused(manager, "node inspect sathish-vm2", "node sathish-vm2 not found")?;
    let there = "--constraint node.hostname==renamed2 --hostname {{.Node.Hostname}}";
    manager.dk(&format!("service create -q -d --no-resolve-image --name there {there} httpd"))?;
    until_running(manager, "there", 1)?;
    answers(manager, "service ps --format {{.Node}} there", "renamed2")?;
    let task = task_on(worker, "there")?;
    answers(worker, &format!("exec {task} hostname"), "renamed2")?;
    lab.down()
}

/// A node of this name is a ready one.
/// Two managers fall with one of them, and `docker info` says so.
#[test]
fn an_even_number_of_managers_is_warned_of() -> Result<()> {
    let lab = hosts(2)?;
    let host = lab.host(1);
    host.dk(&format!("swarm init --advertise-addr {}", host.address))?;
    let warned = || -> Result<bool> {
        Ok(host.docker(&["info", "-f", "{{json .Warnings}}"])?.contains("2-manager configuration"))
    };
    ensure!(!warned()?, "one manager");
    let token = host.dk("swarm join-token -q manager")?;
    let far = lab.host(2);
    let join = format!("swarm join --advertise-addr {} --token {token}", far.address);
    far.dk(&format!("{join} {}:2377", host.address))?;
    wait_until(SETTLED_MAX, warned).context("two managers")?;
    lab.down()
}

/// The docker command asks for 0.0.0.0 when its user names no address to listen on; that is every
/// address of the host, of both families.
#[test]
fn nodes_meet_over_either_family() -> Result<()> {
    let lab = hosts_with(2, |plan| plan.ipv6 = true)?;
    let (manager, worker) = (lab.host(1), lab.host(2));
    for own in [[1, 2].map(|n| lab.plan.address(n)), [1, 2].map(|n| lab.plan.address6(n))] {
        let [own, theirs] = own.map(|text| text.to_string());
        manager.dk(&format!("swarm init --advertise-addr {own}"))?;
        let token = manager.dk("swarm join-token -q worker")?;
        let port = if own.contains(':') { format!("[{own}]:2377") } else { own };
        worker.dk(&format!("swarm join --token {token} {port}"))?;
        let name = worker.sh("hostname")?;
        until_shown(manager, name.trim())?;
        answers(
            manager,
            &format!("node inspect -f {{{{.Status.Addr}}}} {}", name.trim()),
            &theirs,
        )?;
        worker.dk("swarm leave")?;
        manager.dk("swarm leave --force")?;
    }
    // A link that has IPv6 alone is named for its address, too. The Docker Engine counts those that
    // every link has (fe80::), and refuses it for having more than one.
    if worker.engine == Engine::Dockerd {
        return lab.down();
    }
    worker.sh("ip link add only6 type veth peer name other6")?;
    worker.sh("ip -6 addr add fd00:66::1/64 dev only6 nodad")?;
    for link in ["other6", "only6"] {
        worker.sh(&format!("ip link set {link} up"))?;
    }
    worker.dk("swarm init --advertise-addr only6 --data-path-addr only6")?;
    answers(worker, "info -f {{.Swarm.NodeAddr}}", "fd00:66::1")?;
    lab.down()
}

fn until_shown(manager: &Host, name: &str) -> Result<()> {
    wait_until(SETTLED_MAX, || {
        let nodes = manager.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        Ok(nodes.lines().any(|line| line == format!("{name} Ready")))
    })
    .with_context(|| format!("{name} is not shown"))
}

fn a_swarm_begins_as_asked(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    manager.dk(&format!(
        "swarm init --listen-addr {}:3377 --advertise-addr eth0:3377 --data-path-addr eth0 \
         --data-path-port 5789 --default-addr-pool 192.168.68.0/24 --default-addr-pool 10.77.0.0/16 \
         --default-addr-pool-mask-length 26 \
         --autolock --cert-expiry 2h --availability drain --task-history-limit 3 \
         --dispatcher-heartbeat 3s --snapshot-interval 500 --max-snapshots 2",
        manager.address
    ))?;
    let cluster = manager.docker(&["info", "-f", "{{json .Swarm.Cluster}}"])?;
    for said in [
        r#""DefaultAddrPool":["192.168.68.0/24","10.77.0.0/16"],"SubnetSize":26,"DataPathPort":5789"#,
        r#""TaskHistoryRetentionLimit":3"#,
        r#""SnapshotInterval":500,"KeepOldSnapshots":2"#,
        r#""HeartbeatPeriod":3000000000"#,
        r#""NodeCertExpiry":7200000000000"#,
        r#""AutoLockManagers":true"#,
    ] {
        ensure!(cluster.contains(said), "{said} is not in {cluster}");
    }
    answers(manager, "node ls --format {{.Availability}}", "Drain")?;
    let token = manager.dk("swarm join-token -q worker")?;
    refused(worker, &format!("swarm join --token {token} {}", manager.address), "Error")?;
    worker.dk(&format!(
        "swarm join --token {token} --advertise-addr {} --data-path-addr eth0 --availability active {}:3377",
        worker.address, manager.address
    ))?;
    answers(
        manager,
        "node inspect -f {{.ManagerStatus.Addr}} self",
        &format!("{}:3377", manager.address),
    )?;
    manager.dk("network create -d overlay pool")?;
    let format = "{{(index .IPAM.Config 0).Subnet}}";
    // The first pool is the hosts' own network.
    for network in ["ingress", "pool"] {
        let mut subnet = String::new();
        // Given a moment after the network is there.
        wait_until(SETTLED_MAX, || {
            let shown = manager.try_docker(&["network", "inspect", "-f", format, network])?;
            subnet = String::from_utf8_lossy(&shown.stdout).trim().to_owned();
            Ok(shown.status.success() && !subnet.is_empty())
        })?;
        ensure!(subnet.starts_with("10.77.") && subnet.ends_with("/26"), "{network}: {subnet}");
    }
    manager.dk(
        "service create -q -d --no-resolve-image --name web --network pool --replicas 2 httpd",
    )?;
    until_running(manager, "web", 2)?;
    let nodes = manager.dk("service ps --format {{.Node}} web")?;
    ensure!(nodes.lines().all(|node| node == "sathish-vm2"), "{nodes}");
    Ok(())
}

fn locked(host: &Host) -> Result<bool> {
    Ok(host.dk("info -f {{.Swarm.LocalNodeState}}")? == "locked")
}

/// `docker swarm unlock` wants a terminal; this is what it sends.
fn unlock(host: &Host, key: &str) -> Result<(u16, String)> {
    host.api("POST", "/v1.41/swarm/unlock", &format!("{{\"UnlockKey\":\"{key}\"}}"))
}

/// The node's key as it is on disk.
fn key_file(host: &Host) -> Result<Vec<u8>> {
    Ok(std::fs::read(host.folder.join("data/swarm/certificates/swarm-node.key"))?)
}

/// It is sealed or opened a moment after the change is agreed on.
fn until_sealed_otherwise(host: &Host, before: &[u8]) -> Result<()> {
    wait_until(SETTLED_MAX, || Ok(key_file(host)? != before)).context("the key is as it was")
}

fn until_managing(host: &Host) -> Result<()> {
    wait_until(SETTLED_MAX, || Ok(host.dk("node ls").is_ok())).context("no manager again")
}

fn a_locked_manager_opens_with_its_key(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let key = manager.dk("swarm unlock-key -q")?;
    let before = lab.host(2).dk("ps -q --no-trunc")?;
    manager.stop()?;
    manager.start()?;
    ensure!(locked(manager)?);
    let needs = "Swarm is encrypted and needs to be unlocked before it can be used.";
    for question in ["node ls", "service ls", "swarm join-token worker", "swarm unlock-key"] {
        refused(manager, question, needs)?;
    }
    refused(manager, "swarm leave", "Swarm is encrypted and locked. Please unlock it first")?;
    refused(manager, "swarm init", "This node is already part of a swarm")?;
    for (key, status, words) in [
        ("", 400, "invalid key string"),
        ("SWMKEY-1-x", 400, "invalid key string"),
        (
            "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8",
            401,
            "swarm could not be unlocked: invalid key provided",
        ),
    ] {
        let (got, said) = unlock(manager, key)?;
        ensure!(got == status && said.contains(words), "{key}: {got} {said}");
    }
    ensure!(locked(manager)?, "a wrong key opened it");
    ensure!(unlock(manager, &key)?.0 == 200);
    until_managing(manager)?;
    until_running(manager, "web", 2)?;
    let now = lab.host(2).dk("ps -q --no-trunc")?;
    ensure!(now == before, "a worker's tasks were touched: {before} {now}");
    ensure!(unlock(manager, &key)?.0 == 409);
    Ok(())
}

fn an_unlock_key_is_replaced(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    let old = manager.dk("swarm unlock-key -q")?;
    let sealed = key_file(manager)?;
    let new = manager.dk("swarm unlock-key --rotate -q")?;
    ensure!(old != new && new.starts_with("SWMKEY-1-"), "{old} {new}");
    answers(manager, "swarm unlock-key -q", &new)?;
    until_sealed_otherwise(manager, &sealed)?;
    manager.stop()?;
    manager.start()?;
    ensure!(locked(manager)?);
    ensure!(unlock(manager, &old)?.0 == 401, "the old key still opens it");
    ensure!(unlock(manager, &new)?.0 == 200);
    until_managing(manager)?;
    let sealed = key_file(manager)?;
    manager.dk("swarm update --autolock=false")?;
    refused(manager, "swarm unlock-key", "no unlock key is set")?;
    until_sealed_otherwise(manager, &sealed)?;
    manager.stop()?;
    manager.start()?;
    until_managing(manager).context("without autolock")?;
    for host in [lab.host(2), manager] {
        host.dk("swarm leave --force")?;
        answers(host, "info -f {{.Swarm.LocalNodeState}}", "inactive")?;
    }
    Ok(())
}

fn an_old_token_lets_nobody_in(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    manager.dk(&format!("swarm init --advertise-addr {}", manager.address))?;
    // At once: its object does not change under whoever changes it next.
    answers(manager, "node ls --format {{.Status}}", "Ready")?;
    let old = manager.dk("swarm join-token -q worker")?;
    let managers = manager.dk("swarm join-token -q manager")?;
    let new = manager.dk("swarm join-token -q --rotate worker")?;
    ensure!(old != new && new != managers, "{old} {new}");
    answers(manager, "swarm join-token -q manager", &managers)?;
    let join = |token: &str| format!("swarm join --token {token} {}:2377", manager.address);
    refused(worker, &join(&old), "A valid join token is necessary to join this cluster")?;
    answers(worker, "info -f {{.Swarm.LocalNodeState}}", "inactive")?;
    // A token of another cluster: its digest is of another authority.
    let digest = new.split('-').nth(2).context("no digest")?;
    let foreign = new.replace(digest, "3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl");
    refused(worker, &join(&foreign), "remote CA does not match fingerprint")?;
    worker.dk(&join(&new)).map(drop)
}

/// Which files of a folder of this machine hold the text; what is mounted inside a host is not seen.
fn holding(folder: &std::path::Path, text: &str) -> Result<String> {
    let found = Command::new("grep").args(["-rlaF", text]).arg(folder).output()?;
    Ok(String::from_utf8_lossy(&found.stdout).into_owned())
}

fn a_secret_is_on_no_disk(lab: &Lab) -> Result<()> {
    const HUSH: &str = "nobody-may-find-this-anywhere-on-a-disk";
    let manager = lab.host(1);
    manager.docker(&[
        "run",
        "--name",
        "seeker",
        "httpd",
        "sh",
        "-c",
        &format!("echo {} > /found", &HUSH[..20]),
    ])?;
    for host in &lab.hosts {
        // The test would see it if it were there.
        let seen = holding(&host.folder.join("data"), &HUSH[..20])?;
        ensure!(host.number != 1 || !seen.is_empty(), "nothing is found at all");
    }
    manager.dk("rm seeker")?;
    let file = lab.folder.join("hush");
    std::fs::write(&file, HUSH)?;
    manager.docker(&["secret", "create", "hush", &file.display().to_string()])?;
    manager.dk("service create -q -d --no-resolve-image --name keeper --secret hush --constraint node.hostname==sathish-vm2 httpd")?;
    until_running(manager, "keeper", 1)?;
    let task = lab.host(2).dk("ps -q --filter label=com.docker.swarm.service.name=keeper")?;
    answers(lab.host(2), &format!("exec {task} cat /run/secrets/hush"), HUSH)?;
    for host in &lab.hosts {
        let found = holding(&host.folder, HUSH)?;
        ensure!(found.is_empty(), "in clear on {}: {found}", host.name);
    }
    manager.dk("service rm keeper").map(drop)
}

fn another_authority_the_same_tasks(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    manager.dk("service create -q -d --no-resolve-image --name web --mode global httpd")?;
    until_running(manager, "web", 2)?;
    let tasks = || -> Result<String> {
        Ok(lab
            .hosts
            .iter()
            .map(|host| host.dk("ps -q --no-trunc"))
            .collect::<Result<Vec<_>>>()?
            .join(" "))
    };
    let (before, old, token) =
        (tasks()?, manager.dk("swarm ca")?, manager.dk("swarm join-token -q worker")?);
    manager.dk("swarm ca --rotate -q")?;
    let new = manager.dk("swarm ca")?;
    ensure!(new.contains("BEGIN CERTIFICATE") && new != old, "the authority is the same");
    for node in ["sathish-vm1", "sathish-vm2"] {
        let trusts = manager
            .dk(&format!("node inspect -f {{{{.Description.TLSInfo.TrustRoot}}}} {node}"))?;
        ensure!(trusts.trim() == new.trim(), "{node} trusts {trusts}");
    }
    ensure!(manager.dk("swarm join-token -q worker")? != token, "the tokens are the same");
    answers(manager, "node ls --format {{.Status}}", "Ready\nReady")?;
    // With the new certificates all goes on as before.
    manager.dk("service update -q -d --no-resolve-image --label-add a=b web")?;
    until_running(manager, "web", 2)?;
    ensure!(tasks()? == before, "tasks were replaced");
    worker.stop()?;
    worker.start()?;
    wait_until(SETTLED_MAX, || {
        Ok(manager.dk("node inspect -f {{.Status.State}} sathish-vm2")? == "ready"
            && worker.dk("info -f {{.Swarm.LocalNodeState}}")? == "active")
    })
    .context("the worker with its new certificate")
}

fn a_node_that_was_removed_stays_out(lab: &Lab) -> Result<()> {
    let (manager, worker) = (lab.host(1), lab.host(2));
    until_running(manager, "web", 2)?;
    refused(manager, "node rm sathish-vm2", "is not down and can't be removed")?;
    manager.dk("node rm --force sathish-vm2")?;
    answers(manager, "node ls --format {{.Hostname}}", "sathish-vm1")?;
    worker.stop()?;
    worker.start()?;
    // Time enough to come back, had its certificate been good.
    std::thread::sleep(Duration::from_secs(5));
    answers(manager, "node ls --format {{.Hostname}}", "sathish-vm1")?;
    let state = worker.dk("info -f {{.Swarm.LocalNodeState}}")?;
    ensure!(state != "active", "a removed node calls itself {state}");
    worker.dk("swarm leave --force")?;
    let token = manager.dk("swarm join-token -q worker")?;
    worker.dk(&format!("swarm join --token {token} {}:2377", manager.address))?;
    wait_until(SETTLED_MAX, || {
        Ok(manager.dk("node ls --format {{.Hostname}}={{.Status}}")?.contains("sathish-vm2=Ready"))
    })
}

/// Its port is another program's: what it knows of the swarm may be all that is left of it.
fn a_manager_that_cannot_begin(lab: &Lab) -> Result<()> {
    let manager = lab.host(1);
    manager.dk("config create kept /etc/hostname")?;
    manager.stop()?;
    let held = manager.within("/proc/1/ns/net", || Ok(TcpListener::bind("0.0.0.0:2377")?))?;
    manager.start()?;
    answers(manager, "info -f {{.Swarm.LocalNodeState}}", "error")?;
    let why = "could not begin its part: listen on 0.0.0.0:2377: Address already in use";
    refused(manager, "swarm init --advertise-addr nonsense", why)?;
    refused(manager, "swarm leave", why)?;
    refused(manager, "node ls", why)?;
    drop(held);
    wait_until(SETTLED_MAX, || Ok(manager.dk("config ls -q -f name=kept").is_ok()))?;
    answers(manager, "config ls --format {{.Name}}", "kept")?;
    manager.dk("config rm kept").map(drop)
}
