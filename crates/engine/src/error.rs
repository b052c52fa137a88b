//! What can go wrong in the engine: a kind for programs, a sentence for people.

use crate::network::{NetworkError, NetworkErrorKind};

/// The kinds that callers branch on; the Engine API maps each to one status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 304: nothing to do, as starting what runs.
    NotModified,
    /// 400
    BadParameter,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 500
    Internal,
    /// 501
    NotImplemented,
    /// 503
    Unavailable,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => { $(
        pub fn $name(message: impl Into<String>) -> Self {
            Self { kind: Kind::$kind, message: message.into() }
        }
    )* };
}

impl Error {
    constructors! {
        not_modified => NotModified,
        bad_parameter => BadParameter,
        unauthorized => Unauthorized,
        forbidden => Forbidden,
        not_found => NotFound,
        conflict => Conflict,
        internal => Internal,
        not_implemented => NotImplemented,
        unavailable => Unavailable,
    }

    /// For what this engine does not do yet: says so, never pretends.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::not_implemented(format!("not supported by skep yet: {what}"))
    }

    /// The same error with what was being done in front.
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl From<std::io::Error> for Error {
    fn from(cause: std::io::Error) -> Self {
        Self::internal(cause.to_string())
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let kind = match error.kind {
            NetworkErrorKind::Invalid => Kind::BadParameter,
            NetworkErrorKind::Forbidden => Kind::Forbidden,
            NetworkErrorKind::NotFound => Kind::NotFound,
            NetworkErrorKind::Conflict => Kind::Conflict,
            NetworkErrorKind::Internal => Kind::Internal,
            NetworkErrorKind::Unsupported => Kind::NotImplemented,
        };
        Self { kind, message: error.message }
    }
}

/// Puts the object and the action in front of an input/output error.
pub trait IoContext<T> {
    fn during(self, doing: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> IoContext<T> for std::result::Result<T, E> {
    fn during(self, doing: impl std::fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::internal(format!("{doing}: {cause}")))
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let kind = match error.kind() {
            image::Kind::NotFound => Kind::NotFound,
            image::Kind::Invalid => Kind::BadParameter,
            image::Kind::Unauthorized => Kind::Unauthorized,
            image::Kind::Forbidden => Kind::Forbidden,
            image::Kind::Conflict => Kind::Conflict,
            image::Kind::NotSupported => Kind::NotImplemented,
            image::Kind::Unavailable => Kind::Unavailable,
            image::Kind::System => Kind::Internal,
        };
        Self { kind, message: error.to_string() }
    }
}
