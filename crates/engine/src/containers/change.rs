//! `docker rename` and `docker update`.

use std::sync::Arc;

use bollard_stubs::models::HostConfig;

use super::container::Phase;
use super::{limits, oci, validate};
use crate::Engine;
use crate::error::{Error, Result};

impl Engine {
    pub async fn rename(self: &Arc<Self>, name: &str, to: &str) -> Result<()> {
        let container = self.container(name)?;
        let _operation = container.operation.lock().await;
        let old = container.name();
        let to = to.strip_prefix('/').unwrap_or(to);
        if to.is_empty() {
            return Err(Error::bad_parameter("Neither old nor new names may be empty"));
        }
        if old == to {
            return Err(Error::bad_parameter(
                "Renaming a container with the same name as its current name",
            ));
        }
        if matches!(container.phase(), Phase::Removing | Phase::Dead) {
            return Err(Error::conflict("container is marked for removal and cannot be renamed"));
        }
        let to = self
            .containers
            .reserve(Some(to), container.id())
            .map_err(|error| error.context("Error when allocating new name"))?;
        let renamed = container.change_spec(|spec| spec.name = to.clone()).map(drop);
        let renamed = match renamed {
            Ok(()) if container.is_running() => {
                self.network.rename(container.id(), &to).await.map_err(Error::from)
            }
            other => other,
        };
        match renamed {
            Ok(()) => {
                self.containers.release(&old, container.id());
                self.tell_places(&container).await;
                self.publish(&container, "rename", [("oldName".to_owned(), format!("/{old}"))]);
                Ok(())
            }
            Err(error) => {
                self.containers.release(&to, container.id());
                container.change_spec(|spec| spec.name = old.clone())?;
                Err(error)
            }
        }
    }

    /// Takes over the limits and the restart policy that the request names; gives the warnings.
    pub async fn update(self: &Arc<Self>, name: &str, change: HostConfig) -> Result<Vec<String>> {
        let container = self.container(name)?;
        let _operation = container.operation.lock().await;
        if matches!(container.phase(), Phase::Removing | Phase::Dead) {
            return Err(Error::conflict(format!(
                "Cannot update container {}: container is marked for removal and cannot be \"update\"",
                container.id()
            )));
        }
        let cannot = |why: &str| {
            Error::conflict(format!("Cannot update container {}: {why}", container.id()))
        };
        let mut host = container.spec().host_config.clone();
        if host.auto_remove.unwrap_or_default() && names_a_policy(&change) {
            return Err(cannot(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        let mut alone = HostConfig { memory: change.memory, ..Default::default() };
        limits::resources(&mut alone, &mut Vec::new())?;
        // As dockerd has it: the two limits together make sense, one of them need not.
        if change.memory.unwrap_or_default() > host.memory_swap.unwrap_or_default()
            && host.memory_swap != Some(-1)
            && change.memory_swap.unwrap_or_default() == 0
        {
            return Err(cannot(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            ));
        }
        beside(&host, &change).map_err(|text| cannot(&text))?;
        apply(&mut host, &change);
        let mut warnings = Vec::new();
        limits::resources(&mut host, &mut warnings)?;
        validate::restart_policy(
            host.restart_policy.as_ref(),
            host.auto_remove.unwrap_or_default(),
        )?;
        if container.is_running() {
            self.runtime.update(container.id(), &oci::resources(&host)).await.map_err(|error| {
                Error::from(error)
                    .context(format_args!("Cannot update container {}", container.id()))
            })?;
        }
        container.change_spec(|spec| spec.host_config = host)?;
        self.publish(&container, "update", []);
        Ok(warnings)
    }
}

impl Engine {
    /// Takes a `--link` away; the name it gave goes with the next start.
    pub async fn remove_link(self: &Arc<Self>, name: &str, alias: &str) -> Result<()> {
        let container = self.container(name)?;
        let _operation = container.operation.lock().await;
        let is_link = |link: &String| {
            let named = link.rsplit([':', '/']).next().unwrap_or(link);
            named == alias
        };
        let links = container.spec().host_config.links.clone().unwrap_or_default();
        if !links.iter().any(is_link) {
            return Err(Error::not_found(format!(
                "Could not get parent alias /{}/{alias}: no such link",
                container.name()
            )));
        }
        container.change_spec(|spec| {
            if let Some(links) = &mut spec.host_config.links {
                links.retain(|link| !is_link(link));
            }
        })?;
        Ok(())
    }
}

/// `--cpus` is a quota, so it cannot be beside one.
fn beside(host: &HostConfig, change: &HostConfig) -> std::result::Result<(), String> {
    let set = |number: Option<i64>| number.unwrap_or_default() > 0;
    let conflict = |new: &str, old: &str| {
        Err(format!("Conflicting options: {new} cannot be updated as {old} has already been set"))
    };
    match () {
        () if set(change.nano_cpus) && set(host.cpu_period) => conflict("Nano CPUs", "CPU Period"),
        () if set(change.nano_cpus) && set(host.cpu_quota) => conflict("Nano CPUs", "CPU Quota"),
        () if set(change.cpu_quota) && set(host.nano_cpus) => conflict("CPU Quota", "NanoCPUs"),
        () if set(change.cpu_period) && set(host.nano_cpus) => conflict("CPU Period", "NanoCPUs"),
        () => Ok(()),
    }
}

/// A field that is absent or zero stays as it is.
fn apply(host: &mut HostConfig, change: &HostConfig) {
    macro_rules! numbers {
        ($($field:ident),*) => { $(
            if change.$field.is_some_and(|value| value != 0) { host.$field = change.$field; }
        )* };
    }
    macro_rules! texts {
        ($($field:ident),*) => { $(
            if change.$field.as_ref().is_some_and(|value| !value.is_empty()) {
                host.$field = change.$field.clone();
            }
        )* };
    }
    numbers!(
        cpu_shares,
        memory,
        blkio_weight,
        cpu_period,
        cpu_quota,
        cpu_realtime_period,
        cpu_realtime_runtime,
        memory_reservation,
        memory_swap,
        nano_cpus,
        pids_limit
    );
    texts!(cpuset_cpus, cpuset_mems);
    if names_a_policy(change) {
        host.restart_policy = change.restart_policy.clone();
    }
}

fn names_a_policy(change: &HostConfig) -> bool {
    let name = change.restart_policy.as_ref().and_then(|policy| policy.name);
    name.is_some_and(|name| !name.as_ref().is_empty())
}
