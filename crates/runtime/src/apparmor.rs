//! AppArmor: which profile a container runs under, and Docker's default one for a kernel that lacks it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};
use crate::spec::ContainerSpec;

/// The profile of a container that names none.
pub const DEFAULT: &str = "docker-default";
/// A container that asks for this has none.
pub const UNCONFINED: &str = "unconfined";

const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "/sbin/apparmor_parser";
/// Docker's (moby, `profiles/apparmor/template.go`), for a daemon that nothing confines.
const TEXT: &str = include_str!("apparmor.profile");

/// Does this host confine by profiles? As in Docker it does not without the parser that loads them.
pub fn enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|word| word.starts_with('Y'))
        && Path::new(LOADED).exists()
        && Path::new(PARSER).exists()
}

/// The name of a container's profile, as `docker inspect` shows it on a host with AppArmor.
pub fn profile(asked: Option<&str>, privileged: bool) -> &str {
    match asked {
        _ if privileged => UNCONFINED,
        Some(name) if !name.is_empty() => name,
        _ => DEFAULT,
    }
}

/// The profile to apply to a container that starts now; the default one is loaded if need be, which
/// takes a tenth of a second once after boot.
///
/// # Errors
/// When the profile that was asked for is not loaded, or the default one cannot be.
pub(crate) fn to_apply(spec: &ContainerSpec) -> Result<Option<String>> {
    let wanted = profile(spec.apparmor.as_deref(), spec.privileged);
    if wanted == UNCONFINED || !enabled() {
        return Ok(None);
    }
    let loaded = std::fs::read_to_string(LOADED)
        .map_err(|e| Error::system(format!("AppArmor's profiles in {LOADED}"), e))?;
    match (is_loaded(&loaded, wanted), wanted) {
        (true, _) => {}
        (false, DEFAULT) => load()?,
        (false, other) => {
            return Err(Error::new(
                ErrorKind::System,
                format!(
                    "AppArmor profile {other} is not loaded on this host: load it with apparmor_parser, or ask for another one with --security-opt apparmor=NAME"
                ),
            ));
        }
    }
    Ok(Some(wanted.to_owned()))
}

/// The kernel's list has lines such as `docker-default (enforce)`.
fn is_loaded(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

/// Gives the kernel the default profile.
fn load() -> Result<()> {
    let failed = |why: String| {
        Error::new(
            ErrorKind::System,
            format!(
                "AppArmor profile {DEFAULT} could not be loaded: {PARSER}: {why}; mend that, or run the container with --security-opt apparmor={UNCONFINED}"
            ),
        )
    };
    let mut parser = Command::new(PARSER)
        .arg("-Kr")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let written = parser.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(TEXT.as_bytes()));
    let output = parser.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    written.map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_loaded_when_the_kernel_lists_its_whole_name() {
        let list = "lsb_release (enforce)\ndocker-default (enforce)\nwith (two) words (complain)\n";
        assert!(is_loaded(list, DEFAULT));
        assert!(is_loaded(list, "with (two) words"));
        assert!(!is_loaded(list, "docker"));
        assert!(!is_loaded("", DEFAULT));
    }

    #[test]
    fn privileged_containers_are_not_confined_and_others_are_by_default() {
        assert_eq!(profile(None, false), DEFAULT);
        assert_eq!(profile(Some(""), false), DEFAULT);
        assert_eq!(profile(Some("mine"), false), "mine");
        assert_eq!(profile(Some("mine"), true), UNCONFINED);
    }
}
