//! Generates certificates. The keys are random, so this is apart from the decisions.

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use super::state::{Names, Pair};

/// How long before its creation a certificate is valid, for API servers whose clock is behind.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// A self-signed certificate for these names, with a new key.
pub fn generate(names: &Names, now: Timestamp, lifetime: SignedDuration) -> Result<Pair, rcgen::Error> {
    let mut params = CertificateParams::new(names.0.clone())?;
    params.distinguished_name.push(DnType::CommonName, "tokenward admission");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date(now.saturating_sub(SKEW).unwrap_or(now));
    params.not_after = date(now.saturating_add(lifetime).unwrap_or(Timestamp::MAX));
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem().into_bytes();
    Ok(Pair { certificate, key: key.serialize_pem().into_bytes().into() })
}

fn date(instant: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(instant.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
