//! Clients of others at the endpoints that speak JSON and forms, against a verifier on a real API server; and the
//! published libraries of Standard Webhooks at the other end of the controller's events.
//!
//! schemathesis tests the verifier against the document that it serves; Authlib and curl ask as users' services would, by
//! the files of `examples/clients` as they stand. Needs Python, Node.js with npm and curl, so it runs by name only:
//! `cargo test --test contract`.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by a panic"
)]

mod bad_input;
mod clients;
mod document;
mod python;
mod stage;
mod webhooks;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};
use stage::Stage;

/// Adds tests that share a stage, which the first of them sets.
macro_rules! tests {
    ($suite:expr, $stage:expr, $($module:ident :: $test:ident),+ $(,)?) => {
        $({
            let stage = $stage.clone();
            $suite.push(Trial::test(concat!(stringify!($module), "::", stringify!($test)), move || {
                $module::$test(stage.get_or_init(Stage::set));
                Ok(())
            }));
        })+
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: the times of bad requests should show the verifier's speed, not that of its other clients.
    arguments.test_threads.get_or_insert(1);
    let stage = Arc::<OnceLock<Stage>>::default();
    let mut suite = Vec::new();
    tests!(
        suite,
        stage,
        bad_input::each_endpoint_rejects_in_its_own_form,
        clients::authlib_introspects_with_a_client_secret,
        clients::curl_introspects_as_a_bearer,
        clients::curl_verifies,
        document::the_verifier_keeps_to_its_document,
        webhooks::go_verifies,
        webhooks::javascript_verifies,
        webhooks::python_verifies,
    );
    let conclusion = libtest_mimic::run(&arguments, suite);
    // What was started ends here.
    drop(Arc::into_inner(stage));
    conclusion.exit_code()
}
