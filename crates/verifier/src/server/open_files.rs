//! The limit of open files, which bounds the number of connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files reserved for all but clients' connections. Listeners, the runtime, the API server and telemetry use some 50; the
/// others are for sockets that are closing, and for gRPC.
const RESERVED_FILES: usize = 256;

/// Raises the soft limit to the hard one, as servers do: the soft limit is low for the sake of programs that use `select`.
/// Returns `connections`, or the number that the limit allows if that is lower.
pub(crate) fn limit(connections: usize) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    let allowed =
        files.map_or(connections, |files| connections.min(files.saturating_sub(RESERVED_FILES).max(1)));
    if allowed < connections {
        tracing::warn!(
            "--max-connections {connections} is more than the limit of open files allows; it is {allowed} now. Raise \
             the limit (ulimit -n) or lower the flag"
        );
    }
    allowed
}
