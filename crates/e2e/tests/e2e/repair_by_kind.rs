//! Every kind of object that skep keeps in the kernel, deleted or altered behind its back on one
//! host of two: it is as it was within two sweeps, counted, and traffic goes on; what others have
//! there is left alone. `REPAIR=each` damages one thing after another, the suite several at once.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::load::{From, until_running, virtual_address};
use e2e::{swarm_of_skep, task_on};
use lab::host::{wait_until, within};
use lab::{Host, Lab};
use serde_json::{Map, Value, json};

/// What is damaged while a sweep looks is seen by the next; what takes two steps by the one after.
const SWEEPS_MAX: u64 = 3;
/// A sweep is every two seconds; this is for a busy machine.
const REPAIRED_MAX: Duration = Duration::from_secs(20);
const TOGETHER: usize = 8;

/// Where a command is done, and the command: names in it are variables of [`Places`].
type Damage = (&'static str, &'static str);

const DAMAGES: &[Damage] = &[
    // Bridges, their addresses and ports.
    ("host", "ip link set docker_gwbridge down"),
    ("host", "ip link del docker_gwbridge"),
    ("host", "ip link set docker_gwbridge down name mine0"),
    ("host", "ip link set docker_gwbridge mtu 1300"),
    ("host", "ip link set docker_gwbridge address 02:00:00:00:00:01"),
    ("host", "ip addr flush dev docker_gwbridge"),
    ("host", "ip route del 172.18.0.0/16 dev docker_gwbridge || ip route del 172.19.0.0/16"),
    ("host", "ip link del $BR"),
    ("host", "ip link set $BR down name mine1"),
    ("host", "ip link set docker0 down"),
    ("host", "ip link del docker0"),
    ("host", "ip addr del 172.17.0.1/16 dev docker0"),
    ("host", "ip link del $LOCAL"),
    ("host", "ip link set $LOCAL down"),
    ("host", "ip link set $LOCAL nomaster"),
    ("host", "ip link set $LOCAL master docker0"),
    ("host", "ip link set $LOCAL mtu 1280"),
    ("host", "ip link set $LOCAL down name away0"),
    ("host", "bridge link set dev $LOCAL hairpin off"),
    ("host", "bridge link set dev $LOCAL isolated on"),
    ("host", "ip link del $OUT"),
    // The routing mesh's ways from the host.
    ("host", "ip link del vethingr1"),
    ("host", "ip link del vethingr2"),
    ("host", "ip addr flush dev vethingr2"),
    ("host", "ip -6 route del local ::1 dev vethingr2 table local"),
    // Switches.
    ("host", "sysctl -qw net.ipv4.ip_forward=0"),
    ("host", "sysctl -qw net.ipv6.conf.all.forwarding=0"),
    ("host", "sysctl -qw net.ipv4.conf.$BR.route_localnet=0"),
    // The table.
    ("host", "nft delete table inet skep"),
    ("host", "nft flush table inet skep"),
    ("host", "nft flush chain inet skep published"),
    ("host", "nft insert rule inet skep forward drop"),
    (
        "host",
        "nft add chain inet skep extra '{ type filter hook input priority 0; policy accept; }'",
    ),
    ("host", "nft add table inet skep '{ flags dormant; }'"),
    ("host", "nft chain inet skep forward '{ policy drop; }'"),
    ("host", "nft add set inet skep named '{ type ipv4_addr; }'"),
    (
        "host",
        "nft delete rule inet skep published handle $(nft -a list chain inet skep published | grep 8080 | head -1 | sed 's/.*handle //')",
    ),
    // An overlay's namespace.
    ("overlay", "ip link set br0 down"),
    ("overlay", "ip link del br0"),
    ("overlay", "ip link set br0 down name br7"),
    ("overlay", "ip link set br0 mtu 1300"),
    ("overlay", "ip addr flush dev br0"),
    ("overlay", "ip link set vxlan0 down"),
    ("overlay", "ip link del vxlan0"),
    ("overlay", "ip link set vxlan0 down name vxlan7"),
    ("overlay", "ip link set vxlan0 nomaster"),
    ("overlay", "ip link set vxlan0 mtu 1300"),
    ("overlay", "ip link set vxlan0 type vxlan learning"),
    (
        "overlay",
        "ip link del vxlan0; ip link add vxlan0 type vxlan id 77 dstport 4999 local 127.0.0.1",
    ),
    ("overlay", "ip link del vxlan0; ip link add vxlan0 type veth"),
    ("overlay", "ip link del $LEG"),
    ("overlay", "ip link set $LEG nomaster"),
    ("overlay", "ip neigh del $PEER dev vxlan0"),
    ("overlay", "ip neigh replace $PEER lladdr 02:00:00:00:00:02 dev vxlan0 nud permanent"),
    ("overlay", "ip neigh replace $PEER lladdr $PEERMAC dev vxlan0 nud stale"),
    ("overlay", "ip neigh del $PEER6 dev vxlan0"),
    ("overlay", "ip neigh add 10.0.1.200 lladdr 02:00:00:00:00:03 dev vxlan0 nud permanent"),
    ("overlay", "bridge fdb del $PEERMAC dev vxlan0 dst $FAR self"),
    ("overlay", "bridge fdb replace $PEERMAC dev vxlan0 dst 192.168.68.1 self permanent"),
    ("overlay", "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.168.68.1 self permanent"),
    ("overlay", "sysctl -qw net.ipv4.ip_forward=0"),
    // A container's namespace, and a task's.
    ("container", "ip link set eth0 down"),
    ("container", "ip link del eth0"),
    ("container", "ip link set eth0 down name eth9"),
    ("container", "ip link set eth0 mtu 1280"),
    ("container", "ip link set eth0 address 02:00:00:00:00:04"),
    ("container", "ip addr del $OWN/24 dev eth0"),
    ("container", "ip addr del $OWN6/64 dev eth0"),
    ("container", "ip addr flush dev eth0"),
    ("container", "ip route del 10.0.1.0/24 dev eth0"),
    ("container", "ip route del default"),
    ("container", "ip route replace default via 172.18.0.77 dev eth1 onlink"),
    ("container", "ip link set lo down"),
    ("container", "nft delete table inet skep"),
    ("container", "nft flush chain inet skep vip-$VIP"),
    ("container", "nft flush chain inet skep output"),
    ("task", "nft delete table inet skep"),
    ("task", "ip rule del priority $(ip rule | grep fwmark | head -1 | cut -d: -f1)"),
    ("task", "ip -6 rule del priority $(ip -6 rule | grep fwmark | head -1 | cut -d: -f1)"),
    ("task", "ip route flush table $(ip rule | grep fwmark | head -1 | sed 's/.*lookup //')"),
    ("task", "sysctl -qw net.ipv4.conf.all.rp_filter=1"),
    // The mesh's own namespace, and the ingress network's.
    ("mesh", "nft delete table inet skep"),
    ("mesh", "nft flush chain inet skep mesh"),
    ("mesh", "ip link del eth0"),
    ("mesh", "ip link del eth1"),
    ("mesh", "ip route del default"),
    ("mesh", "ip -6 route del default"),
    ("mesh", "ip addr flush dev eth2"),
    ("mesh", "sysctl -qw net.ipv4.ip_forward=0"),
    ("ingress", "ip link del vxlan0"),
    ("ingress", "ip link set br0 down"),
    (
        "ingress",
        "bridge fdb show dev vxlan0 | grep dst | while read mac rest; do bridge fdb del $mac dev vxlan0 self; done",
    ),
    ("ingress", "ip neigh flush dev vxlan0 nud permanent"),
];

