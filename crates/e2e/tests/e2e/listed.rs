//! `docker network inspect --verbose`: every node lists the same.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::host::wait_until;
use lab::{Host, Lab};
use serde_json::Value;

use crate::overlay::{CREATE, SOON};

pub fn inspected(host: &Host, network: &str) -> Result<Value> {
    let text = host.docker(&["network", "inspect", "-v", network])?;
    Ok(serde_json::from_str::<Value>(&text)?[0].take())
}

pub fn every_node_lists_the_same(lab: &Lab) -> Result<()> {
    for (network, service) in [("web", "web"), ("ingress", "web")] {
        let tasks = |host: &Host| -> Result<Value> {
            Ok(inspected(host, network)?["Services"][service].take())
        };
        let (mut here, mut there) = (Value::Null, Value::Null);
        wait_until(SOON, || {
            (here, there) = (tasks(lab.host(1))?, tasks(lab.host(2))?);
            Ok(here == there && here["Tasks"].as_array().is_some_and(|list| list.len() == 4))
        })
        .with_context(|| format!("{network}: {here}\n{there}"))?;
        let hosts: Vec<&str> = here["Tasks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|task| task["Info"]["Host IP"].as_str())
            .collect();
        for host in &lab.hosts {
            let count = hosts.iter().filter(|ip| **ip == host.address).count();
            ensure!(count == 2, "{network}: {hosts:?}");
        }
        if network == "ingress" {
            ensure!(here["Ports"][0] == "Target: 80, Publish: 80", "{here}");
        }
    }
    let peers = |host: &Host| -> Result<BTreeSet<String>> {
        let shown = inspected(host, "web")?;
        let peers = shown["Peers"].as_array().cloned().unwrap_or_default();
        Ok(peers.iter().map(|peer| peer["IP"].to_string()).collect())
    };
    ensure!(peers(lab.host(1))? == peers(lab.host(2))? && peers(lab.host(1))?.len() == 2);
    let shown = inspected(lab.host(2), "web")?;
    let containers = shown["Containers"].as_object().context("no containers")?;
    let both = containers.values().filter(|one| one["IPv6Address"] != "").count();
    ensure!(both == 2 && containers.contains_key("lb-web"), "{containers:?}");
    Ok(())
}

/// What it does not hear on the gossip it knows as a manager: all but the endpoints' ids.
pub fn a_manager_without_a_part_lists_all(lab: &Lab) -> Result<()> {
    let (host, far) = (lab.host(1), lab.host(2));
    host.dk("network create -d overlay apart")?;
    let there = format!("--constraint node.hostname=={}", far.name);
    host.dk(&format!("{CREATE} --name apart --replicas 2 {there} --network apart httpd"))?;
    let listed = |at: &Host| -> Result<Value> {
        let mut services = inspected(at, "apart")?["Services"].take();
        for task in services["apart"]["Tasks"].as_array_mut().into_iter().flatten() {
            task["EndpointID"].take();
        }
        Ok(services)
    };
    let (mut here, mut there) = (Value::Null, Value::Null);
    wait_until(SOON, || {
        (here, there) = (listed(host)?, listed(far)?);
        let tasks = there["apart"]["Tasks"].as_array();
        Ok(here == there && tasks.is_some_and(|tasks| tasks.len() == 2))
    })
    .with_context(|| format!("{here}\n{there}"))?;
    let task = &here["apart"]["Tasks"][0];
    ensure!(task["Info"]["Host IP"] == far.address.as_str(), "{task}");
    host.dk("service rm apart").map(drop)
}
