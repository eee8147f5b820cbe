//! What a CheckRequest asks.

use std::borrow::Cow;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::response;
use crate::endpoints::authorization::API_KEY;
use crate::endpoints::client_address::FORWARDED_FOR;
use crate::endpoints::gateway::GatewayRequest;
use crate::endpoints::refusal::Refusal;
use crate::endpoints::requirements;
use crate::endpoints::requirements::Requirements;
use crate::endpoints::{Answer, TrustedProxies};
use tokenward_core::check::Identity;

/// The headers that a check reads.
const READ: [HeaderName; 3] = [AUTHORIZATION, API_KEY, FORWARDED_FOR];
/// What the names of identity headers begin with.
const OURS: &str = "x-tokenward-";

/// A request that a gateway is about to forward.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    attributes: &'a AttributeContext,
    http: &'a HttpRequest,
    gateway: IpAddr,
}

impl<'a> Asked<'a> {
    pub(super) fn of(check: &'a CheckRequest, gateway: IpAddr) -> Result<Self, Refusal> {
        let attributes = check.attributes.as_ref();
        let http = attributes.and_then(|attributes| attributes.request.as_ref()?.http.as_ref());
        match (attributes, http) {
            (Some(attributes), Some(http)) => Ok(Self { attributes, http, gateway }),
            _ => Err(Refusal::Malformed("there is no HTTP request in attributes.request.http".into())),
        }
    }

    /// `None`: no IP address, such as a client on a Unix socket.
    fn source(&self) -> Option<IpAddr> {
        match self.attributes.source.as_ref()?.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => Some(socket.address.parse::<IpAddr>().ok()?.to_canonical()),
            _ => None,
        }
    }

    /// The names of the client's headers that look like ours. Some servers take an underscore for a hyphen.
    fn like_ours(&self) -> impl Iterator<Item = &'a str> {
        let folded = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        let names = self.all_headers().map(|(name, _)| name);
        names.filter(move |name| name.bytes().map(folded).take(OURS.len()).eq(OURS.bytes()))
    }

    /// All headers, in either form that Envoy has for them: values of one name joined by commas, or, with
    /// `encode_raw_headers`, each as it came.
    fn all_headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let joined = self.http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let raw = self.http.header_map.iter().flat_map(|map| &map.headers).map(|header| {
            let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
            (header.key.as_str(), value)
        });
        joined.chain(raw)
    }
}

impl GatewayRequest for Asked<'_> {
    type Response = CheckResponse;

    /// What the route needs. Its extensions are for nobody but us, so one that is unknown is a mistake, and one
    /// that would leave a route open.
    fn requirements(&self) -> Result<Requirements<'_>, Refusal> {
        let extensions = self.attributes.context_extensions.iter();
        requirements::from_parameters(
            extensions.map(|(name, value)| (Cow::from(name), Cow::from(value))),
            true,
        )
    }

    fn headers(&self) -> Result<Cow<'_, HeaderMap>, Refusal> {
        let mut headers = HeaderMap::with_capacity(READ.len());
        for (name, value) in self.all_headers() {
            if let Some(name) = READ.iter().find(|read| name.eq_ignore_ascii_case(read.as_str())) {
                let value = HeaderValue::from_bytes(value).map_err(|_| {
                    Refusal::Malformed(format!("what {name} has is not the value of a header").into())
                })?;
                headers.append(name, value);
            }
        }
        Ok(Cow::Owned(headers))
    }

    /// The client's address: the gateway's, or what it says, if it is a trusted proxy, and then in turn what
    /// trusted proxies in front of it say.
    ///
    /// `source` is the peer of the connection on which Envoy received the request. No client can make that up,
    /// but whoever reaches this port can: so a gateway is believed by its address, as it is over HTTP.
    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
        if trusted.trusts(self.gateway) {
            trusted.client(headers, self.source()?)
        } else {
            Some(self.gateway)
        }
    }

    fn allowed(&self, identity: Identity<'_>) -> CheckResponse {
        response::allowed(identity, self.like_ours())
    }

    fn denied(response: Answer) -> CheckResponse {
        response::denied(response)
    }
}
