//! tokenward on a real API server: the list of tests. A function that is missing here is dead code, which the
//! compiler reports.
//!
//! One control plane, one controller and one verifier serve all tests that do not break them, each in a namespace
//! of its own. Tests that break processes share a second control plane and start their own; the one that breaks the
//! API server has a third, in a fourth the API server sends TokenReviews to a verifier, a fifth has a CRD that lets anything
//! through, and a sixth is of the oldest Kubernetes. A name filters, as with any test: `cargo test --test cluster -- rotation`.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by a panic"
)]

mod admission;
mod at_least;
mod checkpoint;
mod crash;
mod endpoints;
mod ext_authz;
mod faults;
mod install;
mod kubernetes;
mod lock;
mod oldest;
mod proof;
mod restore;
mod revocation;
mod rotation;
mod secret;
mod sockets;
mod spec;
mod webhook;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use devcluster::{Options, Version};
use kubernetes::TokenReviewCluster;
use libtest_mimic::Arguments;
use testkit::tests;
use testkit::{Process, Site};
use tokenward_core::token::Token;
use tokio::runtime::Runtime;

/// A cluster with a controller and a verifier for all namespaces.
struct Shared {
    site: Site,
    verifier: Process,
    controller: Process,
}

impl Shared {
    async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    async fn start_with(options: Options) -> Self {
        let site = Site::start_with(options).await;
        let port = testkit::free_port();
        let listen = port.to_string();
        let admission = ["--admission-listen", &listen, "--enforce-scope-grants"];
        let flags = [&["--log", "info,tokenward=debug"][..], &admission].concat();
        let controller = site.controller(&flags).ready().await;
        admission::configure_shared_webhooks(&site, port).await;
        let verifier = site.verifier(&[]).ready().await;
        Self { site, verifier, controller }
    }
}

