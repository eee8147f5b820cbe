//! Tokens from Git: applied, waited for and pruned by Flux's engine, assessed by Argo CD's, on a real API server with
//! our controller. Git is served on loopback, and each change is a commit.
//!
//! Only the libraries of Flux and Argo CD are used, by the two small Go programs beside this file; their controllers
//! don't run.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod argocd;
mod flux;
mod repository;
mod tool;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Arguments;
use testkit::tests;
use testkit::{Process, Site};
use tokio::runtime::Runtime;

/// A cluster with a controller.
pub struct Stage {
    site: Site,
    _controller: Process,
}

impl Stage {
    async fn start() -> Self {
        let site = Site::start().await;
        let controller = site.controller(&[]).ready().await;
        Self { site, _controller: controller }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let stage = Arc::<OnceLock<Stage>>::default();
    let mut suite = Vec::new();
    tests!(
        suite,
        runtime,
        stage,
        Stage::start(),
        flux::waiting_ends_in_every_state,
        flux::what_leaves_git_is_pruned,
        flux::a_new_trigger_rotates_once_and_only_once,
        flux::a_rotation_in_an_open_overlap_delays_nobody,
        flux::a_revocation_by_commit_ends_ready,
        flux::a_bad_commit_shows_the_api_server_s_message,
        flux::the_controller_causes_no_drift,
        argocd::health_is_reported_in_every_state,
        argocd::a_webhook_s_health_is_reported,
        argocd::no_example_differs_from_git,
    );
    let conclusion = libtest_mimic::run(&arguments, suite);
    // Ends the processes and their cluster.
    drop(Arc::into_inner(stage));
    conclusion.exit_code()
}
