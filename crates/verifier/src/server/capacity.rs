//! How many connections fit into this process: by its limits of open files and of memory.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files reserved for all but clients' connections. Listeners, the runtime, the API server and telemetry use some 50; the
/// others are for sockets that are closing, and for gRPC.
const RESERVED_FILES: usize = 256;
/// The most connections, unless a flag says otherwise.
const DEFAULT_CONNECTIONS: usize = 10_000;
/// What a connection may take: a head that never ends, in a buffer that doubles as it fills.
const CONNECTION_BYTES: usize = super::MAX_BUFFER_BYTES;
/// The part of the memory that HTTP connections may fill. gRPC has a bound of its own, and the index needs the rest.
const MEMORY_DIVISOR: usize = 3;
/// Where Linux says how much memory this container may use: cgroup v2, and v1.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The number of connections: that of the flag, or by default as many as the memory limit has room for. Open files may
/// lower it. Raises the soft limit of open files to the hard one, as servers do: the soft limit is low for the sake of
/// programs that use `select`.
pub(crate) fn connections(flag: Option<usize>) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    let wanted = flag.unwrap_or_else(|| fitting(memory_limit()));
    let allowed = files.map_or(wanted, |files| wanted.min(files.saturating_sub(RESERVED_FILES).max(1)));
    if allowed < wanted {
        tracing::warn!(
            "{wanted} connections are more than the limit of open files allows; it is {allowed} now. Raise the limit \
             (ulimit -n) or lower --max-connections"
        );
    }
    allowed
}

/// The memory that this container may use, in bytes. `None`: there is no limit, or this is not Linux.
fn memory_limit() -> Option<usize> {
    MEMORY_LIMITS.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// As many connections as fit into their part of the memory, all with the largest head.
fn fitting(memory: Option<usize>) -> usize {
    let fit = memory.map_or(usize::MAX, |bytes| bytes / MEMORY_DIVISOR / CONNECTION_BYTES);
    fit.clamp(1, DEFAULT_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::grpc;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn connections_fit_into_the_memory() {
        assert_eq!(fitting(None), DEFAULT_CONNECTIONS);
        assert_eq!(fitting(Some(512 * MIB)), 2730);
        assert_eq!(fitting(Some(64 * 1024 * MIB)), DEFAULT_CONNECTIONS);
        assert_eq!(fitting(Some(0)), 1);
    }

    /// The limit of the chart, with connections that are all as large as they can be, and room for 100,000 tokens.
    #[test]
    fn the_largest_connections_of_all_ports_fit_into_the_charts_memory() {
        let http = fitting(Some(512 * MIB)) * CONNECTION_BYTES;
        assert!(http + grpc::MAX_BYTES + 64 * MIB <= 512 * MIB, "{http} and {}", grpc::MAX_BYTES);
    }
}
