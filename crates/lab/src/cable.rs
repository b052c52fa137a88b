//! The wires: a router namespace that leads nowhere, and one cable per host.

use anyhow::Result;

use crate::command::sh;
use crate::plan::Plan;

/// Makes the router: one switch, or a gateway per host when routed.
pub fn router_up(router: &str, plan: &Plan) -> Result<()> {
    sh(&format!("ip netns add {router}"))?;
    sh(&format!("ip -n {router} link set lo up"))?;
    forward(router)?;
    if !plan.routed {
        sh(&format!("ip -n {router} link add br0 mtu {} type bridge", plan.uplink_mtu))?;
        sh(&format!("ip -n {router} addr add {}/24 dev br0", plan.gateway(1)))?;
        if plan.ipv6 {
            sh(&format!("ip -n {router} addr add {}/64 dev br0 nodad", plan.gateway6(1)))?;
        }
        sh(&format!("ip -n {router} link set br0 up"))?;
    }
    Ok(())
}

fn forward(router: &str) -> Result<()> {
    for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        sh(&format!("nsenter --net=/run/netns/{router} sysctl -qw {key}"))?;
    }
    Ok(())
}

/// Makes the namespace of host `number` with its cable to the router and its addresses.
pub fn host_up(router: &str, namespace: &str, number: usize, plan: &Plan) -> Result<()> {
    let mtu = plan.uplink_mtu;
    sh(&format!("ip netns add {namespace}"))?;
    sh(&format!(
        "ip -n {router} link add h{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"
    ))?;
    if plan.routed {
        sh(&format!("ip -n {router} addr add {}/24 dev h{number}", plan.gateway(number)))?;
        if plan.ipv6 {
            sh(&format!(
                "ip -n {router} addr add {}/64 dev h{number} nodad",
                plan.gateway6(number)
            ))?;
        }
    } else {
        sh(&format!("ip -n {router} link set h{number} master br0"))?;
    }
    sh(&format!("ip -n {router} link set h{number} up"))?;
    sh(&format!("ip -n {namespace} link set lo up"))?;
    sh(&format!("ip -n {namespace} addr add {}/24 dev eth0", plan.address(number)))?;
    if plan.ipv6 {
        sh(&format!("ip -n {namespace} addr add {}/64 dev eth0 nodad", plan.address6(number)))?;
    }
    sh(&format!("ip -n {namespace} link set eth0 up"))?;
    sh(&format!("ip -n {namespace} route add default via {}", plan.gateway(number)))?;
    if plan.ipv6 {
        sh(&format!("ip -n {namespace} -6 route add default via {}", plan.gateway6(number)))?;
    }
    Ok(())
}
