//! Open files: a daemon holds several for each container; its containers begin with what it was given itself.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What this process was allowed when it began.
static GIVEN: OnceLock<Option<u64>> = OnceLock::new();

/// Lets this process open as many files as it may at most. To be called before it starts any other.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    GIVEN.get_or_init(|| limit.current);
    set(limit.maximum);
}

/// What a container begins with; `None` where nothing was raised.
pub(crate) fn given_open_files() -> Option<u64> {
    GIVEN.get().copied().flatten()
}

/// In the shim, for itself and all that it starts.
pub(crate) fn lower_open_files(to: u64) {
    set(Some(to));
}

/// What the kernel refuses stays as it was: there is less room, and whoever finds none says so.
fn set(current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}
