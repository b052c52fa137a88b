//! The overlays' names on their way to the resolver process, until it has them.

use std::collections::BTreeMap;

use dns::Zone;
use model::NetworkId;

pub type Zones = BTreeMap<NetworkId, Zone>;

/// What of the resolver's client is needed here.
pub trait Resolver {
    /// The number of the connection to the process, which is started if there is none.
    fn connection(&self) -> Result<u64, resolver::Error>;
    fn set_zone(&self, network: &str, zone: &Zone) -> Result<(), resolver::Error>;
    fn remove_zone(&self, network: &str) -> Result<(), resolver::Error>;
}

impl Resolver for resolver::Client {
    fn connection(&self) -> Result<u64, resolver::Error> {
        self.ensure()
    }

    fn set_zone(&self, network: &str, zone: &Zone) -> Result<(), resolver::Error> {
        self.set_zone(network, zone)
    }

    fn remove_zone(&self, network: &str) -> Result<(), resolver::Error> {
        self.remove_zone(network)
    }
}

pub struct Names<R> {
    resolver: R,
    /// What the process holds; nothing where it has to be told again.
    told: BTreeMap<NetworkId, Option<Zone>>,
    connection: u64,
}

impl<R: Resolver> Names<R> {
    pub fn new(resolver: R) -> Self {
        Self { resolver, told: BTreeMap::new(), connection: 0 }
    }

    /// Tells the process what it does not know yet. Blocks while the process hangs, for two calls at
    /// most: whoever looks after it tries again.
    ///
    /// # Errors
    /// The first call that failed; what it and the later ones were about is told by the next attempt.
    pub fn tell(&mut self, wanted: &Zones) -> Result<(), resolver::Error> {
        if wanted.is_empty() && self.told.is_empty() {
            return Ok(());
        }
        let connection = self.resolver.connection()?;
        if connection != self.connection {
            // Perhaps another process: it knows what the one before it had written down, no more.
            self.told.values_mut().for_each(|zone| *zone = None);
            self.connection = connection;
        }
        for (network, zone) in wanted {
            let told = self.told.entry(network.clone()).or_default();
            if told.as_ref() != Some(zone) {
                *told = None;
                self.resolver.set_zone(network, zone)?;
                *told = Some(zone.clone());
            }
        }
        let gone: Vec<NetworkId> =
            self.told.keys().filter(|network| !wanted.contains_key(*network)).cloned().collect();
        for network in gone {
            self.resolver.remove_zone(&network)?;
            self.told.remove(&network);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[derive(Default)]
    struct Process {
        connection: Cell<u64>,
        holds: RefCell<Zones>,
        hangs: Cell<bool>,
        calls: Cell<usize>,
    }

    impl Process {
        fn call(&self) -> Result<(), resolver::Error> {
            self.calls.set(self.calls.get() + 1);
            match self.hangs.get() {
                true => Err(resolver::Error::Refused("hangs".into())),
                false => Ok(()),
            }
        }
    }

    impl Resolver for &Process {
        fn connection(&self) -> Result<u64, resolver::Error> {
            self.call().map(|()| self.connection.get())
        }

        fn set_zone(&self, network: &str, zone: &Zone) -> Result<(), resolver::Error> {
            self.call()?;
            self.holds.borrow_mut().insert(NetworkId::new(network), zone.clone());
            Ok(())
        }

        fn remove_zone(&self, network: &str) -> Result<(), resolver::Error> {
            self.call()?;
            self.holds.borrow_mut().remove(network);
            Ok(())
        }
    }

    fn zones(names: &[&str]) -> Zones {
        names.iter().map(|name| (NetworkId::new(*name), Zone::new(*name))).collect()
    }

    #[test]
    fn what_was_not_taken_is_told_again_and_what_was_is_not() {
        let process = Process::default();
        let mut names = Names::new(&process);
        process.hangs.set(true);
        assert!(names.tell(&zones(&["a", "b"])).is_err());
        assert_eq!(process.calls.get(), 1, "a process that hangs is not asked once a network");
        process.hangs.set(false);
        names.tell(&zones(&["a", "b"])).unwrap();
        assert_eq!(*process.holds.borrow(), zones(&["a", "b"]));
        process.calls.set(0);
        names.tell(&zones(&["a", "b"])).unwrap();
        assert_eq!(process.calls.get(), 1, "nothing is new");
        names.tell(&zones(&["b"])).unwrap();
        assert_eq!(*process.holds.borrow(), zones(&["b"]));
    }

    #[test]
    fn another_process_is_told_everything_and_what_went_is_taken_from_it() {
        let process = Process::default();
        let mut names = Names::new(&process);
        names.tell(&zones(&["a", "b"])).unwrap();
        // It died before it had written `a` down.
        process.connection.set(1);
        process.holds.borrow_mut().remove("a");
        names.tell(&zones(&["a"])).unwrap();
        assert_eq!(*process.holds.borrow(), zones(&["a"]));
    }
}
