//! Seccomp profiles in Docker's JSON format, made into what the OCI spec wants for one container.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::spec::Seccomp;

/// Docker's default profile: which calls a container may make, by capability and architecture.
const DEFAULT: &str = include_str!("../data/seccomp.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The `linux.seccomp` object for a container with these capabilities; `None` when unconfined.
pub fn oci(seccomp: &Seccomp, privileged: bool, capabilities: &[String]) -> Result<Option<Value>> {
    let text = match seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default if privileged => return Ok(None),
        Seccomp::Default => DEFAULT,
        Seccomp::Custom(text) => text,
    };
    let profile: Profile = serde_json::from_str(text)
        .map_err(|e| Error::invalid(format!("Decoding seccomp profile failed: {e}")))?;
    let kernel = kernel_version();
    let mut syscalls = Vec::new();
    for mut rule in profile.syscalls {
        if !rule.name.is_empty() {
            rule.names.push(std::mem::take(&mut rule.name));
        }
        if rule.names.is_empty() || !applies(&rule, capabilities, kernel) {
            continue;
        }
        let mut out = json!({ "names": rule.names, "action": rule.action });
        if let Some(errno) = rule.errno_ret {
            out["errnoRet"] = json!(errno);
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            out["args"] = Value::Array(args);
        }
        syscalls.push(out);
    }
    let architectures = if !profile.architectures.is_empty() {
        profile.architectures
    } else {
        architectures(&profile.arch_map)
    };
    let mut out = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures,
        "syscalls": syscalls,
    });
    if let Some(errno) = profile.default_errno_ret {
        out["defaultErrnoRet"] = json!(errno);
    }
    Ok(Some(out))
}

fn applies(rule: &Rule, capabilities: &[String], kernel: (u32, u32)) -> bool {
    let has = |cap: &String| capabilities.contains(cap);
    let here = |arch: &String| arch == goarch() || (arch == "x32" && goarch() == "amd64");
    let newer = |min: &str| {
        let mut parts = min.split('.').map(|p| p.parse().unwrap_or(0));
        kernel >= (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    let (yes, no) = (&rule.includes, &rule.excludes);
    (yes.arches.is_empty() || yes.arches.iter().any(here))
        && yes.caps.iter().all(has)
        && yes.min_kernel.as_deref().is_none_or(newer)
        && !no.arches.iter().any(here)
        && !no.caps.iter().any(has)
        && !no.min_kernel.as_deref().is_some_and(newer)
}

/// Native first, then those whose binaries this kernel may also run.
fn architectures(map: &[ArchMap]) -> Vec<String> {
    let native = match goarch() {
        "amd64" => "SCMP_ARCH_X86_64",
        "arm64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        _ => "SCMP_ARCH_PPC64LE",
    };
    if let Some(entry) = map.iter().find(|entry| entry.architecture == native) {
        let subs = entry.sub_architectures.clone().unwrap_or_default();
        return std::iter::once(native.to_owned()).chain(subs).collect();
    }
    let subs: &[&str] = match goarch() {
        "amd64" => &["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "arm64" => &["SCMP_ARCH_ARM"],
        _ => &[],
    };
    std::iter::once(native).chain(subs.iter().copied()).map(str::to_owned).collect()
}

fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &Value) -> Vec<String> {
        profile["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|r| r["action"] == "SCMP_ACT_ALLOW")
            .flat_map(|r| {
                r["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn mounting_is_allowed_only_with_the_capability_for_it() {
        let plain = oci(&Seccomp::Default, false, &["CAP_CHOWN".into()]).unwrap().unwrap();
        assert!(!names(&plain).contains(&"mount".to_owned()));
        assert!(names(&plain).contains(&"openat".to_owned()));
        let admin = oci(&Seccomp::Default, false, &["CAP_SYS_ADMIN".into()]).unwrap().unwrap();
        assert!(names(&admin).contains(&"mount".to_owned()));
    }

    #[test]
    fn a_privileged_container_has_no_profile_unless_one_is_given() {
        assert!(oci(&Seccomp::Default, true, &[]).unwrap().is_none());
        let custom = Seccomp::Custom(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.into());
        assert!(oci(&custom, true, &[]).unwrap().is_some());
        assert!(oci(&Seccomp::Custom("{".into()), false, &[]).is_err());
    }
}
