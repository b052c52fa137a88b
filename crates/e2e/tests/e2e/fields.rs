//! What the API tells, field by field and event by event, beside the Docker Engine on a host of its own.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::hosts_of;
use lab::{Engine, Host, Plan};
use serde_json::Value;

/// Questions whose answers are compared.
const QUESTIONS: &[&str] = &[
    "/version",
    "/info",
    "/system/df",
    "/containers/json?all=1",
    "/containers/one/json",
    "/containers/one/stats?stream=0&one-shot=1",
    "/images/json",
    "/images/httpd/json",
    "/images/httpd/history",
    "/networks/one",
    "/volumes",
    "/volumes/one",
];

/// Fields that the Docker Engine 20.10 has and newer ones have not.
const GONE: &[&str] = &[
    ".KernelMemory",
    ".KernelMemoryTCP",
    ".HostConfig.KernelMemory",
    ".HostConfig.KernelMemoryTCP",
    ".ContainerConfig",
    ".Runtimes.io.containerd.runtime.v1.linux",
    // DNSNames since.
    ".NetworkSettings.Networks.one.Aliases[]",
    // Of the overlay2 driver: where a container of the image would lie.
    ".GraphDriver.Data.MergedDir",
    ".GraphDriver.Data.WorkDir",
];

/// Everything that makes events and needs no registry.
const DEEDS: &str = "docker volume create two; docker network create net-two
docker create --name two --label a=b -v two:/v httpd sleep 1000; docker start two
docker exec two true; docker pause two; docker unpause two; docker rename two second
docker update --memory 64m second; docker network connect net-two second; docker network disconnect net-two second
docker top second; docker cp second:/etc/passwd passwd; docker kill -s USR1 second; docker restart -t 0 second
docker stop -t 0 second; docker commit second made:1; docker tag made:1 made:2; docker export second > second.tar
docker save made:1 > made.tar; docker rmi made:1 made:2; docker load -i made.tar; docker rm second
docker network rm net-two; docker volume rm two; docker rmi made:1; docker run --rm httpd false
docker import second.tar made:3; docker rmi made:3
docker container prune -f; docker image prune -f; docker network prune -f; docker volume prune -f";

#[test]
fn answers_and_events_have_the_docker_engines_fields() -> Result<()> {
    let mut plan = Plan::skep(2)?;
    plan.engines = vec![Engine::Skep, Engine::Dockerd];
    let lab = hosts_of(&plan)?;
    let (own, peer) = (lab.host(1), lab.host(2));
    for host in [own, peer] {
        host.dk("network create --subnet 10.77.0.0/24 --gateway 10.77.0.1 one")?;
        host.dk("run -d --name one --network one -v one:/v -p 8088:80 httpd")?;
        // To the disk itself: what a container has read and written there is told by device.
        let line = "dd if=/bin/busybox of=/v/file bs=64k count=1 conv=fsync";
        host.docker(&["exec", "one", "sh", "-c", line])?;
    }
    let mut wrong = Vec::new();
    for question in QUESTIONS {
        let (own, peer) = (fields(own, question)?, fields(peer, question)?);
        for (field, kind) in &peer {
            let gone = GONE.iter().any(|gone| field.starts_with(gone));
            let fits = own.get(field).is_some_and(|own| alike(own, kind));
            // An empty list or object is written as null by either, here and there.
            if !gone && !fits && *kind != "null" {
                wrong.push(format!("{question} {field}: {:?}, not {kind}", own.get(field)));
            }
        }
    }
    let (own, peer) = (events(own)?, events(peer)?);
    for (event, count) in &peer {
        if own.get(event).copied().unwrap_or(0) != *count {
            wrong.push(format!("event {event}: {:?} times, not {count}", own.get(event)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.down()
}

fn alike(own: &str, peer: &str) -> bool {
    own == peer || own == "null" && matches!(peer, "list" | "object")
}

/// The type of every field by its path; of a list its first element's.
fn fields(host: &Host, question: &str) -> Result<BTreeMap<String, &'static str>> {
    let (status, text) = host.api("GET", &format!("/v1.41{question}"), "")?;
    ensure!(status == 200, "{question}: {status} {text}");
    let mut found = BTreeMap::new();
    walk(&serde_json::from_str(&text)?, String::new(), &mut found);
    Ok(found)
}

fn walk(value: &Value, path: String, found: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(list) => {
            list.iter().take(1).for_each(|first| walk(first, format!("{path}[]"), found));
            "list"
        }
        Value::Object(object) => {
            for (key, value) in object {
                // Ids are no names of fields.
                let key = if key.len() == 64 { "ID" } else { key };
                walk(value, format!("{path}.{key}"), found);
            }
            "object"
        }
    };
    found.insert(path, kind);
}

/// How often which event was told, as `type action attributes`.
fn events(host: &Host) -> Result<BTreeMap<String, usize>> {
    // To the nanosecond: what was done in the same second before is none of it.
    let since = host.sh("date +%s.%N")?;
    let folder = host.folder.join("deeds");
    std::fs::create_dir_all(&folder)?;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", DEEDS]).current_dir(&folder);
    shell.env("DOCKER_HOST", host.docker_host()).env("DOCKER_CONFIG", &host.cli);
    lab::command::output(&mut shell)?;
    let until = host.sh("date +%s")?.parse::<u64>()? + 1;
    let path = format!("/v1.41/events?since={since}&until={until}");
    let (_, text) = host.api("GET", &path, "")?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let told = told(&event);
        // The Docker Engine 20.10 tells the first two twice, and mounts volumes for a docker cp, too.
        let more = ["volume create", "network disconnect", "volume mount", "volume unmount"];
        let once = more.iter().any(|beginning| told.starts_with(beginning));
        let count: &mut usize = counts.entry(told).or_default();
        *count = if once { 1 } else { *count + 1 };
    }
    Ok(counts)
}

fn told(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let action = text("Action");
    let action = action.split(':').next().unwrap_or_default();
    let keys = event["Actor"]["Attributes"].as_object().into_iter().flatten().map(|(key, _)| key);
    // Newer ones tell this, too.
    let keys: Vec<&str> = keys.map(String::as_str).filter(|key| *key != "execDuration").collect();
    let id = if event["id"].is_string() { " with an id" } else { "" };
    format!("{} {action} {} {}{id}", text("Type"), keys.join(","), text("scope"))
}
