//! A statement of a process that has the pepper: what it says is its own, and answers the question that was asked.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Peppers;

const DOMAIN: &[u8] = b"tokenward/statement/v1";

/// The MAC of a statement, in base64url: under the current pepper, over the nonce of whoever asked and the statement.
pub fn sign(peppers: &Peppers, nonce: &str, statement: &[u8]) -> Option<String> {
    let mac = peppers.mac(&peppers.current(), DOMAIN, &[nonce.as_bytes(), statement])?;
    Some(URL_SAFE_NO_PAD.encode(mac))
}

/// Whether a statement is by somebody who has one of the peppers, and answers this nonce.
pub fn verify(peppers: &Peppers, nonce: &str, statement: &[u8], mac: &str) -> bool {
    let mac = URL_SAFE_NO_PAD.decode(mac).ok().and_then(|mac| <[u8; 32]>::try_from(mac).ok());
    mac.is_some_and(|mac| peppers.verify_mac(DOMAIN, &[nonce.as_bytes(), statement], &mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_for_one_question_and_of_one_pepper() {
        let peppers = |byte| Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers");
        let mac = sign(&peppers(1), "nonce", b"statement").expect("a MAC");
        assert!(verify(&peppers(1), "nonce", b"statement", &mac));
        for (by, nonce, statement, mac) in [
            (1, "another", &b"statement"[..], &*mac),
            (1, "nonce", b"another", &mac),
            (2, "nonce", b"statement", &mac),
            (1, "nonce", b"statement", ""),
            (1, "nonce", b"statement", &mac[1..]),
        ] {
            assert!(!verify(&peppers(by), nonce, statement, mac), "{by} {nonce} {mac}");
        }
    }
}
