//! The public keys of the cluster's ServiceAccount tokens.
//!
//! Anybody can write a JWT with the right audience. Its signature is verified here before the API server is asked, so that
//! forged ones keep no caller waiting and cost the API server nothing. This allows nothing by itself: what is signed is
//! reviewed all the same, since a ServiceAccount may be gone or have no rights. The keys are those that the API server
//! publishes for everybody who verifies its tokens
//! (<https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery>).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::Request;
use kube::Client;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::warn;

use crate::jwt::{Jwt, decode};
use tokenward_runtime::cluster::error;

/// Where the API server publishes them, as a JSON Web Key Set (RFC 7517).
const URL: &str = "/openid/v1/jwks";
/// The shortest time between two reads of the keys. A token whose key is not among them has them read again, since the API
/// server may have a new one, and anybody can name a key.
const MIN_READ_INTERVAL: Duration = Duration::from_secs(10);

/// What a signature says about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    /// The API server has signed it, at some time.
    Valid,
    /// It has not.
    Invalid,
    /// It can't be verified here: the keys can't be read, or are of an algorithm that is not known here.
    Unverifiable,
}

/// The keys, read when they are needed.
pub(crate) struct IssuerKeys {
    client: Client,
    keys: ArcSwapOption<Keys>,
    last_read: Mutex<Option<Instant>>,
}

impl IssuerKeys {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, keys: ArcSwapOption::empty(), last_read: Mutex::default() }
    }

    /// Verifies the signature of a JWT.
    pub(crate) async fn verify(&self, jwt: &str) -> Signature {
        let verify = || self.keys.load().as_ref().and_then(|keys| keys.verify(jwt));
        if let Some(signature) = verify() {
            return signature;
        }
        self.read().await;
        let unknown_key =
            if self.keys.load().is_some() { Signature::Invalid } else { Signature::Unverifiable };
        verify().unwrap_or(unknown_key)
    }

    /// Reads the keys, unless that was done a moment ago.
    async fn read(&self) {
        // Whoever comes meanwhile waits for the result.
        let mut last_read = self.last_read.lock().await;
        if last_read.is_some_and(|last| last.elapsed() < MIN_READ_INTERVAL) {
            return;
        }
        let request = Request::get(URL).body(Vec::new());
        let text = match request {
            Ok(request) => self.client.request_text(request).await,
            Err(error) => Err(kube::Error::HttpError(error)),
        };
        *last_read = Some(Instant::now());
        let keys = text.map_err(|error| error::message(&error)).and_then(|text| Keys::parse(&text));
        match keys {
            Ok(keys) => self.keys.store(Some(keys.into())),
            Err(error) => warn!(
                error,
                "the keys of ServiceAccount tokens can't be read, so forged ones are only found by TokenReviews; is this \
                 verifier bound to the ClusterRole system:service-account-issuer-discovery?"
            ),
        }
    }
}

/// The keys by their ids. `None`: of an algorithm that is not known here.
#[derive(Debug)]
struct Keys(HashMap<String, Option<Key>>);

#[derive(Debug)]
enum Key {
    /// RS256.
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    /// ES256; the uncompressed point.
    P256(Vec<u8>),
    /// ES384; the uncompressed point.
    P384(Vec<u8>),
}

/// A JSON Web Key Set, RFC 7517 section 5.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<JsonWebKey>,
}

/// A JSON Web Key with what RFC 7518 section 6 defines for RSA and elliptic curves.
#[derive(Deserialize)]
struct JsonWebKey {
    kid: String,
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// The header of a JWT, RFC 7515 section 4.1.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

impl Keys {
    fn parse(text: &str) -> Result<Self, String> {
        let set: KeySet =
            serde_json::from_str(text).map_err(|error| format!("not a JSON Web Key Set: {error}"))?;
        Ok(Self(set.keys.into_iter().map(|key| (key.kid.clone(), Key::of(&key))).collect()))
    }

