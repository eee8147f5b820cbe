//! The parts of a JSON Web Token, none of which is verified here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A JWT in the compact serialization of a signature, RFC 7515 section 7.1.
pub(crate) struct Jwt<'a> {
    /// The header and the claims, as they are signed.
    pub(crate) signed: &'a str,
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
}

impl<'a> Jwt<'a> {
    /// Cuts a text into the parts. `None`: it has not three of them.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        (!claims.contains('.')).then_some(Self { signed, header, claims, signature })
    }

    /// The header. `None`: it is no JSON of this form.
    pub(crate) fn header<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&decode(self.header)?).ok()
    }

    /// The signature's bytes.
    pub(crate) fn signature(&self) -> Option<Vec<u8>> {
        decode(self.signature)
    }

    /// The audiences that it claims, RFC 7519 section 4.1.3. `None`: the claims are no JSON object.
    pub(crate) fn audiences(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Claims {
            aud: Option<Audiences>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Audiences {
            One(String),
            Many(Vec<String>),
        }
        let claims: Claims = serde_json::from_slice(&decode(self.claims)?).ok()?;
        Some(match claims.aud {
            None => Vec::new(),
            Some(Audiences::One(audience)) => vec![audience],
            Some(Audiences::Many(audiences)) => audiences,
        })
    }
}

/// Decodes base64url without padding, RFC 7515 section 2.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
