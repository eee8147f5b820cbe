//! The limit of open files, of which each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for all that is not a client's connection: listeners, the API server, telemetry, and sockets that close.
const OTHERS: usize = 256;

/// Raises the limit as far as this process may by itself, as servers do: the low one is there for programs that
/// use `select`. Answers how many of so many connections there is room for.
pub(crate) fn room_for(connections: usize) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    let room = files.map_or(connections, |files| connections.min(files.saturating_sub(OTHERS).max(1)));
    if room < connections {
        tracing::warn!(
            "--max-connections {connections} is more than the limit of open files allows; it is {room} now. Raise \
             the limit (ulimit -n) or lower the flag"
        );
    }
    room
}
