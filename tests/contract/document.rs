//! The OpenAPI document: schemathesis reads it from the verifier, and tests the verifier against it.

use std::path::Path;
use std::process::Command;

use crate::stage::{LOOPBACK, Stage};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract/schemathesis.toml");

pub fn the_verifier_conforms_to_its_document(stage: &Stage) {
    let mut schemathesis: Command = stage.python.program("schemathesis");
    schemathesis
        .args(["--config-file", CONFIG, "--no-color", "run"])
        .arg(stage.url("/openapi.json"))
        .env("TOKENWARD_CALLER", &stage.caller)
        .env("TOKENWARD_TOKEN", &stage.token)
        .env("NO_PROXY", LOOPBACK)
        // It writes files into its working directory.
        .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let status = schemathesis.status().expect("schemathesis");
    assert!(status.success(), "the verifier and its document differ: see above; {}", stage.verifier.log());
}
