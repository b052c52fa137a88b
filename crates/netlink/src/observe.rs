//! Reading namespaces back as `netplan` objects: what is there, not what we believe.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use netplan::{Cidr, Namespace, Objects, Table, World};

use crate::kernel::{Kernel, Space};
use crate::route::{self, SeenNeighbour};
use crate::socket::Socket;
use crate::{namespace, nft};

impl Kernel {
    /// What is there, of the namespaces that `wanted` names. One that does not exist is left out;
    /// one that cannot be read is taken for right, and named in `unreadable`.
    pub fn observe(&mut self, wanted: &World) -> World {
        let mut world = World::new();
        self.unreadable.clear();
        for (ns, objects) in wanted {
            let path = self.path(ns).filter(|path| !self.still_there(ns, path));
            let kept = path.as_deref().is_none_or(namespace::is_kept);
            if kept && path.is_some() {
                // Another one has its name.
                self.spaces.remove(ns);
            }
            if !kept && !self.spaces.contains_key(ns) {
                continue;
            }
            let mut found = self.observe_one(ns, objects).unwrap_or_else(|error| {
                self.unreadable.push((ns.clone(), error));
                objects.clone()
            });
            found.lost = !kept;
            world.insert(ns.clone(), found);
        }
        world
    }

    /// Does the file still keep the namespace that is open?
    fn still_there(&self, ns: &Namespace, path: &Path) -> bool {
        let Some(space) = self.spaces.get(ns) else { return false };
        let (Ok(open), Ok(file)) = (rustix::fs::fstat(&space.namespace), rustix::fs::stat(path))
        else {
            return false;
        };
        (open.st_dev, open.st_ino) == (file.st_dev, file.st_ino)
    }

    fn observe_one(&mut self, ns: &Namespace, wanted: &Objects) -> io::Result<Objects> {
        let space = self.space(ns)?;
        let mut objects = Objects::default();
        let names = observe_links(space, ns, wanted, &mut objects)?;
        for message in space.route.dump(route::dump_addresses())? {
            if let Some((index, cidr)) = route::read_address(&message)
                && let Some(name) = names.get(&index).filter(|name| *name != "lo")
            {
                objects.addresses.insert((name.clone(), cidr));
            }
        }
        if matches!(ns, Namespace::Overlay(_)) {
            observe_neighbours(space, &names, &mut objects)?;
        }
        let mut reached = BTreeSet::new();
        for message in space.route.dump(route::dump_routes())? {
            reached.extend(route::read_main_destination(&message));
            if let Some((index, mut found)) = route::read_route(&message) {
                found.dev = names.get(&index).cloned().unwrap_or_default();
                objects.routes.insert(found);
            }
        }
        // An address without the way to its own network is as good as none.
        objects.addresses.retain(|(_, cidr)| {
            reached.contains(&cidr.network()) || *cidr == Cidr::host(cidr.addr)
        });
        if !matches!(ns, Namespace::Overlay(_)) {
            let rules = space.route.dump(route::dump_rules())?;
            objects.rules = rules.iter().filter_map(route::read_rule).collect();
        }
        objects.table = observe_table(space)?;
        let paths: Vec<&String> = wanted.sysctls.keys().collect();
        if !paths.is_empty() {
            let read = || Ok(read_sysctls(&paths));
            objects.sysctls = namespace::visit_open(space.namespace.as_fd(), read)?;
        }
        // Which flows are right is not in the kernel; the plan's own are assumed.
        objects.flows = wanted.flows.clone();
        Ok(objects)
    }
}

fn read_sysctls(paths: &[&String]) -> BTreeMap<String, String> {
    let read = |path: &String| std::fs::read_to_string(Path::new("/proc/sys").join(path)).ok();
    paths.iter().filter_map(|path| Some(((*path).clone(), read(path)?.trim().to_owned()))).collect()
}

