//! Random bytes for secrets, from the operating system.

use rand::TryRng;
use rand::rngs::SysRng;
use thiserror::Error;
use zeroize::Zeroizing;

/// The operating system has no random bytes. Nothing that must be secret can be made then.
#[derive(Debug, Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct NoEntropy(String);

/// Random bytes that are wiped when they are dropped.
pub fn random_bytes<const N: usize>() -> Result<Zeroizing<[u8; N]>, NoEntropy> {
    let mut bytes = Zeroizing::new([0; N]);
    SysRng.try_fill_bytes(&mut *bytes).map_err(|error| NoEntropy(error.to_string()))?;
    Ok(bytes)
}
