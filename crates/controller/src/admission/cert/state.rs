//! The serving certificates as they are stored, and when they are replaced. Pure: keys are generated in
//! [`super::generate`].
//!
//! Each certificate is its own authority. The API server trusts exactly the ones that replicas may present (`caBundle`), so
//! there is no authority's key that could be stolen to issue others.
//!
//! A replacement takes two steps. The next certificate is announced in the bundle first, and presented when API servers
//! have had time to read it. The one before stays in the bundle, since replicas do not all change at the same moment. A
//! process may end between the steps, and during either.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;
use zeroize::{Zeroize, Zeroizing};

/// The Secret that contains them, in the operator's namespace.
pub const SECRET: &str = "tokenward-admission";

// `tls.crt` and `tls.key` are the names of the type kubernetes.io/tls, which other tools know.
const CURRENT: (&str, &str) = ("tls.crt", "tls.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const PREVIOUS: &str = "previous.crt";

/// The DNS names of the admission webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub(super) Vec<String>);

impl Names {
    /// Those of a Service. The API server uses the first; the second is for people with curl.
    pub fn of_service(namespace: &str, service: &str) -> Self {
        let name = format!("{service}.{namespace}.svc");
        Self(vec![name.clone(), format!("{name}.cluster.local")])
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(redacted)")
    }
}

impl Pair {
    /// When it expires. `None`: it can't be used for these names.
    fn ends_at(&self, names: &Names) -> Option<Timestamp> {
        let der = CertificateDer::from_pem_slice(&self.certificate).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let key = KeyPair::from_pem(std::str::from_utf8(&self.key).ok()?).ok()?;
        let key_matches = certificate.public_key().raw == key.subject_public_key_info();
        let is_valid_for = |name: &String| dns_names(&certificate).any(|valid| valid == name);
        (key_matches && names.0.iter().all(is_valid_for))
            .then(|| Timestamp::from_second(certificate.validity().not_after.timestamp()).ok())?
    }
}

fn dns_names<'c>(certificate: &'c X509Certificate<'_>) -> impl Iterator<Item = &'c str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    })
}

/// The certificates as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateState {
    /// The one that replicas present.
    pub current: Option<Pair>,
    /// The one that they will present next.
    pub next: Option<Pair>,
    /// The one that a replica may still present, without its key.
    pub previous: Option<Vec<u8>>,
}

/// A write to the Secret, or waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no usable certificate: generate one and present it at once.
    Generate,
    /// Generate the next one, and add it to the bundle.
    Announce,
    /// Present the next one.
    Promote,
    /// Nothing to do until this instant.
    Wait(Timestamp),
}

impl CertificateState {
    /// Reads the Secret's data, and wipes it.
    pub fn read(mut data: BTreeMap<String, ByteString>) -> Self {
        let mut take = |key: &str| data.remove(key).map(|value| value.0);
        let mut pair =
            |(certificate, key)| Some(Pair { certificate: take(certificate)?, key: take(key)?.into() });
        let (current, next) = (pair(CURRENT), pair(NEXT));
        let previous = take(PREVIOUS);
        data.values_mut().for_each(|value| value.0.zeroize());
        Self { current, next, previous }
    }

    /// The data of the Secret, as [`Self::read`] reads it.
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let pair = |pair: &Option<Pair>, (certificate, key): (&str, &str)| {
            pair.iter()
                .flat_map(|pair| [(certificate, pair.certificate.clone()), (key, pair.key.to_vec())])
                .map(|(name, value)| (name.to_owned(), ByteString(value)))
                .collect::<Vec<_>>()
        };
        let previous =
            self.previous.iter().map(|previous| (PREVIOUS.to_owned(), ByteString(previous.clone())));
        pair(&self.current, CURRENT).into_iter().chain(pair(&self.next, NEXT)).chain(previous).collect()
    }

    /// The `caBundle`: every certificate that a replica may present.
    pub fn bundle(&self) -> Vec<u8> {
        let pairs = [&self.current, &self.next].into_iter().flatten().map(|pair| &pair.certificate);
        pairs.chain(&self.previous).flatten().copied().collect()
    }

    /// The next step for certificates with these names and this validity.
    pub fn next_step(&self, names: &Names, lifetime: SignedDuration, now: Timestamp) -> Step {
        let end = |pair: &Option<Pair>| pair.as_ref()?.ends_at(names).filter(|end| *end > now);
        next_step(end(&self.current), end(&self.next), lifetime, now)
    }

    /// The state after a step. `generated` is the pair that [`Step::Generate`] and [`Step::Announce`] need.
    pub fn after(self, step: Step, generated: Option<Pair>) -> Self {
        match step {
            Step::Generate => Self { current: generated, next: None, previous: None },
            Step::Announce => Self { next: generated, ..self },
            Step::Promote => {
                Self { previous: self.current.map(|pair| pair.certificate), current: self.next, next: None }
            }
            Step::Wait(_) => self,
        }
    }
}