    /// What these keys say about a JWT. `None`: its key is not among them.
    fn verify(&self, jwt: &str) -> Option<Signature> {
        let Some((jwt, header, signature)) = parts(jwt) else { return Some(Signature::Invalid) };
        let Some(key) = self.0.get(&header.kid)? else { return Some(Signature::Unverifiable) };
        let is_valid = key.algorithm() == header.alg && key.verifies(jwt.signed.as_bytes(), &signature);
        Some(if is_valid { Signature::Valid } else { Signature::Invalid })
    }
}

impl Key {
    fn of(key: &JsonWebKey) -> Option<Self> {
        let point = || Some([vec![4], decode(&key.x)?, decode(&key.y)?].concat());
        match (key.kty.as_str(), key.crv.as_str()) {
            ("RSA", _) => Some(Self::Rsa { modulus: decode(&key.n)?, exponent: decode(&key.e)? }),
            ("EC", "P-256") => Some(Self::P256(point()?)),
            ("EC", "P-384") => Some(Self::P384(point()?)),
            _ => None,
        }
    }

    /// The `alg` of this key's signatures. A key is never used for another one (RFC 8725 section 3.1).
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RS256",
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
        }
    }

    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Rsa { modulus, exponent } => RsaPublicKeyComponents { n: modulus, e: exponent }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                signed,
                signature,
            ),
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
            }
            Self::P384(point) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(signed, signature)
            }
        };
        verified.is_ok()
    }
}

/// A JWT with its header and its signature. `None`: Kubernetes has not signed it, since it always names its key.
fn parts(text: &str) -> Option<(Jwt<'_>, Header, Vec<u8>)> {
    let jwt = Jwt::parse(text)?;
    let (header, signature) = (jwt.header()?, jwt.signature()?);
    Some((jwt, header, signature))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::{Value, json};

    use super::*;

    fn pair() -> EcdsaKeyPair {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("a key")
    }

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn jwk(kid: &str, pair: &EcdsaKeyPair) -> Value {
        let point = pair.public_key().as_ref();
        json!({"kid": kid, "kty": "EC", "alg": "ES256", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])})
    }

    fn jwt(header: &Value, pair: &EcdsaKeyPair) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(r#"{"aud":["tokenward"]}"#));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", encode(signature))
    }

    #[test]
    fn only_what_the_named_key_has_signed_is_valid() {
        let (ours, other) = (pair(), pair());
        let set = json!({"keys": [
            jwk("ours", &ours), jwk("other", &other), {"kid": "new", "kty": "OKP", "crv": "Ed25519", "x": "AA"},
            {"kid": "rsa", "kty": "RSA", "n": "AQAB", "e": "AQAB"},
        ]});
        let keys = Keys::parse(&set.to_string()).expect("keys");
        let header = |kid: &str| json!({"alg": "ES256", "kid": kid});
        let good = jwt(&header("ours"), &ours);
        let (signed, signature) = good.rsplit_once('.').expect("a JWT");
        let (head, _) = signed.split_once('.').expect("a JWT");
        for (what, jwt, expected) in [
            ("signed", good.clone(), Some(Signature::Valid)),
            ("by another key", jwt(&header("ours"), &other), Some(Signature::Invalid)),
            ("other claims", format!("{head}.{}.{signature}", encode("{}")), Some(Signature::Invalid)),
            ("no signature", format!("{signed}."), Some(Signature::Invalid)),
            ("alg none", jwt(&json!({"alg": "none", "kid": "ours"}), &ours), Some(Signature::Invalid)),
            (
                "another algorithm",
                jwt(&json!({"alg": "HS256", "kid": "ours"}), &ours),
                Some(Signature::Invalid),
            ),
            ("no kid", jwt(&json!({"alg": "ES256"}), &ours), Some(Signature::Invalid)),
            ("a key of another kind", jwt(&header("rsa"), &ours), Some(Signature::Invalid)),
            ("an unknown kind of key", jwt(&header("new"), &ours), Some(Signature::Unverifiable)),
            ("an unknown key", jwt(&header("unknown"), &ours), None),
            ("no JWT", "junk".to_owned(), Some(Signature::Invalid)),
            ("nothing", String::new(), Some(Signature::Invalid)),
        ] {
            assert_eq!(keys.verify(&jwt), expected, "{what}");
        }
        assert!(Keys::parse("{}").is_err() && Keys::parse("<html>").is_err());
    }
}