/// The files that keep namespaces, one after another.
const UNMOUNTED: &[Damage] = &[
    ("host", "umount -l $NETNS/$OVERLAY"),
    ("host", "umount -l $NETNS/$CONTAINER"),
    ("host", "umount -l $NETNS/ingress_sbox"),
    ("host", "umount -l $NETNS/$TASK && rm $NETNS/$TASK"),
];

#[test]
fn whatever_is_altered_is_put_right() -> Result<()> {
    let lab = swarm_of_skep(2, |_| {})?;
    let mut places = Places::made(&lab)?;
    let each = std::env::var("REPAIR").is_ok_and(|how| how == "each");
    let mut waiting = batches(if each { 1 } else { TOGETHER });
    let mut failed = Vec::new();
    while let Some(batch) = waiting.pop_front() {
        let start = Instant::now();
        match repaired(&places, &batch) {
            Ok(held_up) => waiting.extend(held_up.into_iter().map(|one| vec![one])),
            Err(error) => {
                eprintln!("FAILED {batch:#?}: {error:#}");
                failed.push(batch);
                // The next one begins with what this one has left.
                places.before = places.seen()?;
                continue;
            }
        }
        eprintln!("{:.1} s: {batch:?}", start.elapsed().as_secs_f64());
    }
    ensure!(failed.is_empty(), "not repaired: {failed:#?}\n{}", lab.host(1).log_tail(40));
    lab.down()
}

