//! `docker rmi` and `docker image prune`: when a name goes, when the image goes, and what stands against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{State, Store, remove_if_there};
use crate::layers::sync_parent;
use crate::{Deleted, Digest, Error, Image, Pruned, Reference, Remove, Result, User};

struct Conflict {
    hard: bool,
    used: bool,
    image: Digest,
    reason: String,
}

impl From<Conflict> for Error {
    fn from(conflict: Conflict) -> Self {
        let force = if conflict.hard { "cannot be forced" } else { "must be forced" };
        Error::Conflict(format!(
            "conflict: unable to delete {} ({force}) - {}",
            conflict.image.short(),
            conflict.reason
        ))
    }
}

/// Which reasons against a removal count.
#[derive(Clone, Copy)]
struct Mind {
    active_reference: bool,
    stopped_container: bool,
}

impl Store {
    /// Untags, and deletes the image when its last name goes; Docker's rules, step by step.
    pub fn remove(&self, name: &str, remove: Remove, users: &[User]) -> Result<Vec<Deleted>> {
        let mut state = self.write();
        let image = state.resolve(name)?;
        let removed = self.remove_from(&mut state, &image, name, remove, users);
        // One that stays without a name, as containers use it, stays for good.
        if state.images.get(&image.id).is_some_and(|known| known.meta.passing) {
            self.change_meta(&mut state, &image.id, |meta| meta.passing = false)?;
        }
        removed
    }

    fn remove_from(
        &self,
        state: &mut State,
        image: &Image,
        name: &str,
        remove: Remove,
        users: &[User],
    ) -> Result<Vec<Deleted>> {
        let mut records = Vec::new();
        let references = state.names.all(&image.id);
        let mut quiet = false;
        if is_id_prefix(&image.id, name) {
            if is_single(&references) {
                let mind = Mind { active_reference: false, stopped_container: !remove.force };
                check(state, &image.id, mind, users)?;
                self.untag(state, references, &mut records)?;
            }
        } else {
            let user = users.iter().find(|user| user.image == image.id);
            if let (false, true, Some(user)) = (remove.force, is_single(&references), user) {
                let container: String = user.container.chars().take(12).collect();
                return Err(Error::Conflict(format!(
                    "conflict: unable to remove repository reference {name:?} (must force) - container {container} is using its referenced image {}",
                    image.id.short()
                )));
            }
            let reference = Reference::parse(name)?;
            let reference = match reference.digest() {
                Some(digest) => reference.with_digest(digest),
                None => reference.or_latest(),
            };
            // The tag, and with the repository's last tag its digests: by one write, so that no crash
            // leaves an image that only a digest names.
            let mut going = vec![reference.clone()];
            let same = |other: &&Reference| other.name() == reference.name();
            let tagged = |other: &Reference| other.tag().is_some() && *other != reference;
            if reference.tag().is_some() && !references.iter().filter(same).any(tagged) {
                let digests = references.iter().filter(same).filter(|other| other.tag().is_none());
                going.extend(digests.cloned());
            }
            self.untag(state, going, &mut records)?;
            if !state.names.all(&image.id).is_empty() {
                return Ok(records);
            }
            quiet = true;
        }
        self.delete(state, image.id, remove, quiet, users, &mut records)?;
        Ok(records)
    }

