//! Resolves the host names of endpoints.
//!
//! The system's getaddrinfo takes a thread for each name and can't be cancelled. A few names whose DNS server does not
//! answer would take all threads, and every other endpoint would wait for them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tracing::warn;

/// Resolves a host name and a port to socket addresses.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// For how long it is remembered that a name does not exist: a Service that was just created is found soon.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// A resolver by /etc/resolv.conf and /etc/hosts, which are read once. Names are remembered for as long as their records say.
pub fn system() -> Resolve {
    let (config, options) = read_system_conf().unwrap_or_else(|error| {
        warn!(%error, "/etc/resolv.conf can't be used: webhook hosts are looked up in /etc/hosts only");
        Default::default()
    });
    of(config, options)
}

fn of(config: ResolverConfig, mut options: ResolverOpts) -> Resolve {
    // As most programs do: IPv6 is often configured where it leads nowhere.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.negative_max_ttl = Some(NEGATIVE_TTL);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let resolver = builder.build().map_err(|error| error.to_string());
    Arc::new(move |host, port| {
        let resolver = resolver.clone();
        async move {
            let resolver = resolver.map_err(io::Error::other)?;
            let found = resolver.lookup_ip(host).await.map_err(|error| io::Error::other(cause(&error)))?;
            Ok(found.iter().map(|address| SocketAddr::new(address, port)).collect())
        }
        .boxed()
    })
}

/// The error without the question, which conditions need not repeat.
fn cause(error: &NetError) -> String {
    match error {
        error if error.is_nx_domain() => "there is no such name".to_owned(),
        error if error.is_no_records_found() => "the name has no address".to_owned(),
        NetError::Timeout => "no DNS server has answered".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{IpAddr, Ipv4Addr};

    use futures::future::join_all;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    use super::*;

    /// Where the header of a DNS message ends, RFC 1035, section 4.1.1.
    const HEADER: usize = 12;

    /// The name in the question of a query, and where the question ends, RFC 1035, section 4.1.2.
    fn question(query: &[u8]) -> (String, usize) {
        let (mut labels, mut at) = (Vec::new(), HEADER);
        while query[at] != 0 {
            let end = at + 1 + usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
            at = end;
        }
        (labels.join("."), at + 5)
    }

    /// A DNS server that knows good.test as 192.0.2.7, says that names below nowhere.test do not exist, and answers nothing
    /// else. Returns a resolver that asks it.
    async fn resolver() -> Resolve {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let port = server.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut query).await {
                let (name, end) = question(&query[..length]);
                let is_ipv4 = query[end - 4..end - 2] == [0, 1];
                let (code, answers) = match name.as_str() {
                    "good.test" => (0, u8::from(is_ipv4)),
                    name if name.ends_with("nowhere.test") => (3, 0),
                    _ => continue,
                };
                // The answer refers to the name in the question, is of class IN, and lives for a minute.
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
                answer.extend(&query[HEADER..end]);
                if answers == 1 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
                }
                server.send_to(&answer, from).await.expect("an answer is sent");
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        of(ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default())
    }

    #[tokio::test]
    async fn names_that_get_no_answer_hold_up_no_other() {
        let resolve = resolver().await;
        let silent = (0..2000).map(|n| resolve(format!("x{n}.silent.test"), 443));
        let silent = tokio::spawn(join_all(silent));
        // They wait for 5 s at least, before the first of them fails.
        tokio::task::yield_now().await;
        let good = timeout(Duration::from_secs(4), resolve("good.test".to_owned(), 443)).await;
        let found: HashSet<_> = good.expect("in time").expect("an address").into_iter().collect();
        assert_eq!(found, HashSet::from([SocketAddr::new(IpAddr::from([192, 0, 2, 7]), 443)]));
        assert!(!silent.is_finished());
        silent.abort();
    }

    #[tokio::test]
    async fn a_failure_says_what_to_look_at() {
        let resolve = resolver().await;
        for (name, cause) in
            [("a.nowhere.test", "there is no such name"), ("x.silent.test", "no DNS server has answered")]
        {
            let error = resolve(name.to_owned(), 443).await.expect_err(name);
            assert_eq!(error.to_string(), cause);
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_need_no_server() {
        let resolve = resolver().await;
        let found = resolve("localhost".to_owned(), 80).await.expect("an address");
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