/// Neighbours in the list concern one object: together are those that stand far apart.
fn batches(size: usize) -> VecDeque<Vec<Damage>> {
    let count = DAMAGES.len().div_ceil(size);
    let far = |n: usize| DAMAGES.iter().skip(n).step_by(count).copied().collect();
    let apart = UNMOUNTED.iter().map(|one| vec![*one]);
    (0..count).map(far).chain(apart).collect()
}

/// Gives what could not be damaged because something else of the batch was.
fn repaired(places: &Places, batch: &[Damage]) -> Result<Vec<Damage>> {
    let repairs = places.counter("repairs")?;
    let mut held_up = Vec::new();
    for (place, command) in batch {
        match places.run(place, command) {
            Ok(_) => {}
            Err(_) if batch.len() > 1 => held_up.push((*place, *command)),
            Err(error) => return Err(error),
        }
    }
    places.until_as(&places.before)?;
    let counted = places.counter("repairs")? - repairs;
    let done = batch.len() - held_up.len();
    ensure!(counted >= done as u64, "{counted} repairs counted of {done}");
    wait_until(Duration::from_secs(5), || Ok(places.traffic().is_ok()))
        .or_else(|_| places.traffic())
        .context("traffic")?;
    Ok(held_up)
}

/// Host 1 and its namespaces, what things are called there, and what there was before.
struct Places<'a> {
    lab: &'a Lab,
    host: &'a Host,
    names: BTreeMap<&'static str, String>,
    before: BTreeMap<&'static str, Value>,
}

impl<'a> Places<'a> {
    fn made(lab: &'a Lab) -> Result<Self> {
        let host = lab.host(1);
        host.dk("network create -d overlay --attachable --ipv6 --subnet 10.0.1.0/24 web")?;
        host.dk("service create -q --no-resolve-image --detach --name app --network web --replicas 2 --replicas-max-per-node 1 -p 8080:80 httpd")?;
        host.dk("network create mine")?;
        host.dk("run -d --name local --network mine -p 9090:80 httpd")?;
        host.dk("run -d --name plain -p 9091:80 httpd")?;
        for at in &lab.hosts {
            at.dk(&format!("run -d --name c{} --network web httpd", at.number))?;
        }
        until_running(host, "app", 2)?;
        let mut places = Places { lab, host, names: BTreeMap::new(), before: BTreeMap::new() };
        places.name()?;
        places.others()?;
        wait_until(Duration::from_secs(30), || Ok(places.traffic().is_ok()))
            .or_else(|_| places.traffic())
            .context("before any damage")?;
        places.before = places.seen()?;
        Ok(places)
    }