    /// Removes the images that `wanted` accepts and nothing uses: those without a tag, or all.
    pub fn prune(
        &self,
        dangling_only: bool,
        wanted: &dyn Fn(&Image) -> bool,
        users: &[User],
    ) -> Result<Pruned> {
        let sizes = self.chain_sizes();
        let mut pruned = Pruned::default();
        for image in self.list() {
            let names = self.read().names.all(&image.id);
            let children = !self.children(&image.id).is_empty();
            if (children && (dangling_only || names.is_empty())) || !wanted(&image) {
                continue;
            }
            if dangling_only && names.iter().any(|name| name.tag().is_some()) {
                continue;
            }
            let targets = match names.is_empty() {
                true => vec![image.id.hex()],
                false => names.iter().map(Reference::to_string).collect(),
            };
            for target in targets {
                let remove = Remove { force: false, prune_children: true };
                match self.remove(&target, remove, users) {
                    Ok(records) => pruned.deleted.extend(records),
                    // In use, or gone with a name before.
                    Err(Error::Conflict(_) | Error::NoSuchImage(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        pruned.bytes = pruned
            .deleted
            .iter()
            .filter_map(|record| match record {
                Deleted::Deleted(id) => sizes.get(id),
                Deleted::Untagged(_) => None,
            })
            .sum();
        Ok(pruned)
    }

    /// Removes what pulls that were given up have left for their next try, each under its blob's digest.
    pub fn prune_downloads(&self) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for (part, size) in self.inner.blobs.parts(&self.inner.root.join("download"))? {
            part.remove()?;
            pruned.deleted.push(Deleted::Deleted(part.digest.to_string()));
            pruned.bytes += size;
        }
        Ok(pruned)
    }

    /// How much that is now.
    pub fn downloads_size(&self) -> Result<u64> {
        let parts = self.inner.blobs.parts(&self.inner.root.join("download"))?;
        Ok(parts.iter().map(|(_, size)| size).sum())
    }

    /// Each layer's size by its chain id, the name Docker reports it under.
    fn chain_sizes(&self) -> BTreeMap<String, u64> {
        let state = self.read();
        let mut sizes = BTreeMap::new();
        for known in state.images.values() {
            let diff_ids = &known.config.rootfs.diff_ids;
            for (chain, diff_id) in chain_ids(diff_ids).iter().zip(diff_ids) {
                sizes.insert(
                    chain.to_string(),
                    self.inner.layers.info(diff_id).map_or(0, |info| info.size),
                );
            }
        }
        sizes
    }

    fn untag(
        &self,
        state: &mut State,
        names: Vec<Reference>,
        records: &mut Vec<Deleted>,
    ) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let mut after = state.names.clone();
        let ids: BTreeSet<Digest> = names.iter().filter_map(|name| state.names.get(name)).collect();
        for name in &names {
            after.remove(name);
        }
        for id in ids.iter().filter(|id| after.all(id).is_empty()) {
            self.change_meta(state, id, |meta| meta.passing = true)?;
        }
        after.write(&self.inner.root.join("repositories.json"))?;
        state.names = after;
        tracing::trace!(target: "step", "image untagged");
        records.extend(names.iter().map(|name| Deleted::Untagged(name.familiar())));
        Ok(())
    }

    fn delete(
        &self,
        state: &mut State,
        id: Digest,
        remove: Remove,
        quiet: bool,
        users: &[User],
        records: &mut Vec<Deleted>,
    ) -> Result<()> {
        let mind = Mind { active_reference: !remove.force, stopped_container: !remove.force };
        if let Err(conflict) = check(state, &id, mind, users) {
            let dangling = state.names.all(&id).is_empty() && state.children(&id).is_empty();
            return if quiet && (!dangling || conflict.used) {
                Ok(())
            } else {
                Err(conflict.into())
            };
        }
        self.untag(state, state.names.all(&id), records)?;
        let Some(known) = state.images.remove(&id) else { return Ok(()) };
        let path = self.inner.root.join("images").join(id.hex());
        let old = self.inner.root.join("images").join(format!(".old-{}", id.hex()));
        fs::rename(&path, &old).map_err(Error::file("remove image", &path))?;
        sync_parent(&path)?;
        tracing::trace!(target: "step", "image set aside");
        remove_if_there(&old)?;
        tracing::trace!(target: "step", "image removed");
        records.push(Deleted::Deleted(id.to_string()));
        let kept: BTreeSet<Digest> = state
            .images
            .values()
            .flat_map(|known| chain_ids(&known.config.rootfs.diff_ids))
            .collect();
        let diff_ids = &known.config.rootfs.diff_ids;
        for chain in chain_ids(diff_ids).iter().rev().filter(|chain| !kept.contains(chain)) {
            records.push(Deleted::Deleted(chain.to_string()));
        }
        for diff_id in diff_ids {
            self.inner.layers.release(diff_id);
        }
        self.inner.blobs.forget_gone(&self.inner.layers)?;
        match known.meta.parent {
            Some(parent) if remove.prune_children && state.images.contains_key(&parent) => {
                let remove = Remove { force: false, prune_children: true };
                self.delete(state, parent, remove, true, users, records)
            }
            _ => Ok(()),
        }
    }
}

fn check(state: &State, id: &Digest, mind: Mind, users: &[User]) -> Result<(), Conflict> {
    let against = |hard, used, reason: String| Err(Conflict { hard, used, image: *id, reason });
    let user = |running| users.iter().find(|user| user.image == *id && user.running == running);
    let short = |user: &User| user.container.chars().take(12).collect::<String>();
    if !state.children(id).is_empty() {
        return against(true, false, "image has dependent child images".into());
    }
    if let Some(user) = user(true) {
        return against(
            true,
            true,
            format!("image is being used by running container {}", short(user)),
        );
    }
    if mind.active_reference && !state.names.all(id).is_empty() {
        return against(false, false, "image is referenced in multiple repositories".into());
    }
    match user(false) {
        Some(user) if mind.stopped_container => against(
            false,
            true,
            format!("image is being used by stopped container {}", short(user)),
        ),
        _ => Ok(()),
    }
}

fn is_id_prefix(id: &Digest, name: &str) -> bool {
    id.hex().starts_with(name.strip_prefix("sha256:").unwrap_or(name))
}

/// At most one tag, and every digest in the same repository.
fn is_single(references: &[Reference]) -> bool {
    if references.len() <= 1 {
        return true;
    }
    let tags = references.iter().filter(|reference| reference.tag().is_some()).count();
    let repositories: BTreeSet<String> = references.iter().map(Reference::name).collect();
    tags <= 1 && repositories.len() == 1
}

/// The names of layer stacks (OCI image spec, "Layer ChainID"), bottom first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain = None;
    diff_ids
        .iter()
        .map(|diff_id| {
            let next = match chain {
                None => *diff_id,
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            chain = Some(next);
            next
        })
        .collect()
}