impl Shared {
    /// Whether a token is in a place other than a Secret: in a log, a status, an Event.
    fn leaks_a_token(&self) -> bool {
        let api = self.site.kubectl(&["get", "apitokens,events", "-A", "-o", "yaml"]);
        let places = [
            ("the controller's log", self.controller.log()),
            ("the verifier's log", self.verifier.log()),
            ("the API", api),
        ];
        places.iter().any(|(place, text)| {
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let leaked = words.find_map(Token::parse);
            leaked.inspect(|token| eprintln!("FAILED: {place} contains a token: {token:?}")).is_some()
        })
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests mostly wait, so more of them than there are cores are faster, and find more races.
    arguments.test_threads.get_or_insert(12);
    // Not beside the tests, which would have neither core for a minute. Whoever lacks Go is told so by the test that needs it.
    let _ = devcluster::build_etcd_tools();
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let shared = Arc::<OnceLock<Shared>>::default();
    let breakable = Arc::<OnceLock<Site>>::default();
    let alone = Arc::<OnceLock<Site>>::default();
    let away = Arc::<OnceLock<Site>>::default();
    let restarting = Arc::<OnceLock<Site>>::default();
    let set_back = Arc::<OnceLock<Site>>::default();
    let lost = Arc::<OnceLock<Site>>::default();
    let hasty = Arc::<OnceLock<Site>>::default();
    let loosened = Arc::<OnceLock<Site>>::default();
    let flooded = Arc::<OnceLock<Site>>::default();
    let trusting = Arc::<OnceLock<TokenReviewCluster>>::default();
    let oldest = Arc::<OnceLock<Shared>>::default();
    let mut suite = Vec::new();
    // The longest first. Failpoints are in debug builds only.
    let mut crashes = Vec::new();
    tests!(crashes, runtime, breakable, Site::start(), crash::no_crash_loses_or_revives_a_token);
    tests!(crashes, runtime, breakable, Site::start(), webhook::faults::no_crash_loses_an_event);
    suite.extend(crashes.into_iter().map(|trial| trial.with_ignored_flag(!cfg!(debug_assertions))));
    tests!(suite, runtime, alone, Site::start(), faults::a_failing_api_server_is_tolerated);
    tests!(
        suite,
        runtime,
        restarting,
        Site::start(),
        proof::an_api_server_that_restarts_holds_up_a_proof_and_no_more
    );
    tests!(suite, runtime, set_back, Site::start(), restore::an_older_etcd_revives_nothing);
    tests!(
        suite,
        runtime,
        lost,
        Site::start(),
        restore::what_is_restored_by_the_api_works_unless_it_was_revoked,
    );
    tests!(
        suite,
        runtime,
        hasty,
        Site::start(),
        restore::what_is_revoked_and_deleted_at_once_is_in_the_ledger,
    );
    tests!(
        suite,
        runtime,
        loosened,
        Site::start(),
        faults::an_unreadable_token_is_reported,
        webhook::faults::a_crd_that_lacks_the_outbox_loses_no_event,
    );
    tests!(
        suite,
        runtime,
        trusting,
        TokenReviewCluster::start(),
        kubernetes::a_service_account_may_call_once_it_is_bound,
        kubernetes::admission_answers_the_api_server_alone,
        kubernetes::kube_apiserver_accepts_a_token_until_it_is_revoked,
    );
    tests!(
        suite,
        runtime,
        shared,
        Shared::start(),
        revocation::a_deletion_revokes_and_a_new_object_is_a_new_token,
        secret::a_foreign_secret_is_not_touched,
        secret::a_secret_that_keeps_breaking_stalls,
        sockets::good_checks_succeed_under_hostile_load,
        sockets::checks_are_served_over_tls_and_certificates_are_reloaded,
        endpoints::hostile_requests_are_rejected,
        endpoints::hostile_tokens_are_rejected,
        rotation::a_schedule_rotates,
        rotation::rotations_wait_for_no_overlap,
    );
    tests!(
        suite,
        runtime,
        breakable,
        Site::start(),
        admission::certificates_are_replaced_under_load,
        admission::a_provided_certificate_is_served,
        admission::grants_that_an_outage_would_end_are_an_error,
        faults::a_forbidden_secret_is_reported,
        faults::what_a_policy_changes_back_is_not_fought_over,
        faults::a_finalizer_that_a_policy_takes_off_holds_up_nothing,
        faults::two_controllers_take_turns,
        faults::wrong_clocks_do_no_harm,
        faults::a_namespace_is_deleted_with_its_tokens,
        faults::nothing_is_minted_for_secrets_that_go_with_their_namespace,
        faults::a_missing_pepper_stops_the_controller,
        faults::a_pepper_that_is_gone_for_a_while_ends_no_token,
        lock::a_verifier_that_starts_knows_the_locks_first,
        checkpoint::a_verifier_that_is_killed_goes_on_from_its_checkpoint,
        checkpoint::a_checkpoint_that_can_not_be_written_stops_nothing,
        proof::a_revocation_is_enforced_once_every_verifier_has_confirmed_it,
        proof::a_verifier_that_starts_late_counts_once_it_knows_all,
        proof::a_verifier_whose_watch_is_held_up_confirms_nothing,
        proof::clocks_that_differ_by_a_minute_prove_the_same,
        sockets::a_verifier_reports_what_its_tls_flags_lack,
        webhook::events_arrive_signed_and_in_order,
        webhook::filters_choose_tokens_and_events,
        webhook::an_endpoint_s_status_code_decides,
        webhook::a_requested_ping_waits_for_no_earlier_one,
        webhook::the_signing_key_is_replaced_without_a_gap,
        webhook::faults::a_new_leader_continues_deliveries,
        webhook::faults::an_endpoint_away_for_an_hour_misses_nothing,
        webhook::faults::a_bad_endpoint_delays_no_other,
        webhook::faults::events_outlive_a_deleted_token,
        webhook::faults::a_hanging_endpoint_does_not_block_the_deletion_of_a_namespace,
        webhook::faults::dead_letters_are_counted_and_can_be_replayed,
        webhook::faults::paused_events_are_dead_lettered_at_max_age,
        webhook::faults::a_full_outbox_is_reported,
        webhook::faults::configuration_errors_are_reported_until_they_are_fixed,
        webhook::faults::internal_addresses_get_no_request,
        webhook::faults::a_hundred_webhooks_receive_every_event,
    );
    tests!(
        suite,
        runtime,
        shared,
        Shared::start(),
        admission::a_secret_has_one_token,
        admission::scopes_are_granted_only_with_the_right,
        admission::a_token_from_before_the_webhook_can_be_edited,
        admission::a_webhook_that_points_inside_is_denied,
        install::every_example_becomes_active,
        install::every_example_of_a_lock_stops_what_it_says,
        install::columns_and_explanations_read_well,
        install::the_verifier_can_read_no_token,
        spec::bad_specs_are_rejected_with_a_reason,
        spec::a_plain_token_is_small,
        spec::one_way_fields_go_one_way,
        rotation::an_edit_rotates_with_an_overlap,
        rotation::a_trigger_rotates_once,
        rotation::a_cut_ends_what_came_before,
        rotation::a_cut_that_is_still_to_come_can_be_moved,
        rotation::without_overlap_the_old_secret_stops_at_once,
        rotation::the_previous_secret_stays_under_its_own_key,
        rotation::scopes_never_widen_for_an_issued_secret,
        rotation::changes_under_keep_do_not_rotate,
        revocation::a_revocation_is_immediate_and_permanent,
        revocation::on_revoke_delete_deletes_the_secret,
        revocation::suspension_is_reversible,
        revocation::a_token_expires_on_time,
        revocation::a_token_created_expired_is_not_minted,
        revocation::a_token_created_revoked_is_not_minted,
        lock::a_suspending_lock_stops_what_it_matches_until_it_is_deleted,
        lock::a_revoking_lock_ends_what_is_there_and_nothing_later,
        lock::what_was_rotated_since_is_not_stopped,
        lock::a_cluster_lock_reaches_the_namespaces_that_it_names,
        lock::a_lock_says_before_what_it_will_stop,
        lock::a_lock_that_means_nothing_or_everything_is_refused,
        lock::nothing_that_is_written_to_a_lock_releases_what_it_stops,
        lock::two_hundred_locks_are_as_good_as_one,
        secret::a_conflict_says_whose_the_secret_is,
        secret::a_deleted_secret_is_minted_again,
        secret::a_label_that_names_another_token_hides_nothing,
        secret::an_edited_secret_is_minted_again,
        secret::other_keys_and_labels_are_preserved,
        secret::the_template_is_applied_and_removed,
        secret::constants_stand_beside_the_token,
        secret::a_token_is_merged_into_the_secret_of_somebody_else,
        secret::no_value_of_somebody_else_is_overwritten,
        secret::nothing_is_merged_without_the_owners_consent,
        secret::a_renamed_key_moves_the_token,
        secret::a_secret_that_the_api_server_rejects_is_reported,
        secret::an_immutable_secret_is_made_anew_once_it_is_deleted,
        secret::a_retained_secret_outlives_its_token,
        secret::a_wiped_status_is_rebuilt,
        secret::a_changed_status_revives_no_secret_and_adds_no_scope,
        secret::a_forged_status_grants_nothing,
        at_least::a_caller_reads_its_own_revocation,
        at_least::of_several_namespaces_the_tokens_own_counts,
        endpoints::the_challenge_follows_the_rfc,
        endpoints::public_responses_do_not_distinguish_revoked_from_unknown,
        ext_authz::a_grpc_client_gets_the_decisions_of_auth,
        ext_authz::a_verifier_without_a_pepper_denies_and_is_not_healthy,
    );
    // Only with `--ignored`, as `.ci/full` does: minutes of waiting, and a Kubernetes that takes minutes to build.
    let mut slow = Vec::new();
    let version = Options { version: Some(Version::V1_33), ..Options::default() };
    tests!(slow, runtime, oldest, Shared::start_with(version), oldest::the_oldest_kubernetes_is_supported);
    tests!(
        slow,
        runtime,
        breakable,
        Site::start(),
        faults::bookmarks_keep_a_quiet_watch_fresh,
        faults::the_largest_tokens_fit_into_the_charts_memory,
    );
    tests!(
        slow,
        runtime,
        away,
        Site::start(),
        webhook::faults::an_api_server_outage_of_a_minute_loses_nothing,
    );
    tests!(slow, runtime, flooded, Site::start(), kubernetes::a_flood_of_forged_callers_holds_up_no_other);
    let slow = slow.into_iter().map(|trial| trial.with_ignored_flag(true));
    let suite = suite.into_iter().chain(slow).collect();
    let conclusion = libtest_mimic::run(&arguments, suite);
    let leaked = [&shared, &oldest].iter().any(|shared| shared.get().is_some_and(Shared::leaks_a_token));
    // Ends the processes, then their clusters. Unless a test still runs, these are the last references.
    drop((
        Arc::into_inner(shared),
        Arc::into_inner(breakable),
        Arc::into_inner(alone),
        Arc::into_inner(away),
        Arc::into_inner(loosened),
        Arc::into_inner(flooded),
        Arc::into_inner(trusting),
        Arc::into_inner(oldest),
    ));
    if leaked { ExitCode::FAILURE } else { conclusion.exit_code() }
}
