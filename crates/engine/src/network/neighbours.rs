//! Room in the kernel's neighbour tables, which the containers of a host share.

use std::path::Path;

/// For each family: below the first number nothing is forgotten, above the second for seconds only, above the third
/// nothing new is learnt. The Docker Engine's numbers for overlay networks (Linux documentation, ip-sysctl.rst, "neigh").
const ROOM: [(&str, u64); 3] =
    [("gc_thresh1", 8_192), ("gc_thresh2", 49_152), ("gc_thresh3", 65_536)];

/// Raises what is less. The kernel's own 1,024 neighbours are few where containers of one host talk to others by the
/// hundred: packets to further ones are dropped. Gives what could not be raised, in words.
///
/// Only the machine's own network namespace has these switches.
pub fn make_room(net: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for family in ["ipv4", "ipv6"] {
        for (name, least) in ROOM {
            let path = net.join(family).join("neigh/default").join(name);
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            if text.trim().parse::<u64>().is_ok_and(|is| is < least)
                && let Err(error) = std::fs::write(&path, least.to_string())
            {
                failed.push(format!(
                    "net.{family}.neigh.default.{name} is {} and cannot be raised ({error}): containers that talk to many others lose packets; set it to {least}",
                    text.trim()
                ));
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_is_raised_and_what_is_more_stays() {
        let net = tempfile::tempdir().unwrap();
        assert_eq!(make_room(net.path()), [""; 0], "a namespace without the switches");
        let folder = net.path().join("ipv4/neigh/default");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, value) in [("gc_thresh1", "128\n"), ("gc_thresh2", "60000\n")] {
            std::fs::write(folder.join(name), value).unwrap();
        }
        assert_eq!(make_room(net.path()), [""; 0]);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!((read("gc_thresh1").as_str(), read("gc_thresh2").as_str()), ("8192", "60000\n"));
        assert!(!folder.join("gc_thresh3").exists());
    }
}
