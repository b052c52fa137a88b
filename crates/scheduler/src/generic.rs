//! Generic resources: counted (`gpu=2`) or named (`gpu=UUID1`), of the user's own kinds.

use wire::swarmkit as pb;

use pb::generic_resource::Resource;

/// How many of a kind there are.
fn available(kind: &str, left: &[pb::GenericResource]) -> i64 {
    left.iter()
        .map(|resource| match &resource.resource {
            Some(Resource::NamedResourceSpec(named)) if named.kind == kind => 1,
            Some(Resource::DiscreteResourceSpec(count)) if count.kind == kind => count.value,
            _ => 0,
        })
        .sum()
}

fn wanted(resource: &pb::GenericResource) -> Option<(&str, i64)> {
    match resource.resource.as_ref()? {
        Resource::DiscreteResourceSpec(count) => Some((&count.kind, count.value)),
        Resource::NamedResourceSpec(named) => Some((&named.kind, 1)),
    }
}

pub fn fits(asked: &[pb::GenericResource], left: &[pb::GenericResource]) -> bool {
    asked.iter().filter_map(wanted).all(|(kind, count)| available(kind, left) >= count)
}

/// Takes what was asked for out of what is left and says which it was.
pub fn take(
    asked: &[pb::GenericResource],
    left: &mut Vec<pb::GenericResource>,
) -> Vec<pb::GenericResource> {
    let mut taken = Vec::new();
    for (kind, mut count) in asked.iter().filter_map(wanted) {
        left.retain_mut(|resource| match &mut resource.resource {
            Some(Resource::NamedResourceSpec(named)) if named.kind == kind && count > 0 => {
                count -= 1;
                taken.push(resource.clone());
                false
            }
            Some(Resource::DiscreteResourceSpec(have)) if have.kind == kind && count > 0 => {
                let part = count.min(have.value);
                have.value -= part;
                count -= part;
                let part = pb::DiscreteGenericResource { kind: kind.to_owned(), value: part };
                let part = Resource::DiscreteResourceSpec(part);
                taken.push(pb::GenericResource { resource: Some(part) });
                have.value > 0
            }
            _ => true,
        });
    }
    taken
}

/// Takes certain resources out: those that a task was given.
pub fn remove(given: &[pb::GenericResource], left: &mut Vec<pb::GenericResource>) {
    for resource in given {
        match &resource.resource {
            Some(Resource::NamedResourceSpec(_)) => left.retain(|other| other != resource),
            Some(Resource::DiscreteResourceSpec(_)) => {
                let _taken = take(std::slice::from_ref(resource), left);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kind: &str, value: i64) -> pb::GenericResource {
        let count = pb::DiscreteGenericResource { kind: kind.into(), value };
        pb::GenericResource { resource: Some(Resource::DiscreteResourceSpec(count)) }
    }

    fn named(kind: &str, value: &str) -> pb::GenericResource {
        let named = pb::NamedGenericResource { kind: kind.into(), value: value.into() };
        pb::GenericResource { resource: Some(Resource::NamedResourceSpec(named)) }
    }

    #[test]
    fn named_and_counted_resources_are_taken_and_run_out() {
        let mut left = vec![named("gpu", "a"), named("gpu", "b"), count("ssd", 3)];
        let asked = [count("gpu", 1), count("ssd", 2)];
        assert!(fits(&asked, &left));
        assert_eq!(take(&asked, &mut left), vec![named("gpu", "a"), count("ssd", 2)]);
        assert_eq!(left, vec![named("gpu", "b"), count("ssd", 1)]);
        assert!(!fits(&asked, &left));
        remove(&[named("gpu", "b"), count("ssd", 1)], &mut left);
        assert!(left.is_empty());
    }
}
