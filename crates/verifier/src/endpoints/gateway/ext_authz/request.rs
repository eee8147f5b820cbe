//! Decodes a `CheckRequest`.

use std::borrow::Cow;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::response;
use crate::endpoints::client_address::FORWARDED_FOR;
use crate::endpoints::gateway::GatewayRequest;
use crate::endpoints::gateway::error::GatewayError;
use crate::endpoints::gateway::presented_token::API_KEY;
use crate::endpoints::gateway::requirements::Requirements;
use crate::endpoints::{HttpResponse, TrustedProxies};
use tokenward_core::check::Identity;

/// The headers that a check reads; the others are not copied.
const RELEVANT_HEADERS: [HeaderName; 3] = [AUTHORIZATION, API_KEY, FORWARDED_FOR];
/// Prefix of the identity headers' names.
const IDENTITY_PREFIX: &str = "x-tokenward-";

/// A request that Envoy is about to forward.
#[derive(Clone, Copy)]
pub(super) struct ExtAuthzRequest<'a> {
    attributes: &'a AttributeContext,
    http: &'a HttpRequest,
    gateway: IpAddr,
}

impl<'a> ExtAuthzRequest<'a> {
    pub(super) fn decode(check: &'a CheckRequest, gateway: IpAddr) -> Result<Self, GatewayError> {
        let attributes = check.attributes.as_ref();
        let http = attributes.and_then(|attributes| attributes.request.as_ref()?.http.as_ref());
        match (attributes, http) {
            (Some(attributes), Some(http)) => Ok(Self { attributes, http, gateway }),
            _ => Err(GatewayError::Malformed("there is no HTTP request in attributes.request.http".into())),
        }
    }

    /// The peer of the connection on which Envoy received the request. `None`: it has no IP address, such as a client on
    /// a Unix socket.
    fn source(&self) -> Option<IpAddr> {
        match self.attributes.source.as_ref()?.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => Some(socket.address.parse::<IpAddr>().ok()?.to_canonical()),
            _ => None,
        }
    }

    /// The names of the client's headers that a service could take for identity headers. Some servers do not distinguish
    /// an underscore from a hyphen.
    fn forged_identity_headers(&self) -> impl Iterator<Item = &'a str> {
        let folded = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        let names = self.all_headers().map(|(name, _)| name);
        names.filter(move |name| {
            name.bytes().map(folded).take(IDENTITY_PREFIX.len()).eq(IDENTITY_PREFIX.bytes())
        })
    }

    /// All headers, in both forms that Envoy has: values of one name joined by commas, or, with `encode_raw_headers`,
    /// each by itself.
    fn all_headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let joined = self.http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let raw = self.http.header_map.iter().flat_map(|map| &map.headers).map(|header| {
            let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
            (header.key.as_str(), value)
        });
        joined.chain(raw)
    }
}

impl GatewayRequest for ExtAuthzRequest<'_> {
    type Response = CheckResponse;

    fn requirements(&self) -> Result<Requirements<'_>, GatewayError> {
        let extensions = self.attributes.context_extensions.iter();
        let parameters = extensions.map(|(name, value)| (Cow::from(name), Cow::from(value)));
        Requirements::from_parameters(parameters)
    }

    fn headers(&self) -> Result<Cow<'_, HeaderMap>, GatewayError> {
        let mut headers = HeaderMap::with_capacity(RELEVANT_HEADERS.len());
        for (name, value) in self.all_headers() {
            if let Some(name) =
                RELEVANT_HEADERS.iter().find(|relevant| name.eq_ignore_ascii_case(relevant.as_str()))
            {
                let value = HeaderValue::from_bytes(value).map_err(|_| {
                    GatewayError::Malformed(format!("the value of {name} is not valid in a header").into())
                })?;
                headers.append(name, value);
            }
        }
        Ok(Cow::Owned(headers))
    }

    /// The gateway's own address, unless it is a trusted proxy. Then the address that it reports as `source`, and if that
    /// is a trusted proxy too, the one that `X-Forwarded-For` reports.
    ///
    /// No client can forge `source`, but whoever reaches this port can. So a gateway is trusted by its address, as over
    /// HTTP.
    fn client(&self, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
        if trusted.trusts(self.gateway) {
            trusted.client_behind(headers, self.source()?)
        } else {
            Some(self.gateway)
        }
    }

    fn allowed(&self, identity: Identity<'_>) -> CheckResponse {
        response::allowed(identity, self.forged_identity_headers())
    }

    fn denied(response: HttpResponse) -> CheckResponse {
        response::denied(response)
    }
}
