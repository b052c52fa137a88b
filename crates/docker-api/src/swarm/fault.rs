//! Errors of the swarm in Docker's status and words.

use axum::http::StatusCode;

use super::api::{ControlCode, ControlError};

pub use crate::ApiError as Fault;

impl Fault {
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::bad_request(message)
    }
}

impl From<ControlError> for Fault {
    fn from(error: ControlError) -> Self {
        use ControlCode::*;
        let (status, name) = match error.code {
            // dockerd maps both to "bad parameter" (errdefs from gRPC).
            InvalidArgument => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            FailedPrecondition => (StatusCode::BAD_REQUEST, "FailedPrecondition"),
            NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            AlreadyExists => (StatusCode::CONFLICT, "AlreadyExists"),
            PermissionDenied => (StatusCode::FORBIDDEN, "PermissionDenied"),
            Unimplemented => (StatusCode::NOT_IMPLEMENTED, "Unimplemented"),
            Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            Aborted => (StatusCode::INTERNAL_SERVER_ERROR, "Aborted"),
            DeadlineExceeded => (StatusCode::INTERNAL_SERVER_ERROR, "DeadlineExceeded"),
            ResourceExhausted => (StatusCode::INTERNAL_SERVER_ERROR, "ResourceExhausted"),
            Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal"),
            Unknown => (StatusCode::INTERNAL_SERVER_ERROR, "Unknown"),
            NotManager | AlreadyInSwarm | Refused => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, error.message);
            }
            BadParameter => return Self::bad(error.message),
            Conflict => return Self::conflict(error.message),
            Unauthorized => return Self::new(StatusCode::UNAUTHORIZED, error.message),
            Failed => return Self::internal(error.message),
        };
        Self::new(status, format!("rpc error: code = {name} desc = {}", error.message))
    }
}