    fn name(&mut self) -> Result<()> {
        let (host, far) = (self.host, self.lab.host(2));
        let leg = |at: &Host, name: &str, field: &str| {
            let format = format!("{{{{.NetworkSettings.Networks.web.{field}}}}}");
            at.docker(&["inspect", "-f", &format, name])
        };
        let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let short = |id: String| id.chars().take(10).collect::<String>();
        let id = |network: &str| host.dk(&format!("network inspect -f {{{{.Id}}}} {network}"));
        let names = [
            ("NETNS", host.folder.join("exec/netns").display().to_string()),
            ("OVERLAY", format!("1-{}", short(id("web")?))),
            ("INGRESS", format!("1-{}", short(id("ingress")?))),
            ("CONTAINER", file(&host.netns_of("c1")?)),
            ("TASK", file(&host.netns_of(&task_on(host, "app")?)?)),
            ("BR", format!("br-{}", id("mine")?.chars().take(12).collect::<String>())),
            ("FAR", far.address.clone()),
            ("VIP", virtual_address(host, "app", "web")?),
            ("OWN", leg(host, "c1", "IPAddress")?),
            ("OWN6", leg(host, "c1", "GlobalIPv6Address")?),
            ("PEER", leg(far, "c2", "IPAddress")?),
            ("PEER6", leg(far, "c2", "GlobalIPv6Address")?),
            ("PEERMAC", leg(far, "c2", "MacAddress")?),
        ];
        self.names.extend(names);
        let port = |place: &str, bridge: &str| {
            self.run(
                place,
                &format!("ip -o link show master {bridge} type veth | grep -v vethingr | head -1 | sed 's/^[0-9]*: //; s/@.*//'"),
            )
        };
        let ports = [
            ("LOCAL", port("host", "$BR")?),
            ("OUT", port("host", "docker_gwbridge")?),
            ("LEG", port("overlay", "br0")?),
        ];
        self.names.extend(ports);
        Ok(())
    }

    /// What is nobody's business but the user's: it is in the picture, and must stay.
    fn others(&self) -> Result<()> {
        for command in [
            "ip link add foreign0 type veth peer foreign9",
            "ip link add foreign1 type bridge",
            "ip link set foreign0 master foreign1 up",
            "ip link set foreign1 up",
            "ip addr add 198.51.100.1/24 dev foreign1",
            "ip route add 203.0.113.0/24 via 192.168.68.1",
            "ip rule add fwmark 0x77 lookup 77",
            "nft add table inet foreign",
            "nft add chain inet foreign forward '{ type filter hook forward priority 5; policy accept; }'",
            "nft add rule inet foreign forward ip saddr 198.51.100.0/24 drop",
        ] {
            self.run("host", command)?;
        }
        self.run("container", "ip route add unreachable 203.0.113.0/24")?;
        self.run("container", "nft add table ip own")?;
        Ok(())
    }

    fn run(&self, place: &str, command: &str) -> Result<String> {
        let names = self.names.iter().map(|(name, value)| format!("{name}={value}"));
        let line = format!("{}\n{command}", names.collect::<Vec<_>>().join("\n"));
        let file = match place {
            "host" => return self.host.exec(&["sh", "-c", &line]),
            "overlay" => &self.names["OVERLAY"],
            "ingress" => &self.names["INGRESS"],
            "container" => &self.names["CONTAINER"],
            "task" => &self.names["TASK"],
            "mesh" => "ingress_sbox",
            other => bail!("{other} is no place"),
        };
        let netns = format!("--net={}/{file}", self.names["NETNS"]);
        self.host.exec(&["nsenter", &netns, "sh", "-c", &line])
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let page = self.host.sh("curl -sS --max-time 5 http://127.0.0.1:9323/metrics")?;
        let name = format!("skep_network_{name}_total ");
        let value = page.lines().find_map(|line| line.strip_prefix(&name));
        Ok(value.with_context(|| format!("no {name}"))?.parse()?)
    }

