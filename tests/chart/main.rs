//! The Helm chart, by Helm itself, on a real API server: the list of tests.
//!
//! There is no node, so pods are created and don't run. Instead, our processes run with the flags of the Deployments and
//! the rights of their service accounts, so both are those of the chart.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod helm;
mod install;
mod kustomize;
mod manifests;
mod monitoring;
mod rights;
mod stage;
mod tenant;
mod values;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Trial};
use stage::Stage;
use testkit::tests;
use tokio::runtime::Runtime;

/// Adds tests that need no cluster.
macro_rules! offline {
    ($suite:expr, $($module:ident :: $test:ident),+ $(,)?) => {
        $($suite.push(Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
            $module::$test();
            Ok(())
        }));)+
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let shared = Arc::<OnceLock<Stage>>::default();
    let breakable = Arc::<OnceLock<Stage>>::default();
    let mut suite = Vec::new();
    tests!(suite, runtime, breakable, Stage::start(), install::an_uninstall_keeps_what_cannot_be_recreated);
    let alone = runtime.clone();
    suite.push(Trial::test("tenant::a_tenant_installs_with_rights_in_its_namespaces_alone", move || {
        alone.block_on(tenant::a_tenant_installs_with_rights_in_its_namespaces_alone());
        Ok(())
    }));
    let alone = runtime.clone();
    suite.push(Trial::test("kustomize::it_moves_everything_into_another_namespace", move || {
        alone.block_on(kustomize::it_moves_everything_into_another_namespace());
        Ok(())
    }));
    offline!(
        suite,
        manifests::the_argo_cd_example_has_the_chart_s_scripts,
        manifests::plain_manifests_are_what_the_chart_renders,
        manifests::the_chart_has_the_crds_that_the_code_prints,
        manifests::the_role_of_callers_has_the_paths_of_openapi_json,
        rights::editors_write_tokens_where_grants_are_enforced,
        monitoring::alert_and_dashboard_queries_are_valid,
        monitoring::alerts_fire_when_they_should,
        values::every_flag_is_understood,
        values::every_variable_is_read,
        values::helm_3_renders_the_same,
        values::the_linter_finds_nothing,
        values::users_values_replace_the_defaults,
        values::users_labels_and_annotations_come_before_the_charts,
        values::what_a_parent_chart_passes_is_accepted,
        values::the_namespace_can_be_set,
        values::further_flags_replace_the_charts,
        values::further_fields_are_rendered,
        values::rights_can_be_left_out,
        values::the_job_of_the_uninstall_can_be_left_out,
        values::the_name_can_be_set,
        values::the_controller_moves_into_the_network_of_its_node,
        values::wrong_values_are_rejected_by_name,
    );
    tests!(
        suite,
        runtime,
        shared,
        Stage::start(),
        install::finalizers_that_stay_are_an_error,
        install::an_upgrade_keeps_the_ca_bundle_and_mints_nothing,
        install::pods_are_admitted_where_restricted_is_enforced,
        install::the_installed_processes_mint_and_check,
        kustomize::a_prefix_reaches_the_pods_that_mount_a_token,
        manifests::the_api_server_accepts_every_form_of_the_chart,
        manifests::the_plain_manifests_are_valid_for_the_api_server_s_own_schemas,
        monitoring::every_queried_metric_exists,
        rights::each_account_has_the_rights_it_needs_and_no_others,
        rights::nobody_else_writes_a_status,
        rights::scopes_of_tokenward_itself_take_a_grant,
        rights::whoever_may_stop_tokens_may_do_no_more,
        rights::a_revoked_token_stays_until_that_is_recorded,
        rights::what_a_lock_says_is_true_and_it_stays_until_it_is_recorded,
        rights::the_controller_changes_nothing_of_a_token_but_its_finalizer,
        rights::the_controller_writes_no_secret_of_others,
        rights::the_metadata_of_an_object_is_bounded,
        rights::the_verifier_can_read_no_token,
        rights::view_edit_and_admin_include_tokens_but_no_status,
    );
    let conclusion = libtest_mimic::run(&arguments, suite);
    // Ends the processes and their clusters.
    drop((Arc::into_inner(shared), Arc::into_inner(breakable)));
    conclusion.exit_code()
}
