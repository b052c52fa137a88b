//! The kernel behind a plan: observes namespaces as `netplan` objects, carries out steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netplan::{LinkKind, LinkObject, Namespace, Step, Table, World};

use crate::message::Message;
use crate::socket::{Family, Socket};
use crate::{advert, challenge, conntrack, filter, namespace, nft, route};

/// A step that could not be carried out; it will be in the next plan again.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct Failure {
    pub step: Step,
    #[source]
    pub source: io::Error,
}

pub struct Kernel {
    directory: PathBuf,
    pub(crate) spaces: BTreeMap<Namespace, Space>,
    /// Connections ended because their backend had gone.
    pub flows_ended: u64,
    /// What the last look could not see.
    pub unreadable: Vec<(Namespace, io::Error)>,
    /// The kernel knows of no room for filters.
    no_room: bool,
}

/// A namespace that is open: sockets stay in it wherever the calling thread is.
pub(crate) struct Space {
    pub(crate) namespace: File,
    pub(crate) route: Socket,
    pub(crate) netfilter: Socket,
    pub(crate) indexes: BTreeMap<String, u32>,
    pub(crate) table: Option<Kept>,
}

/// The table that was last written, and how to see that nobody has altered it.
pub(crate) struct Kept {
    pub(crate) table: Arc<Table>,
    pub(crate) generation: u32,
    pub(crate) digest: Option<u64>,
}

impl Space {
    fn open() -> io::Result<Self> {
        Ok(Self {
            namespace: File::open("/proc/thread-self/ns/net")?,
            route: Socket::open(Family::Route)?,
            netfilter: Socket::open(Family::Netfilter)?,
            indexes: BTreeMap::new(),
            table: None,
        })
    }

    fn index(&mut self, name: &str) -> io::Result<u32> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        let answers = self.route.request(route::get_link(name))?;
        let seen = answers.iter().find_map(route::read_link);
        let seen = seen.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        self.indexes.insert(name.to_owned(), seen.index);
        Ok(seen.index)
    }

    fn addresses_of(&mut self, name: &str) -> io::Result<Vec<netplan::Cidr>> {
        self.indexes.remove(name);
        let index = self.index(name)?;
        let addresses = self.route.dump(route::dump_addresses())?;
        let own = addresses.iter().filter_map(route::read_address);
        Ok(own.filter(|(at, _)| *at == index).map(|(_, cidr)| cidr).collect())
    }
}

