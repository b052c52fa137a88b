//! Names of JSON members in any case, as Go's decoder takes them: docker-py says `CPURealtimePeriod`.

use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// Gives the members of an object the names that a structure's fields have.
pub(crate) fn in_any_case<'de, T: Deserialize<'de>>(object: &mut Map<String, Value>) {
    rename(object, fields_of::<T>());
}

/// A member whose name differs in case alone gets the name; one that has it already stays.
pub(crate) fn rename(object: &mut Map<String, Value>, names: &[&str]) {
    let other = |key: &String| {
        let exact = names.contains(&key.as_str());
        let meant = names.iter().find(|name| name.eq_ignore_ascii_case(key));
        meant.filter(|_| !exact).map(|name| (key.clone(), (*name).to_owned()))
    };
    let others: Vec<(String, String)> = object.keys().filter_map(other).collect();
    for (key, name) in others {
        if let Some(value) = object.remove(&key) {
            object.entry(name).or_insert(value);
        }
    }
}

/// What a structure's own decoder asks for.
fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Always an error: no value is made.
    let _ = T::deserialize(Fields(&mut fields));
    fields
}

struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("only a structure has fields"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("the fields are known"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_stubs::models::HostConfig;
    use serde_json::json;

    #[test]
    fn members_are_found_in_any_case_and_the_exact_name_wins() {
        let mut object =
            json!({ "CPURealtimePeriod": 1000, "memory": 1, "Memory": 2, "Colour": "red" });
        let object = object.as_object_mut().expect("an object");
        in_any_case::<HostConfig>(object);
        let expected = json!({ "CpuRealtimePeriod": 1000, "Memory": 2, "Colour": "red" });
        assert_eq!(Value::Object(object.clone()), expected);
    }
}
