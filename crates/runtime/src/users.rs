//! Users and groups by the files of a container's own root file system.

use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result};
use crate::spec::UserSpec;

/// passwd and group files of real systems are far below this.
const FILE_BYTES_MAX: u64 = 4 << 20;
const ID_MAX: i64 = i32::MAX as i64;

/// Resolves `name`, `uid`, `name:group`, `uid:gid` and extra groups inside `rootfs`, never following a link out of it.
pub fn resolve(rootfs: &Path, user: &str, groups: &[String]) -> Result<UserSpec> {
    resolve_in(&read_inside(rootfs, "etc/passwd"), &read_inside(rootfs, "etc/group"), user, groups)
}

fn resolve_in(passwd: &str, group: &str, wanted: &str, extra: &[String]) -> Result<UserSpec> {
    let (user, primary) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number = user.parse::<i64>().ok();
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().filter_map(PasswdLine::parse).find(|line| {
        // A name wins over a number, as in Docker; but a number is looked for by id too.
        line.name == user || user.parse() == Ok(line.uid)
    });
    let mut spec = match (&entry, user.parse::<i64>()) {
        (Some(line), _) => UserSpec {
            uid: line.uid,
            gid: line.gid,
            groups: Vec::new(),
            home: line.home.to_owned(),
        },
        (None, Ok(uid)) if is_id(uid) => UserSpec { uid: uid as u32, ..UserSpec::default() },
        (None, Ok(_)) => return Err(Error::invalid("uids and gids must be in range 0-2147483647")),
        (None, Err(_)) => {
            return Err(Error::invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    if spec.home.is_empty() {
        spec.home = "/".to_owned();
    }
    match primary.filter(|name| !name.is_empty()) {
        Some(name) => spec.gid = find_group(group, name)?,
        // Memberships count only when no group was named.
        None => {
            if let (Some(line), true) = (&entry, number.is_none() || entry.is_some()) {
                for (gid, members) in
                    group.lines().filter_map(group_line).map(|(_, gid, m)| (gid, m))
                {
                    if gid != spec.gid && members.split(',').any(|m| m == line.name) {
                        push_unique(&mut spec.groups, gid);
                    }
                }
            }
        }
    }
    for name in extra {
        let gid = find_group(group, name)?;
        push_unique(&mut spec.groups, gid);
    }
    Ok(spec)
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<PasswdLine<'a>> {
        let fields: Vec<&str> = line.trim().split(':').collect();
        Some(PasswdLine {
            name: fields.first()?,
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: fields.get(5).copied().unwrap_or(""),
        })
    }
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

fn find_group(group: &str, name: &str) -> Result<u32> {
    if let Some((_, gid, _)) = group.lines().filter_map(group_line).find(|(n, _, _)| *n == name) {
        return Ok(gid);
    }
    match name.parse::<i64>() {
        Ok(gid) if is_id(gid) => Ok(gid as u32),
        Ok(_) => Err(Error::invalid("uids and gids must be in range 0-2147483647")),
        Err(_) => Err(Error::invalid(format!(
            "unable to find group {name}: no matching entries in group file"
        ))),
    }
}

fn is_id(number: i64) -> bool {
    (0..=ID_MAX).contains(&number)
}

fn push_unique(groups: &mut Vec<u32>, gid: u32) {
    if !groups.contains(&gid) {
        groups.push(gid);
    }
}

/// A file of the root file system, empty when it is not there or not a readable text.
fn read_inside(rootfs: &Path, path: &str) -> String {
    let open = || -> std::io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let root = rustix::fs::open(
            rootfs,
            OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file =
            std::fs::File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?);
        if !file.metadata()?.is_file() {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    open().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\naudio:x:29:web,other\nvideo:x:44:\n";

    fn check(user: &str, extra: &[&str], expected: &str) {
        let extra: Vec<String> = extra.iter().map(|s| s.to_string()).collect();
        let got = match resolve_in(PASSWD, GROUP, user, &extra) {
            Ok(u) => format!("{}:{} {:?} {}", u.uid, u.gid, u.groups, u.home),
            Err(e) => e.to_string(),
        };
        assert_eq!(got, expected, "user {user:?}");
    }

    #[test]
    fn names_and_numbers_are_resolved_by_the_containers_own_files() {
        check("", &[], "0:0 [] /root");
        check("web", &[], "33:33 [29] /var/www");
        check("33", &[], "33:33 [29] /var/www");
        check("web:video", &[], "33:44 [] /var/www");
        check("web:1234", &[], "33:1234 [] /var/www");
        check("4711", &[], "4711:0 [] /");
        check("4711:4712", &["audio", "77"], "4711:4712 [29, 77] /");
        check("nobody", &[], "unable to find user nobody: no matching entries in passwd file");
        check(
            "web:nogroup",
            &[],
            "unable to find group nogroup: no matching entries in group file",
        );
        for number in ["-1", "2147483648", "99999999999"] {
            check(number, &[], "uids and gids must be in range 0-2147483647");
            check("web", &[number], "uids and gids must be in range 0-2147483647");
        }
        check("4294967295", &[], "uids and gids must be in range 0-2147483647");
    }

    #[test]
    fn a_link_out_of_the_root_file_system_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/proc/self/status", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(read_inside(dir.path(), "etc/passwd"), "");
    }
}