    fn seen(&self) -> Result<BTreeMap<&'static str, Value>> {
        let places = ["host", "overlay", "container", "task", "mesh", "ingress"];
        places.into_iter().map(|place| Ok((place, self.seen_at(place)?))).collect()
    }

    /// All that stays as it is while nobody does anything.
    fn seen_at(&self, place: &str) -> Result<Value> {
        const LOOK: &str = "ip -j -d link; ip -j addr; ip -j neigh show nud permanent; bridge -j fdb show; ip -j route show table all; ip -j rule; ip -j -6 rule; nft list tables | sort; for table in skep foreign; do nft -s list table inet $table 2>&1; done; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.rp_filter; grep . /proc/sys/net/ipv4/conf/*/route_localnet";
        let text = self.run(place, LOOK)?;
        let mut lines = text.lines();
        let mut next = || -> Result<Vec<Value>> {
            let line = lines.next().context("nothing more")?;
            serde_json::from_str(line).with_context(|| line.to_owned())
        };
        let links: Vec<Value> = next()?.iter().map(link).collect();
        let addresses = next()?.iter().flat_map(addresses).collect::<Vec<_>>();
        let neighbours = next()?;
        let forwarding = next()?.into_iter().filter(|entry| entry["dst"].is_string());
        let forwarding = sorted(forwarding.collect());
        let routes = next()?.into_iter().filter(lasting_route).map(|mut route| {
            // A link that nobody is on has no carrier.
            route["flags"].take();
            route
        });
        let rules = [next()?, next()?];
        Ok(json!({
            "links": by_name(links),
            "addresses": sorted(addresses),
            "neighbours": sorted(neighbours),
            "forwarding": forwarding,
            "routes": sorted(routes.collect()),
            "rules": rules,
            "rest": lines.collect::<Vec<_>>(),
        }))
    }

    fn until_as(&self, before: &BTreeMap<&'static str, Value>) -> Result<()> {
        let difference = || -> Result<String> {
            let now = self.seen()?;
            let mut all = Vec::new();
            for (place, was) in before {
                for (kind, was) in was.as_object().into_iter().flatten() {
                    let is = &now[place][kind];
                    if is != was {
                        all.push(format!("{place}, {kind}: {}", between(was, is)));
                    }
                }
            }
            Ok(all.join("\n"))
        };
        let damaged = self.counter("sweeps")?;
        wait_until(REPAIRED_MAX, || {
            // Counted before this look, which takes a busy machine longer than a sweep.
            let swept = self.counter("sweeps")? - damaged;
            // A namespace may be in the making.
            let as_before = difference().is_ok_and(|text| text.is_empty());
            ensure!(as_before || swept <= SWEEPS_MAX, "not in {swept} sweeps");
            Ok(as_before)
        })
        .with_context(|| difference().unwrap_or_else(|error| format!("{error:#}")))
    }

    /// Everything that these objects are for.
    fn traffic(&self) -> Result<()> {
        let (host, far) = (self.host, self.lab.host(2));
        for to in ["PEER", "PEER6", "VIP"] {
            ping(&From::Container(host, "c1"), &self.names[to])?;
        }
        for to in ["OWN", "OWN6"] {
            ping(&From::Container(far, "c2"), &self.names[to])?;
        }
        for (container, at) in [("c1", host), ("local", host), ("plain", host)] {
            ping(&From::Container(at, container), "192.168.68.1").context(container)?;
        }
        let own = format!("/proc/{}/ns/net", host.init_pid());
        let outside = format!("/run/netns/{}", self.lab.router);
        let inside = format!("/proc/{}/root{}", host.init_pid(), host.netns_of("c1")?);
        let vip = format!("{}:80", self.names["VIP"]);
        let targets = [
            (&own, "127.0.0.1:8080"),
            (&own, "[::1]:8080"),
            (&own, "127.0.0.1:9090"),
            (&outside, "192.168.68.109:8080"),
            (&outside, "[fd00:68::109]:8080"),
            (&outside, "192.168.68.110:8080"),
            (&outside, "[fd00:68::110]:8080"),
            (&outside, "192.168.68.109:9090"),
            (&outside, "192.168.68.109:9091"),
            (&inside, vip.as_str()),
            (&inside, "192.168.68.109:8080"),
        ];
        for (netns, to) in targets {
            // There are two tasks, taken in turn.
            for _ in 0..2 {
                page(netns, to).with_context(|| format!("{to} from {netns}"))?;
            }
        }
        let found = host.dk("exec c1 nslookup -type=a app")?;
        ensure!(found.contains(&self.names["VIP"]), "{found}");
        Ok(())
    }
}

