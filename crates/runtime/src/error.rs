//! What can go wrong in the runtime: a small kind for code, a sentence for people.

/// For code: which status an API should answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// No such container or exec here.
    NotFound,
    /// The container is not in a state that allows it.
    Conflict,
    /// The request cannot be right: unknown user, bad profile, bad resource.
    Invalid,
    /// The command does not exist in the container (exit code 127).
    CommandNotFound,
    /// The command cannot be executed (exit code 126).
    CommandNotExecutable,
    /// The container's shim is there and does not answer.
    NoAnswer,
    /// Not supported by this kernel or by skep.
    Unsupported,
    /// Anything else.
    System,
}

/// An error of the runtime.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    pub kind: ErrorKind,
    pub text: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error { kind, text: text.into() }
    }

    pub fn system(what: impl std::fmt::Display, cause: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::System, format!("{what}: {cause}"))
    }

    pub fn not_found(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::NotFound, text)
    }

    pub fn invalid(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, text)
    }

    pub fn conflict(text: impl Into<String>) -> Error {
        Error::new(ErrorKind::Conflict, text)
    }
}
