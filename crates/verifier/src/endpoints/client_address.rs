//! The client's address, behind proxies that are trusted to report it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The networks of the proxies whose X-Forwarded-For is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<IpNet>);

impl TrustedProxies {
    /// The client's address: the peer's, or if that is a trusted proxy, the one that it reports.
    ///
    /// `None`: the proxy reports nobody, itself, or what can't be read. That is nobody's address, and least of all the
    /// proxy's own, which may be in a network that the client is not in.
    pub(super) fn client(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        if !self.trusts(peer) {
            return Some(peer);
        }
        self.client_behind(headers, peer).filter(|client| *client != peer)
    }

    /// The address that X-Forwarded-For, read from the right, reports behind this one, as long as the reporting one is a
    /// trusted proxy's. `None`: it can't be read.
    pub(super) fn client_behind(&self, headers: &HeaderMap, address: IpAddr) -> Option<IpAddr> {
        let mut client = address;
        if !self.trusts(client) {
            return Some(client);
        }
        // As bytes: what a client puts in front may be no text, and must not hide what a proxy added to it.
        let values = headers.get_all(FORWARDED_FOR).iter().rev().map(HeaderValue::as_bytes);
        let mut hops = values.flat_map(|value| value.rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        while self.trusts(client) {
            match hops.find(|hop| !hop.is_empty()) {
                Some(hop) => client = parse(hop)?,
                None => break,
            }
        }
        Some(client)
    }

    /// Whether this is the address of a proxy that is believed.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A hop of X-Forwarded-For. Some proxies write the port too, and RFC 3986 brackets around IPv6.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()));
    Some(address.ok()?.to_canonical())
}