impl Kernel {
    /// `directory` holds the namespaces' files; it is made if needed. The calling thread is in
    /// the host's namespace and stays there.
    pub fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let spaces = BTreeMap::from([(Namespace::Host, Space::open()?)]);
        Ok(Self {
            directory: directory.to_owned(),
            spaces,
            flows_ended: 0,
            unreadable: Vec::new(),
            no_room: false,
        })
    }

    pub fn path(&self, ns: &Namespace) -> Option<PathBuf> {
        ns.file_name().map(|name| self.directory.join(name))
    }

    /// Removes what a crash left behind: files of namespaces that are not in `keep`.
    pub fn prune(&mut self, keep: &World) -> io::Result<usize> {
        let keep: BTreeSet<_> = keep.keys().filter_map(Namespace::file_name).collect();
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let known = entry.file_name().to_str().is_some_and(|name| keep.contains(name));
            if !known {
                namespace::remove(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(crate) fn space(&mut self, ns: &Namespace) -> io::Result<&mut Space> {
        if !self.spaces.contains_key(ns) {
            let path = self.path(ns).unwrap_or_default();
            let space = namespace::visit(&path, Space::open)?;
            self.spaces.insert(ns.clone(), space);
        }
        self.spaces.get_mut(ns).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    // ---- applying

    /// Carries out the steps in order; steps of one namespace and phase travel together.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut rest = steps;
        while let Some(first) = rest.first() {
            let same = |step: &&Step| {
                step.phase() == first.phase() && step.namespace() == first.namespace()
            };
            let count = rest.iter().take_while(same).count();
            let (run, tail) = rest.split_at(count);
            tracing::trace!(target: "step", "network phase {}", first.phase());
            self.apply_run(run, &mut failures);
            rest = tail;
        }
        for failure in &failures {
            // Whatever was wrong, what we remember about the namespace may be why.
            if let Some(space) = self.spaces.get_mut(failure.step.namespace()) {
                space.indexes.clear();
            }
        }
        failures
    }

    fn apply_run(&mut self, run: &[Step], failures: &mut Vec<Failure>) {
        let mut batch = Batch::default();
        for step in run {
            let done = match step {
                Step::AddNamespace(ns) => self.add_namespace(ns),
                Step::KeepNamespace(ns) => self.keep_namespace(ns),
                Step::RemoveNamespace(ns) => self.remove_namespace(ns),
                Step::AddLink(ns, name, link, peer) => self.add_link(ns, name, link, peer.as_ref()),
                Step::SetSysctl(..) | Step::Advertise(..) => Ok(()),
                Step::SetTable(ns, table) => self.set_table(ns, Some(table)),
                Step::RemoveTable(ns) => self.set_table(ns, None),
                Step::SettleFlows(ns, flows) => {
                    self.end_flows(ns, true, |flow| conntrack::is_stale(flow, flows))
                }
                Step::ForgetFlows(ns, addresses) => {
                    self.end_flows(ns, false, |flow| conntrack::touches(flow, addresses))
                }
                _ => self.messages(step).map(|messages| batch.add(step, messages)),
            };
            if let Err(source) = done {
                failures.push(Failure { step: step.clone(), source });
            }
        }
        let Some(ns) = run.first().map(Step::namespace) else { return };
        self.set_sysctls(ns, run, failures);
        self.advertise(ns, run, failures);
        if batch.messages.is_empty() {
            return;
        }
        let steps = batch.steps;
        let result = self.space(ns).and_then(|space| space.route.batch(batch.messages));
        match result {
            Ok(errors) => {
                for (index, source) in errors {
                    let Some(step) = steps.get(index) else { continue };
                    if !is_fine(step, &source) {
                        failures.push(Failure { step: step.clone(), source });
                    }
                }
            }
            Err(source) => {
                if let Some(step) = run.first() {
                    failures.push(Failure { step: step.clone(), source });
                }
            }
        }
    }

    /// The messages of a step that needs nothing else.
    fn messages(&mut self, step: &Step) -> io::Result<Vec<Message>> {
        let space = self.space(step.namespace())?;
        Ok(match step {
            Step::RemoveRule(_, rule) => vec![route::remove_rule(rule)],
            Step::AddRule(_, rule) => vec![route::add_rule(rule)],
            Step::RemoveRoute(_, one) => vec![route::remove_route(one, space.index(&one.dev)?)],
            Step::AddRoute(_, one) => vec![route::add_route(one, space.index(&one.dev)?)],
            Step::RemoveNeighbour(_, dev, addr) => {
                vec![route::remove_neighbour(space.index(dev)?, *addr)]
            }
            Step::SetNeighbour(_, dev, addr, mac) => {
                vec![route::set_neighbour(space.index(dev)?, *addr, *mac)]
            }
            Step::RemoveForwarding(_, dev, mac, vtep) => {
                vec![route::remove_forwarding(space.index(dev)?, *mac, *vtep)]
            }
            Step::SetForwarding(_, dev, mac, vtep) => {
                vec![route::set_forwarding(space.index(dev)?, *mac, *vtep)]
            }
            Step::RemoveAddress(_, dev, cidr) => {
                vec![route::remove_address(space.index(dev)?, cidr)]
            }
            Step::AddAddress(_, dev, cidr) => {
                let index = space.index(dev)?;
                let connected = route::add_connected(index, cidr);
                std::iter::once(route::add_address(index, cidr)).chain(connected).collect()
            }
            Step::RemoveLink(_, name) => {
                space.indexes.remove(name);
                vec![route::remove_link(name)]
            }
            Step::SetLink(_, name, link) => {
                let master = link.master.as_ref().map(|name| space.index(name)).transpose()?;
                let mut messages = route::set_link(name, link, master);
                if master.is_some() {
                    messages.push(route::set_port(space.index(name)?, link.port));
                }
                messages
            }
            _ => Vec::new(),
        })
    }

    fn add_namespace(&mut self, ns: &Namespace) -> io::Result<()> {
        let Some(path) = self.path(ns) else { return Ok(()) };
        self.spaces.remove(ns);
        // A file without its namespace, or one that nobody asked for any more.
        namespace::remove(&path)?;
        let mut space = namespace::create(&path, Space::open)?;
        // Without room names are answered more slowly, by the resolver alone. A kernel that knows of none looks
        // for a module each time, and is not asked again.
        if matches!(ns, Namespace::Sandbox(_))
            && !self.no_room
            && let Err(error) = space.route.request(filter::room())
        {
            tracing::debug!(%error, "no filters on the loopback device");
            self.no_room = filter::is_unknown(&error);
        }
        self.spaces.insert(ns.clone(), space);
        Ok(())
    }

    fn keep_namespace(&mut self, ns: &Namespace) -> io::Result<()> {
        let Some(path) = self.path(ns) else { return Ok(()) };
        namespace::keep(&path, self.space(ns)?.namespace.as_fd())
    }

    fn remove_namespace(&mut self, ns: &Namespace) -> io::Result<()> {
        let Some(path) = self.path(ns) else { return Ok(()) };
        self.spaces.remove(ns);
        namespace::remove(&path)
    }

    /// A VXLAN device is made from the host's namespace, where its outer packets leave, right
    /// into the overlay's: it never bears a name among the host's links.
    fn add_link(
        &mut self,
        ns: &Namespace,
        name: &str,
        link: &LinkObject,
        peer: Option<&LinkObject>,
    ) -> io::Result<()> {
        let mut space = self.take(ns)?;
        let result = self.add_link_in(&mut space, ns, name, link, peer);
        self.spaces.insert(ns.clone(), space);
        result
    }

    fn take(&mut self, ns: &Namespace) -> io::Result<Space> {
        self.space(ns)?;
        self.spaces.remove(ns).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn add_link_in(
        &mut self,
        space: &mut Space,
        ns: &Namespace,
        name: &str,
        link: &LinkObject,
        peer: Option<&LinkObject>,
    ) -> io::Result<()> {
        space.indexes.remove(name);
        let master = link.master.as_ref().map(|name| space.index(name)).transpose()?;
        match &link.kind {
            LinkKind::Vxlan { .. } if *ns != Namespace::Host => {
                let host = self.space(&Namespace::Host)?;
                // The master is in the other namespace: it is set from there.
                let message =
                    route::add_link(name, link, None, Some(space.namespace.as_fd()), None);
                first_error(host.route.batch(vec![message])?)?;
                first_error(space.route.batch(route::set_link(name, link, master))?)?;
                set_port(space, name, link)
            }
            LinkKind::Veth { peer_namespace, peer: peer_name } => {
                let inner = self.space(peer_namespace)?;
                inner.indexes.remove(peer_name);
                let end = route::PeerEnd {
                    namespace: inner.namespace.as_fd(),
                    name: peer_name,
                    link: peer,
                };
                let message = route::add_link(name, link, master, None, Some(end));
                first_error(space.route.batch(vec![message])?)?;
                set_port(space, name, link)?;
                match peer {
                    Some(peer) => {
                        first_error(inner.route.batch(route::set_link(peer_name, peer, None))?)
                    }
                    None => Ok(()),
                }
            }
            _ => {
                let mut messages = vec![route::add_link(name, link, master, None, None)];
                messages.extend(route::set_link(name, link, master));
                first_error(space.route.batch(messages)?)
            }
        }
    }

    fn set_sysctls(&mut self, ns: &Namespace, run: &[Step], failures: &mut Vec<Failure>) {
        let writes: Vec<_> = run
            .iter()
            .filter_map(|step| match step {
                Step::SetSysctl(_, path, value) => Some((step, path, value)),
                _ => None,
            })
            .collect();
        if writes.is_empty() {
            return;
        }
        let write = || -> io::Result<Vec<(usize, io::Error)>> {
            let mut errors = Vec::new();
            for (n, (_, path, value)) in writes.iter().enumerate() {
                if let Err(error) = std::fs::write(Path::new("/proc/sys").join(path), value) {
                    errors.push((n, error));
                }
            }
            Ok(errors)
        };
        let result = match self.path(ns) {
            None => write(),
            Some(path) => namespace::visit(&path, write),
        };
        let errors = result.unwrap_or_else(|error| vec![(0, error)]);
        for (n, source) in errors {
            failures.push(Failure { step: writes[n].0.clone(), source });
        }
    }

    fn advertise(&mut self, ns: &Namespace, run: &[Step], failures: &mut Vec<Failure>) {
        let mut steps = run.iter().filter(|step| matches!(step, Step::Advertise(..))).peekable();
        let Some(first) = steps.peek().map(|step| (*step).clone()) else { return };
        let said = self.space(ns).and_then(|space| {
            let mut frames = Vec::new();
            for step in steps {
                if let Step::Advertise(_, bridge, addr, mac) = step {
                    frames.push((space.index(bridge)?, advert::frame(*addr, *mac)));
                }
            }
            namespace::visit_open(space.namespace.as_fd(), || advert::send(&frames))
        });
        if let Err(source) = said {
            failures.push(Failure { step: first, source });
        }
    }

    fn set_table(&mut self, ns: &Namespace, table: Option<&Arc<Table>>) -> io::Result<()> {
        let space = self.space(ns)?;
        space.table = None;
        space.netfilter.transaction(nft::replace(table.map(Arc::as_ref)))?;
        if let Some(table) = table {
            let generation = crate::observe::generation(&mut space.netfilter)?;
            space.table = Some(Kept { table: table.clone(), generation, digest: None });
        }
        Ok(())
    }

    fn end_flows(
        &mut self,
        ns: &Namespace,
        abort: bool,
        stale: impl Fn(&conntrack::Flow) -> bool,
    ) -> io::Result<()> {
        let path = self.path(ns);
        let space = self.space(ns)?;
        let flows = conntrack::dump(&mut space.netfilter)?;
        let stale: Vec<_> = flows.iter().filter(|flow| stale(flow)).collect();
        if stale.is_empty() {
            return Ok(());
        }
        // First, so that nobody is told of an end who has a new connection from the same port by now.
        let ended = conntrack::forget(&mut space.netfilter, &stale)?;
        self.flows_ended += ended.len() as u64;
        let Some(path) = path.filter(|_| abort && !ended.is_empty()) else { return Ok(()) };
        // Who is not told now is told by the reset that his next packet earns.
        let told = namespace::visit(&path, || {
            conntrack::abort_sockets(&mut Socket::open(Family::SockDiag)?, &ended)
        });
        if let Some(held) = told.ok().filter(|held| !held.is_empty()) {
            let _ = namespace::visit(&path, || challenge::send(&held));
        }
        Ok(())
    }

    /// MTU of the link by which `address` is one of this host's, and whether it is one.
    pub fn uplink_mtu(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let space = self.space(&Namespace::Host)?;
        let addresses = space.route.dump(route::dump_addresses())?;
        let own = addresses.iter().filter_map(route::read_address);
        let Some((index, _)) = own.into_iter().find(|(_, cidr)| cidr.addr == address) else {
            return Ok(None);
        };
        let links = space.route.dump(route::dump_links())?;
        let mut links = links.iter().filter_map(route::read_link);
        Ok(links.find(|link| link.index == index).map(|link| link.object.mtu))
    }

    /// Networks that the host itself reaches or is on: what a new pool must not overlap.
    pub fn host_networks(&mut self) -> io::Result<Vec<netplan::Cidr>> {
        let space = self.space(&Namespace::Host)?;
        let mut networks = Vec::new();
        for message in space.route.dump(route::dump_addresses())? {
            networks.extend(route::read_address(&message).map(|(_, cidr)| cidr.network()));
        }
        for message in space.route.dump(route::dump_routes())? {
            networks.extend(route::read_main_destination(&message));
        }
        networks.retain(|cidr| cidr.prefix != 0);
        networks.sort();
        networks.dedup();
        Ok(networks)
    }

    /// Addresses of a link of the host's that is not skep's.
    pub fn addresses_of(&mut self, name: &str) -> io::Result<Vec<netplan::Cidr>> {
        self.space(&Namespace::Host)?.addresses_of(name)
    }
}

/// Addresses of a link where the caller is, those that count on the link alone left out.
pub fn addresses_of(name: &str) -> io::Result<Vec<netplan::Cidr>> {
    Space::open()?.addresses_of(name)
}

#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    /// The step of each message.
    steps: Vec<Step>,
}

impl Batch {
    fn add(&mut self, step: &Step, messages: Vec<Message>) {
        self.steps.extend(messages.iter().map(|_| step.clone()));
        self.messages.extend(messages);
    }
}

/// A new link that is a bridge's port is one as any, unless it is told.
fn set_port(space: &mut Space, name: &str, link: &LinkObject) -> io::Result<()> {
    if link.master.is_none() || link.port == Default::default() {
        return Ok(());
    }
    let index = space.index(name)?;
    first_error(space.route.batch(vec![route::set_port(index, link.port)])?)
}

fn first_error(errors: Vec<(usize, io::Error)>) -> io::Result<()> {
    let mut errors = errors.into_iter().filter(|(_, error)| !lacks_ipv6(error));
    errors.next().map_or(Ok(()), |(_, error)| Err(error))
}

/// A host without IPv6, or a link whose MTU is below IPv6's least, has no link-local address to
/// switch off.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// What was to go is gone already, what was to come is there.
fn is_fine(step: &Step, error: &io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    match step {
        Step::RemoveRule(..)
        | Step::RemoveRoute(..)
        | Step::RemoveNeighbour(..)
        | Step::RemoveForwarding(..)
        | Step::RemoveAddress(..)
        | Step::RemoveLink(..) => {
            [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(&errno)
        }
        // The kernel makes the route to an address's network itself, if the address is new.
        Step::AddRule(..) | Step::AddAddress(..) => errno == libc::EEXIST,
        Step::SetLink(..) => lacks_ipv6(error),
        _ => false,
    }
}
