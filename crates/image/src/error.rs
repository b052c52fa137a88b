//! What can go wrong with an image: a small kind for code, a sentence in Docker's words for people.

use std::io;
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about it; the Engine API's status follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 404
    NotFound,
    /// 400
    Invalid,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 409
    Conflict,
    /// 501
    NotSupported,
    /// 503
    Unavailable,
    /// 500
    System,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    NotSupported(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    System(String),
    #[error("{what} {}: {cause}", path.display())]
    File { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("{what}: {cause}")]
    Stream { what: &'static str, cause: io::Error },
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Error::NoSuchImage(_) | Error::NotFound(_) => Kind::NotFound,
            Error::Invalid(_) => Kind::Invalid,
            Error::Unauthorized(_) => Kind::Unauthorized,
            Error::Forbidden(_) => Kind::Forbidden,
            Error::Conflict(_) => Kind::Conflict,
            Error::NotSupported(_) => Kind::NotSupported,
            Error::Unavailable(_) => Kind::Unavailable,
            Error::System(_) | Error::File { .. } | Error::Stream { .. } => Kind::System,
        }
    }

    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |cause| Error::File { what, path, cause }
    }

    pub(crate) fn stream(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |cause| Error::Stream { what, cause }
    }
}

/// A kernel error with its path, for the calls that go through rustix.
pub(crate) fn errno(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.into();
    move |cause| Error::File { what, path, cause: cause.into() }
}
