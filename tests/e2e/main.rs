//! tokenward on a real node, as users run it: the list of tests.
//!
//! One cluster with a node, the image, and the chart, installed by the commands of docs/install.md. Pods mount tokens
//! and send checks to the verifier through its Service. The tests share the installation and run one after the other,
//! as listed: the later ones break it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by a panic, and what it measures is printed"
)]

mod admission;
mod client;
mod delivery;
mod forms;
mod release;
mod scale;
mod stage;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Arguments;
use stage::Stage;
use testkit::tests;
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let stage = Arc::<OnceLock<Stage>>::default();
    let mut suite = Vec::new();
    tests!(
        suite,
        runtime,
        stage,
        Stage::start(),
        release::the_chart_s_own_test_passes,
        admission::the_api_server_calls_the_webhook_through_the_service,
        delivery::the_example_pod_reads_its_token,
        delivery::a_rotation_reaches_pods_and_no_check_fails,
        delivery::a_revocation_is_seen_by_a_running_pod,
        scale::a_namespace_of_a_thousand_tokens_is_deleted,
        release::a_container_that_was_killed_goes_on_from_its_checkpoint,
        release::an_upgrade_mints_nothing_and_no_check_fails,
        release::an_image_that_can_t_be_pulled_stops_nothing,
        release::a_reinstall_picks_up_the_tokens,
        forms::the_controller_serves_from_the_network_of_its_node,
        forms::only_the_watched_namespace_is_reconciled,
    );
    let conclusion = libtest_mimic::run(&arguments, suite);
    // Ends the cluster. Unless a test still runs, this is the last reference.
    drop(Arc::into_inner(stage));
    conclusion.exit_code()
}