fn observe_links(
    space: &mut Space,
    ns: &Namespace,
    wanted: &Objects,
    objects: &mut Objects,
) -> io::Result<BTreeMap<u32, String>> {
    let answers = space.route.dump(route::dump_links())?;
    let links: Vec<_> = answers.iter().filter_map(route::read_link).collect();
    let names: BTreeMap<u32, String> =
        links.iter().map(|link| (link.index, link.name.clone())).collect();
    space.indexes = links.iter().map(|link| (link.name.clone(), link.index)).collect();
    let mut ours = BTreeMap::new();
    for link in links {
        let known = wanted.links.contains_key(&link.name);
        // In the host's namespace others live too.
        if *ns == Namespace::Host && link.group != route::OWNER_GROUP && !known {
            continue;
        }
        ours.insert(link.index, link.name.clone());
        let mut object = link.object;
        object.master = link.master.and_then(|index| names.get(&index).cloned());
        objects.links.insert(link.name, object);
    }
    Ok(ours)
}

fn observe_neighbours(
    space: &mut Space,
    names: &BTreeMap<u32, String>,
    objects: &mut Objects,
) -> io::Result<()> {
    for bridge in [false, true] {
        for message in space.route.dump(route::dump_neighbours(bridge))? {
            match route::read_neighbour(&message) {
                Some(SeenNeighbour::Neighbour(index, addr, mac)) => {
                    if let Some(name) = names.get(&index) {
                        objects.neighbours.insert((name.clone(), addr), mac);
                    }
                }
                Some(SeenNeighbour::Forwarding(index, mac, vtep)) => {
                    if let Some(name) = names.get(&index) {
                        objects.fdb.insert((name.clone(), mac), vtep);
                    }
                }
                None => {}
            }
        }
    }
    Ok(())
}

pub(crate) fn generation(socket: &mut Socket) -> io::Result<u32> {
    let answers = socket.request(nft::get_generation())?;
    let generation = answers.iter().find_map(nft::read_generation);
    generation.ok_or_else(|| io::Error::other("nf_tables did not tell its generation"))
}

/// The table we wrote if it is as we wrote it; an empty one if something else has its name.
fn observe_table(space: &mut Space) -> io::Result<Option<Arc<Table>>> {
    let now = generation(&mut space.netfilter)?;
    let Space { netfilter, table, .. } = space;
    if let Some(kept) = table.as_mut().filter(|kept| kept.generation == now) {
        // Nobody has written since: this is what untouched looks like.
        if kept.digest.is_none() {
            kept.digest = digest(netfilter)?;
        }
        return Ok(Some(kept.table.clone()));
    }
    let found = digest(netfilter)?;
    match table {
        Some(kept) if found.is_some() && kept.digest == found => {
            kept.generation = now;
            Ok(Some(kept.table.clone()))
        }
        _ => {
            *table = None;
            Ok(found.map(|_| Arc::new(Table::default())))
        }
    }
}

/// A fingerprint of the table as the kernel tells it, handles included; none without a table.
fn digest(socket: &mut Socket) -> io::Result<Option<u64>> {
    let mut hasher = DefaultHasher::new();
    let mut any = false;
    let mut sets = Vec::new();
    for request in [nft::dump_tables(), nft::dump_chains(), nft::dump_rules(), nft::dump_sets()] {
        let answers = match socket.dump(request) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            other => other?,
        };
        for message in answers.iter().filter(|message| nft::is_ours(message)) {
            any = true;
            // The first four bytes hold the generation.
            message.payload.get(4..).unwrap_or(&[]).hash(&mut hasher);
            if message.kind == nft::NEWSET {
                sets.extend(nft::set_name(message));
            }
        }
    }
    for set in sets {
        for message in socket.dump(nft::dump_elements(&set))? {
            message.payload.get(4..).unwrap_or(&[]).hash(&mut hasher);
        }
    }
    Ok(any.then(|| hasher.finish()))
}
