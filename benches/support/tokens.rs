//! Synthetic tokens: the n-th one is the same in every process and every run.
//!
//! Good ones start with `tw_`, bad ones with `no_`, by which the bare server chooses its response. Bad ones are of three
//! kinds: another secret under a known key id, an unknown key id, and a wrong checksum.

use tokenward_core::token::{KeyId, Owner, Peppers, Plaintext, Prefix, Token, VersionFacts, format};

/// Of a load, one request in so many is bad.
pub const BAD_EVERY: u64 = 10;
const NAMESPACES: u64 = 200;
const PEPPER: [u8; 32] = [7; 32];

/// The data of the pepper's Secret.
pub fn pepper() -> std::collections::BTreeMap<String, Vec<u8>> {
    Peppers::new_data(&PEPPER)
}

/// The text of the n-th good token.
pub fn good(n: u64) -> String {
    make("tw", n, 2 * n).expose().to_owned()
}

/// The text of the n-th bad token, for a verifier that has `tokens` good ones.
pub fn bad(n: u64, tokens: u64) -> String {
    match n % 3 {
        0 => make("no", n % tokens, 2 * n + 1).expose().to_owned(),
        1 => make("no", n + tokens, 2 * n + 1).expose().to_owned(),
        _ => {
            let mut text = make("no", n % tokens, 2 * n + 1).expose().to_owned();
            let last = if text.pop() == Some('0') { '1' } else { '0' };
            text.push(last);
            text
        }
    }
}

/// The tokens of a load: each good one once, in an order that defeats caches, with every tenth request a bad one.
pub fn load(tokens: u64) -> impl Iterator<Item = String> {
    (0..tokens).map(move |i| {
        let n = nth_of_load(i, tokens);
        if i % BAD_EVERY == BAD_EVERY - 1 { bad(n, tokens) } else { good(n) }
    })
}

/// The number of the i-th token of a load.
pub fn nth_of_load(i: u64, tokens: u64) -> u64 {
    // A step that is coprime to the number visits each once.
    let step = (tokens / 2 + 1..).find(|step| gcd(*step, tokens) == 1).unwrap_or(1);
    i * step % tokens
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The namespace of the n-th ApiToken.
pub fn namespace(n: u64) -> String {
    format!("team-{:03}", n % NAMESPACES)
}

/// The name of the n-th ApiToken.
pub fn name(n: u64) -> String {
    format!("service-{n:07}")
}

/// The labels of the n-th ApiToken, as the field of its metadata.
pub type Labels = fn(u64) -> String;

/// No labels.
pub fn no_labels(_: u64) -> String {
    String::new()
}

/// Three labels: two that all have, and one that only every second token has so ([`is_live`]).
pub fn three_labels(n: u64) -> String {
    let stage = if is_live(n) { "live" } else { "test" };
    format!(
        r#""labels":{{"app.kubernetes.io/managed-by":"gitops","app.kubernetes.io/part-of":"shop","stage":"{stage}"}},"#
    )
}

/// Whether the n-th ApiToken has the label `stage: live` among its three.
pub fn is_live(n: u64) -> bool {
    n.is_multiple_of(2)
}

/// The n-th ApiToken as an API server sends it: with the managed fields and conditions that a verifier has to skip.
/// Tokens share 20 lists of scopes.
pub fn object(n: u64, labels: Labels, peppers: &Peppers) -> String {
    let text = make("tw", n, 2 * n);
    let (namespace, name) = (namespace(n), name(n));
    let Some(hash) = peppers.hash(&namespace, &name, &text) else { return String::new() };
    let key_id = Token::parse(text.expose()).map(|token| token.key_id().to_string()).unwrap_or_default();
    let uid = format!("{:08x}-0000-4000-8000-{n:012x}", mix(n) >> 32);
    let token_id = format::token_id(&uid);
    let service = n % 20;
    let issued =
        [format!("orders-{service}:read"), format!("orders-{service}:write"), "audit:read".to_owned()];
    let scopes = issued.each_ref().map(|scope| format!(r#""{scope}""#)).join(",");
    let issued_at = "2026-11-01T08:00:01.123Z";
    let facts = VersionFacts {
        owner: Owner { namespace: &namespace, name: &name, uid: &uid, token_id: &token_id },
        version: 1,
        key_id: &key_id,
        hash: &hash,
        state: "Active",
        scopes: &issued,
        issued_at: issued_at.parse().unwrap_or_default(),
        retire_at: None,
    };
    let mac = facts.mac(peppers).unwrap_or_default();
    let condition = |type_: &str, reason: &str| {
        format!(
            r#"{{"lastTransitionTime":"2026-11-01T08:00:02Z","message":"the secret of version 1 is delivered","observedGeneration":1,"reason":"{reason}","status":"True","type":"{type_}"}}"#
        )
    };
    let conditions = [("Ready", "Active"), ("Active", "Active"), ("Delivered", "Delivered")];
    let conditions = conditions.map(|(type_, reason)| condition(type_, reason)).join(",");
    format!(
        r#"{{"apiVersion":"tokenward.dev/v1alpha1","kind":"ApiToken","metadata":{{"annotations":{{"kubectl.kubernetes.io/last-applied-configuration":"{{}}\n"}},"creationTimestamp":"2026-11-01T08:00:00Z","generation":1,{labels}"managedFields":[{{"apiVersion":"tokenward.dev/v1alpha1","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:kubectl.kubernetes.io/last-applied-configuration":{{}}}}}},"f:spec":{{".":{{}},"f:expiresAt":{{}},"f:owner":{{".":{{}},"f:team":{{}}}},"f:scopes":{{".":{{}},"v:\"audit:read\"":{{}}}}}}}},"manager":"kubectl-client-side-apply","operation":"Update","time":"2026-11-01T08:00:00Z"}},{{"apiVersion":"tokenward.dev/v1alpha1","fieldsType":"FieldsV1","fieldsV1":{{"f:status":{{".":{{}},"f:conditions":{{}},"f:phase":{{}},"f:tokenId":{{}},"f:versions":{{}}}}}},"manager":"tokenward","operation":"Update","subresource":"status","time":"2026-11-01T08:00:02Z"}}],"name":"{name}","namespace":"{namespace}","resourceVersion":"{version}","uid":"{uid}"}},"spec":{{"expiresAt":"2099-01-01T00:00:00Z","owner":{{"team":"{namespace}"}},"scopes":[{scopes}]}},"status":{{"conditions":[{conditions}],"observedGeneration":1,"phase":"Active","rotation":{{"specHash":"h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}},"secretRef":{{"name":"{name}","version":1}},"tokenId":"{token_id}","versions":[{{"hash":"{hash}","issuedAt":"{issued_at}","keyId":"{key_id}","mac":"{mac}","reason":"Created","scopes":[{scopes}],"state":"Active","version":1}}]}}}}"#,
        version = n + 1,
        labels = labels(n),
    )
}

fn make(prefix: &str, key: u64, secret: u64) -> Plaintext {
    let prefix = Prefix::new(prefix).unwrap_or_default();
    let mut id = [0; 16];
    fill(&mut id, key);
    let mut bytes = [0; 32];
    fill(&mut bytes, !secret);
    format::make(&prefix, KeyId::from_bytes(id), &bytes)
}

fn fill(bytes: &mut [u8], seed: u64) {
    for (i, part) in bytes.chunks_mut(8).enumerate() {
        part.copy_from_slice(&mix(seed.wrapping_mul(4).wrapping_add(i as u64)).to_be_bytes()[..part.len()]);
    }
}

/// SplitMix64: a well-spread number for each number.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
