//! Capability sets in Docker's words.

use crate::error::{Error, Result};

/// All that Linux has, by number.
pub const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container gets without any option.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The set for a container: Docker's defaults, with `add` and `drop` as `--cap-add` and `--cap-drop`.
pub fn tweak(add: &[String], drop: &[String], privileged: bool) -> Result<Vec<String>> {
    let known = supported();
    if privileged {
        return Ok(known.iter().map(|s| (*s).to_owned()).collect());
    }
    let (add, drop) = (normalize(add, "CapAdd")?, normalize(drop, "CapDrop")?);
    let all = |set: &[String]| set.iter().any(|c| c == "ALL");
    let start: Vec<&str> = match (all(&add), all(&drop)) {
        (true, _) => known.iter().copied().filter(|c| !drop.iter().any(|d| d == c)).collect(),
        (false, true) => Vec::new(),
        (false, false) => {
            DEFAULT.iter().copied().filter(|c| !drop.iter().any(|d| d == c)).collect()
        }
    };
    let mut set: Vec<String> = start.into_iter().map(str::to_owned).collect();
    for cap in add.into_iter().filter(|c| c != "ALL") {
        if !set.contains(&cap) {
            set.push(cap);
        }
    }
    Ok(set)
}

/// Those this daemon may give: what the kernel knows and the daemon itself has.
pub fn supported() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let permitted = status.lines().find_map(|l| l.strip_prefix("CapPrm:"));
    let bits =
        permitted.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
    ALL.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, name)| *name).collect()
}

/// Refuses names that are no capabilities; `field` is what the client calls the list.
pub fn check(names: &[String], field: &str) -> Result<()> {
    normalize(names, field).map(drop)
}

fn normalize(names: &[String], field: &str) -> Result<Vec<String>> {
    let known = supported();
    let one = |name: &String| {
        let mut upper = name.trim().to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(upper);
        }
        if !upper.starts_with("CAP_") {
            upper.insert_str(0, "CAP_");
        }
        if known.contains(&upper.as_str()) {
            Ok(upper)
        } else {
            Err(Error::invalid(format!("invalid {field}: unknown capability: \"{upper}\"")))
        }
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], expected: usize) {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(
            tweak(&own(add), &own(drop), false).unwrap().len(),
            expected,
            "{add:?} {drop:?}"
        );
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        check(&[], &[], 14);
        check(&["net_admin"], &[], 15);
        check(&["CAP_CHOWN"], &[], 14);
        check(&[], &["ALL"], 0);
        check(&["chown"], &["all"], 1);
        check(&["ALL"], &["SYS_ADMIN"], supported().len() - 1);
        assert!(tweak(&["nonsense".into()], &[], false).is_err());
    }
}