/// What went and what came, of lists and maps.
fn between(was: &Value, is: &Value) -> String {
    let parts = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(list) => list.iter().map(Value::to_string).collect(),
            Value::Object(map) => map.iter().map(|(name, one)| format!("{name} {one}")).collect(),
            other => vec![other.to_string()],
        }
    };
    let (was, is) = (parts(was), parts(is));
    let gone = was.iter().filter(|one| !is.contains(one)).map(|one| format!("\n  - {one}"));
    let come = is.iter().filter(|one| !was.contains(one)).map(|one| format!("\n  + {one}"));
    gone.chain(come).collect()
}

fn ping(from: &From, to: &str) -> Result<()> {
    lab::command::run(from.command("ping")?.args(["-c", "1", "-W", "1", to])).map(drop)
}

fn page(netns: &str, to: &str) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    let to: SocketAddr = to.parse()?;
    let mut stream = within(netns, || Ok(TcpStream::connect_timeout(&to, LIMIT)?))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    ensure!(page.contains(lab::image::IT_WORKS), "{page}");
    Ok(())
}

/// What a plan says of a link; an address that was not given is another one each time.
fn link(full: &Value) -> Value {
    let mut kept = Map::new();
    for field in ["ifname", "mtu", "master", "group"] {
        kept.insert(field.to_owned(), full[field].clone());
    }
    let up = full["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")));
    kept.insert("up".to_owned(), json!(up));
    if let Some(mac) = full["address"].as_str().filter(|mac| mac.starts_with("02:42:")) {
        kept.insert("address".to_owned(), json!(mac));
    }
    let info = &full["linkinfo"];
    kept.insert("kind".to_owned(), info["info_kind"].clone());
    for field in ["id", "local", "local6", "port", "learning", "proxy"] {
        kept.insert(field.to_owned(), info["info_data"][field].clone());
    }
    for field in ["hairpin", "isolated"] {
        kept.insert(field.to_owned(), info["info_slave_data"][field].clone());
    }
    Value::Object(kept)
}

fn by_name(links: Vec<Value>) -> BTreeMap<String, Value> {
    links.into_iter().map(|link| (link["ifname"].to_string(), link)).collect()
}

fn addresses(link: &Value) -> Vec<String> {
    let of = |address: &Value| {
        format!("{} {}/{}", link["ifname"], address["local"], address["prefixlen"])
    };
    let all = link["addr_info"].as_array().into_iter().flatten();
    all.filter(|address| address["scope"] != "link").map(of).collect()
}

/// Link-local routes come and go with a link's own address.
fn lasting_route(route: &Value) -> bool {
    let to = route["dst"].as_str().unwrap_or_default();
    let kind = route["type"].as_str().unwrap_or_default();
    !to.starts_with("fe80:")
        && !to.starts_with("ff00:")
        && !["multicast", "anycast"].contains(&kind)
}

fn sorted<T: ToString>(values: Vec<T>) -> Vec<String> {
    let mut texts: Vec<String> = values.iter().map(T::to_string).collect();
    texts.sort();
    texts
}