/// Decides by the ends of validity alone. `None`: there is no such certificate, or it can't be used.
fn next_step(
    current: Option<Timestamp>,
    next: Option<Timestamp>,
    lifetime: SignedDuration,
    now: Timestamp,
) -> Step {
    match (current, next) {
        (None, None) => Step::Generate,
        (None, Some(_)) => Step::Promote,
        // With a third of its life left there is time to find out why it is not replaced.
        (Some(end), None) => due(before(end, lifetime / 3), now, Step::Announce),
        (Some(end), Some(next)) => {
            // A twelfth of a life is time for every API server to have read the bundle.
            let announced = before(next, lifetime - lifetime / 12);
            due(announced.min(before(end, lifetime / 12)), now, Step::Promote)
        }
    }
}

fn before(end: Timestamp, duration: SignedDuration) -> Timestamp {
    end.saturating_sub(duration).unwrap_or(end)
}

fn due(at: Timestamp, now: Timestamp, step: Step) -> Step {
    if at <= now { step } else { Step::Wait(at) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admission::cert::generate::generate;

    const LIFETIME: SignedDuration = SignedDuration::from_hours(2160);

    fn names() -> Names {
        Names::of_service("tokenward", "tokenward-admission")
    }

    fn start() -> Timestamp {
        "2026-11-21T00:00:00Z".parse().expect("an instant")
    }

    fn make(now: Timestamp) -> Option<Pair> {
        Some(generate(&names(), now, LIFETIME).expect("a pair"))
    }

    fn take(state: CertificateState, now: Timestamp) -> (CertificateState, Step) {
        let step = state.next_step(&names(), LIFETIME, now);
        let made = matches!(step, Step::Generate | Step::Announce).then(|| make(now)).flatten();
        (state.after(step, made), step)
    }

    fn days(days: i64) -> Timestamp {
        start() + SignedDuration::from_hours(24 * days)
    }

    #[test]
    fn ninety_days_of_validity() {
        let (state, step) = take(CertificateState::default(), days(0));
        assert_eq!(step, Step::Generate);
        let (state, step) = take(state, days(0));
        assert_eq!(step, Step::Wait(days(60)));
        let (state, step) = take(state, days(60));
        assert_eq!(step, Step::Announce);
        let (state, step) = take(state, days(61));
        assert_eq!(step, Step::Wait(days(67) + SignedDuration::from_hours(12)));
        let before = state.clone();
        let (state, step) = take(state, days(68));
        assert_eq!(step, Step::Promote);
        assert_eq!((&state.current, &state.next), (&before.next, &None));
        assert_eq!(state.previous, before.current.map(|pair| pair.certificate));
        assert_eq!(take(state, days(68)).1, Step::Wait(days(120)));
    }

    #[test]
    fn an_unusable_certificate_is_replaced() {
        let state = CertificateState { current: make(start()), ..CertificateState::default() };
        let (key, other) = (state.current.clone().expect("a pair").key, make(start()).expect("a pair"));
        let broken = [
            Pair { key, ..other.clone() },
            Pair { certificate: b"nonsense".to_vec(), ..other.clone() },
            Pair { key: Zeroizing::new(Vec::new()), ..other },
        ];
        for pair in broken {
            let state = CertificateState { current: Some(pair), ..CertificateState::default() };
            assert_eq!(state.next_step(&names(), LIFETIME, start()), Step::Generate);
        }
        assert_eq!(state.next_step(&names(), LIFETIME, days(91)), Step::Generate);
        let renamed = Names::of_service("elsewhere", "tokenward-admission");
        assert_eq!(state.next_step(&renamed, LIFETIME, start()), Step::Generate);
    }

    #[test]
    fn an_announced_certificate_is_presented_after_a_long_pause() {
        let state = CertificateState { current: make(days(0)), next: make(days(60)), previous: None };
        assert_eq!(take(state, days(95)).1, Step::Promote);
    }

    #[test]
    fn state_survives_storage_and_debug_shows_no_key() {
        let state =
            CertificateState { current: make(days(0)), next: make(days(60)), previous: Some(b"p".to_vec()) };
        assert_eq!(CertificateState::read(state.to_data()), state);
        assert!(format!("{state:?}").contains("redacted"));
        assert!(!String::from_utf8(state.bundle()).expect("text").contains("KEY"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// At every step: what was presented before is still trusted, and what is presented now was announced by the
        /// step before, unless there was nothing usable then.
        #[test]
        fn every_presented_certificate_is_trusted(waits in proptest::collection::vec(0i64..20, 1..40)) {
            let (mut state, mut now) = (take(CertificateState::default(), start()).0, start());
            for wait in waits {
                now += SignedDuration::from_hours(24 * wait);
                let before = state.clone();
                let step;
                (state, step) = take(state, now);
                let trusts = |state: &CertificateState, pair: &Option<Pair>| {
                    let bundle = String::from_utf8(state.bundle()).expect("text");
                    pair.iter().all(|pair| bundle.contains(std::str::from_utf8(&pair.certificate).expect("text")))
                };
                if step != Step::Generate {
                    prop_assert!(trusts(&state, &before.current));
                    prop_assert!(trusts(&before, &state.current));
                }
                let serving = state.current.as_ref().and_then(|pair| pair.ends_at(&names()));
                prop_assert!(serving.is_some_and(|end| end > now) || step == Step::Promote);
            }
        }
    }
}
