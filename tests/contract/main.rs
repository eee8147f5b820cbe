//! Third-party clients of the endpoints for JSON and forms, with a verifier on a real API server; and the published
//! libraries of Standard Webhooks as receivers of the controller's events.
//!
//! schemathesis tests the verifier against the document that it serves; Authlib and curl are run by the files in
//! `examples/clients`, unchanged; Apache is a resource server. It needs Python, curl, Go, and Node.js with npm, so it runs by name only:
//! `cargo test --test contract`.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by a panic"
)]

mod apache;
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

/// Adds tests that share a stage, which the first of them to run starts.
macro_rules! tests {
    ($suite:expr, $stage:expr, $($module:ident :: $test:ident),+ $(,)?) => {
        $({
            let stage = $stage.clone();
            $suite.push(Trial::test(concat!(stringify!($module), "::", stringify!($test)), move || {
                $module::$test(stage.get_or_init(Stage::start));
                Ok(())
            }));
        })+
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other, so that load from other tests does not distort the times of bad requests.
    arguments.test_threads.get_or_insert(1);
    let stage = Arc::<OnceLock<Stage>>::default();
    let mut suite = Vec::new();
    tests!(
        suite,
        stage,
        apache::mod_auth_openidc_introspects,
        bad_input::each_endpoint_rejects_in_its_own_form,
        clients::authlib_introspects_with_a_client_secret,
        clients::authlib_introspects_with_a_secret_in_the_form,
        clients::curl_introspects_as_a_bearer,
        clients::curl_verifies,
        document::the_verifier_conforms_to_its_document,
        webhooks::go_verifies,
        webhooks::javascript_verifies,
        webhooks::python_verifies,
    );
    let conclusion = libtest_mimic::run(&arguments, suite);
    // Ends the processes and their cluster.
    drop(Arc::into_inner(stage));
    conclusion.exit_code()
}
