//! Real gateways with a real verifier, each with the config file that users copy from `examples/gateways`. For files
//! of control planes, the data plane runs as they configure it.
//!
//! Every check is run with every gateway: `cargo test --test gateways -- nginx` runs those of one. One control plane
//! and one controller serve all; each gateway has a verifier and an upstream of its own, and curl is the client.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod checks;
mod control_plane;
mod curl;
mod gateway;
mod metadata;
mod relay;
mod stage;
mod upstream;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::stage::{Shared, Stage};

/// What is started with the first test that needs it, and ends after the last.
struct Fixtures {
    runtime: Runtime,
    shared: OnceLock<Shared>,
    /// One for each of [`gateway::ALL`], by index.
    stages: Vec<OnceLock<Stage>>,
}

impl Fixtures {
    fn shared(&self) -> &Shared {
        self.shared.get_or_init(|| self.runtime.block_on(Shared::start()))
    }

    fn stage(&self, index: usize) -> &Stage {
        let shared = self.shared();
        self.stages[index].get_or_init(|| self.runtime.block_on(Stage::start(shared, &gateway::ALL[index])))
    }
}

/// Adds a test of each gateway, or of some, for each check.
macro_rules! checks {
    ($suite:expr, $fixtures:expr, $run:ident, $($check:ident),+ $(,)?) => {
        checks!($suite, $fixtures, $run, |_| true, $($check),+)
    };
    ($suite:expr, $fixtures:expr, $run:ident, $which:expr, $($check:ident),+ $(,)?) => {
        $(for (index, gateway) in gateway::ALL.iter().enumerate().filter($which) {
            if gateway.skips.contains(&stringify!($check)) {
                continue;
            }
            let fixtures = $fixtures.clone();
            $suite.push(Trial::test(format!("{}::{}", gateway.name, stringify!($check)), move || {
                $run(&fixtures, index, checks::$check);
                Ok(())
            }));
        })+
    };
}

/// Runs a check with the gateway that other checks use at the same time.
fn with_shared_gateway(fixtures: &Fixtures, index: usize, check: impl AsyncFnOnce(&Shared, &Stage)) {
    let stage = fixtures.stage(index);
    fixtures.runtime.block_on(check(fixtures.shared(), stage));
}

/// Runs a check with a gateway of its own, because it breaks something.
fn with_own_gateway(fixtures: &Fixtures, index: usize, check: impl AsyncFnOnce(&Shared, &mut Stage)) {
    let shared = fixtures.shared();
    fixtures.runtime.block_on(async {
        check(shared, &mut Stage::start(shared, &gateway::ALL[index]).await).await;
    });
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test mostly waits for processes.
    arguments.test_threads.get_or_insert(8);
    let stages = gateway::ALL.iter().map(|_| OnceLock::new()).collect();
    let fixtures =
        Arc::new(Fixtures { runtime: Runtime::new().expect("a runtime"), shared: OnceLock::new(), stages });
    let mut suite = Vec::new();
    checks!(
        suite,
        fixtures,
        with_own_gateway,
        the_gateway_fails_closed_if_the_verifier_hangs,
        the_gateway_fails_closed_without_a_verifier,
        connections_are_reused_and_bodies_are_not_sent
    );
    checks!(
        suite,
        fixtures,
        with_shared_gateway,
        a_good_token_passes_with_its_identity,
        the_token_is_not_passed_on,
        an_identity_that_a_client_sends_is_removed,
        an_identity_is_not_a_hop_by_hop_header,
        denials_reach_the_client,
        every_way_to_present_a_token,
        no_method_goes_unchecked,
        a_preflight_passes_and_nothing_else_does,
        a_path_has_one_meaning,
        an_upgrade_is_checked_and_opens_no_other_route,
        cidrs_apply_to_the_clients_address,
        a_route_without_a_scope_is_closed,
        a_revocation_applies_from_the_next_request,
    );
    checks!(
        suite,
        fixtures,
        with_shared_gateway,
        |(_, gateway)| gateway.speaks_http2,
        a_preflight_over_http2_passes_and_nothing_else_does
    );
    checks!(
        suite,
        fixtures,
        with_own_gateway,
        |(_, gateway)| gateway.name == "haproxy",
        the_gateway_fails_closed_if_its_script_fails
    );
    checks!(
        suite,
        fixtures,
        with_own_gateway,
        |(_, gateway)| gateway.name == "nginx",
        git_presents_a_token,
        a_registry_client_presents_a_token
    );
    let shared_fixtures = fixtures.clone();
    suite.push(Trial::test("envoy-grpc::the_filter_and_the_log_get_the_identity", move || {
        shared_fixtures
            .runtime
            .block_on(metadata::the_filter_and_the_log_get_the_identity(shared_fixtures.shared()));
        Ok(())
    }));
    let conclusion = libtest_mimic::run(&arguments, suite);
    // Ends what was started: the gateways and verifiers first, then their cluster.
    if let Some(mut fixtures) = Arc::into_inner(fixtures) {
        fixtures.stages.clear();
    }
    conclusion.exit_code()
}
