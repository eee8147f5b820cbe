//! The pure modules stay pure: no client, no runtime, no clock, no randomness.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a source folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn pure_modules_touch_nothing_outside() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let pure =
        ["address", "event", "lanes", "ledger", "outbox", "payload", "schedule", "sign", "subscription"];
    let pure = pure.map(|file| src.join("webhook").join(file).with_extension("rs"));
    for module in ["token", "lifecycle", "check"]
        .map(|module| sources(&src.join(module)))
        .into_iter()
        .chain([pure.into()])
    {
        for path in module {
            let text = fs::read_to_string(&path).expect("a source file");
            for impure in [
                "tokio",
                "kube::Client",
                "kube::Api",
                "Timestamp::now",
                "SystemTime",
                "Instant::now",
                "rand::",
                "std::env",
                "std::fs",
            ] {
                assert!(!text.contains(impure), "{} uses {impure}", path.display());
            }
        }
    }
}
