//! What a request carries: its JSON body, query parameters and filters, read as Docker reads them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// A larger JSON body is refused before it is kept in memory.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// The whole body, read to its end (a client whose body is not read fails with a broken pipe).
pub struct RawBody(pub Vec<u8>);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let mut stream = request.into_body().into_data_stream();
        let mut body = Vec::new();
        let mut too_large = false;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|cause| ApiError::bad_request(format!("error reading body: {cause}")))?;
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                too_large = true;
                break;
            }
            body.extend_from_slice(&chunk);
        }
        if too_large {
            return Err(ApiError::new(
                axum::http::StatusCode::PAYLOAD_TOO_LARGE,
                format!("request body is larger than {BODY_BYTES_MAX} bytes"),
            ));
        }
        Ok(Self(body))
    }
}

/// A JSON body; an empty one, or `null`, is `None`.
pub struct Body<T>(pub Option<T>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let content_type = request
            .headers()
            .get(axum::http::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let RawBody(body) = RawBody::from_request(request, state).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        let media = content_type.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::bad_request(format!(
                "unsupported Content-Type header ({content_type}): must be 'application/json'"
            )));
        }
        parse(&body).map(Self)
    }
}

impl<T> Body<T> {
    /// For calls that need a body.
    pub fn required(self) -> Result<T, ApiError> {
        self.0.ok_or_else(|| {
            ApiError::bad_request("invalid JSON: got EOF while reading request body")
        })
    }
}

/// JSON as bytes to an object, with Docker's words when it is none.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Option<T>, ApiError> {
    serde_json::from_slice(body)
        .map_err(|cause| ApiError::bad_request(format!("invalid JSON: {cause}")))
}

/// The query, decoded; the first value of a name counts, `all` gives every one.
#[derive(Clone, Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Parameters {
    pub fn parse(query: &str) -> Self {
        Self(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Empty counts as absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Docker's `BoolValue`: everything but these five is true.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(value) => {
                let value = value.trim().to_ascii_lowercase();
                !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
            }
        }
    }

    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.text(name) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "strconv.ParseInt: parsing \"{value}\": invalid syntax"
                ))
            }),
        }
    }

    /// `filters=`, see [`Filters`].
    pub fn filters(&self) -> Result<Filters, ApiError> {
        Filters::parse(self.get("filters").unwrap_or_default())
    }
}

/// Percent-decoding of a query's part; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3);
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'+', _) => out.push(b' '),
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Docker's filters: `{"label":["a=b"]}` or the older `{"label":{"a=b":true}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    pub fn parse(json: &str) -> Result<Self, ApiError> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(lists) = serde_json::from_str::<BTreeMap<String, BTreeSet<String>>>(json) {
            return Ok(Self(lists));
        }
        let maps: BTreeMap<String, BTreeMap<String, bool>> = serde_json::from_str(json)
            .map_err(|cause| ApiError::bad_request(format!("invalid filter: {cause}")))?;
        Ok(Self(
            maps.into_iter()
                .map(|(name, values)| {
                    (
                        name,
                        values.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
                    )
                })
                .collect(),
        ))
    }

    /// Refuses what the call does not know, in Docker's words.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(ApiError::bad_request(format!("Invalid filter '{name}'"))),
            None => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|values| !values.is_empty())
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// True when the filter is absent or one of its values is the source.
    pub fn exact(&self, name: &str, source: &str) -> bool {
        !self.has(name) || self.values(name).any(|value| value == source)
    }

    /// True when the filter is absent or the source has one of its values in front.
    pub fn prefix(&self, name: &str, source: &str) -> bool {
        !self.has(name) || self.values(name).any(|value| source.starts_with(value))
    }

    /// `label=key` and `label=key=value`: all must hold.
    pub fn labels<'a>(&self, name: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(name).all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => label(key) == Some(value),
            None => label(wanted).is_some(),
        })
    }

    /// A yes-or-no filter, `default` when absent.
    pub fn boolean(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        let mut answer = None;
        for value in self.values(name) {
            let this = match value {
                "1" | "true" | "True" | "TRUE" | "t" | "T" => true,
                "0" | "false" | "False" | "FALSE" | "f" | "F" => false,
                _ => return Err(self.invalid(name)),
            };
            if answer.is_some_and(|before| before != this) {
                return Err(self.invalid(name));
            }
            answer = Some(this);
        }
        Ok(answer.unwrap_or(default))
    }

    fn invalid(&self, name: &str) -> ApiError {
        let values: Vec<&str> = self.values(name).collect();
        ApiError::bad_request(format!("invalid filter '{name}={values:?}'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_filters_mean_the_same() {
        let new = Filters::parse(r#"{"label":["a=b","c"]}"#).expect("new form");
        let old = Filters::parse(r#"{"label":{"a=b":true,"c":true,"d":false}}"#).expect("old form");
        assert_eq!(new, old);
        assert!(new.labels("label", |key| match key {
            "a" => Some("b"),
            "c" => Some(""),
            _ => None,
        }));
        assert!(!new.labels("label", |key| (key == "a").then_some("x")));
    }

    #[test]
    fn a_filter_nobody_knows_is_refused() {
        let filters = Filters::parse(r#"{"colour":["red"]}"#).expect("json");
        let error = filters.only(&["label"]).expect_err("unknown");
        assert_eq!(error.message, "Invalid filter 'colour'");
        assert!(Filters::parse("{").is_err());
    }

    #[test]
    fn query_values_are_decoded_and_flags_read_as_docker_does() {
        let query = Parameters::parse("name=a%2Fb+c&all=1&v=false&x=None&bad=%zz");
        assert_eq!(query.get("name"), Some("a/b c"));
        assert!(query.flag("all"));
        assert!(!query.flag("v") && !query.flag("x") && !query.flag("missing"));
        assert_eq!(query.get("bad"), Some("%zz"));
    }
}
