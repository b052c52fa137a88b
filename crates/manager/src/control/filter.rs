//! Which objects a list is about: any of the values of a filter, all of the filters.

use std::collections::BTreeMap;

/// No values, or one of them.
pub fn any(value: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|one| one == value)
}

pub fn any_prefix(value: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|one| value.starts_with(one.as_str()))
}

pub fn any_number(value: i32, wanted: &[i32]) -> bool {
    wanted.is_empty() || wanted.contains(&value)
}

/// Every wanted label is there; an empty value matches any.
pub fn labels(held: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| {
        let held = held.and_then(|held| held.get(name));
        held.is_some_and(|held| value.is_empty() || held == value)
    })
}

/// The four filters that most lists have.
macro_rules! common {
    ($object:expr, $filters:expr) => {{
        let (object, filters) = ($object, $filters);
        let labels = store::Object::annotations(object).map(|annotations| &annotations.labels);
        $crate::control::filter::any(store::Object::name(object), &filters.names)
            && $crate::control::filter::any_prefix(
                store::Object::name(object),
                &filters.name_prefixes,
            )
            && $crate::control::filter::any_prefix(store::Object::id(object), &filters.id_prefixes)
            && $crate::control::filter::labels(labels, &filters.labels)
    }};
}
pub(crate) use common;
