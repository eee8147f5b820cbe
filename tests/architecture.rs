//! The pure modules stay pure: no client, no runtime, no clock, no randomness.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("a source folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| sources(&path)).collect()
}

const PURE: [&str; 15] = [
    "token",
    "lifecycle",
    "check",
    "admission/judge.rs",
    "admission/grants.rs",
    "admission/certificate.rs",
    "webhook/address.rs",
    "webhook/event.rs",
    "webhook/lanes.rs",
    "webhook/ledger.rs",
    "webhook/outbox.rs",
    "webhook/payload.rs",
    "webhook/schedule.rs",
    "webhook/sign.rs",
    "webhook/subscription.rs",
];

#[test]
fn pure_modules_touch_nothing_outside() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in PURE {
        for path in sources(&src.join(module)) {
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
