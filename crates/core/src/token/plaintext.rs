//! The only type that contains a whole token that the controller generated.

use std::fmt;

use zeroize::Zeroizing;

/// A whole token. Wiped when dropped, redacted in Debug, neither cloned nor serialized.
pub struct Plaintext(Zeroizing<String>);

impl Plaintext {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The token itself, for the one place that writes it into the Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let plaintext = Plaintext::new(Zeroizing::new("tw_hunter2".to_owned()));
        assert_eq!(format!("{plaintext:?}"), "Plaintext(redacted)");
    }
}
