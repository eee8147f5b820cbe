//! Values that users set, valid and invalid.

use std::collections::BTreeSet;

use clap::{CommandFactory, Parser};
use serde_json::json;
use tokenward::cli::Cli;

use crate::helm::{arguments, chart, object, objects, render, try_helm, try_render};

/// Sets everything that is off by default, and every list.
pub const ALL_ON: &[&str] = &[
    "--set=verifier.tls.secretName=tls,verifier.stalePolicy=deny",
    "--set=verifier.trustedProxies={10.0.0.0/8,fd00::/8}",
    "--set=webhooks.allowPrivate=true,webhooks.allowCidrs={10.20.0.0/16}",
    "--set=verifier.extraEnv[0].name=A,verifier.extraEnv[0].value=b",
    "--set=admission.enforceScopeGrants=true,admission.certificate.certManager.enabled=true",
    "--set=admission.statusPolicy.alsoAllow={system:serviceaccount:velero:velero},admission.clientCA.configMapName=api-server",
    "--set=networkPolicy.admissionFrom[0].ipBlock.cidr=10.0.0.4/32",
    "--set=monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true",
    "--set=monitoring.dashboard.enabled=true,networkPolicy.verifierFrom[0].namespaceSelector.matchLabels.a=b",
    "--set=networkPolicy.telemetryFrom[0].namespaceSelector.matchLabels.a=b,commonLabels.team=platform",
    "--set=controller.nodeSelector.a=b,controller.priorityClassName=high,imagePullSecrets[0].name=pull",
    "--set=controller.tolerations[0].key=a,controller.tolerations[0].operator=Exists",
    "--set-json=controller.affinity={\"podAntiAffinity\":{}}",
    "--set=podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null,podSecurityContext.fsGroup=null",
    r#"--set-json=verifier.topologySpreadConstraints=[{"maxSkew":2,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule"}]"#,
    EXTRA,
];

/// An extra object as it is, and one as a template.
const EXTRA: &str = r#"--set-json=extraObjects=[
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}},
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-templated'}"
]"#;

/// The sets of values with which the chart is tested.
pub const FORMS: &[&[&str]] = &[
    &[],
    &["--set=watchNamespaces={shop,billing}"],
    &[
        "--set=verifier.grpc.enabled=false,verifier.drainSeconds=0,admission.enabled=false,networkPolicy.enabled=false",
    ],
    &[
        "--set=fullnameOverride=keys,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
];

pub fn the_linter_finds_nothing() {
    for form in FORMS {
        let (ok, printed, complaint) = try_helm(None, &[&["lint", "--strict", &chart()], *form].concat());
        assert!(ok, "{printed}{complaint}");
    }
}

pub fn every_flag_is_understood() {
    for form in FORMS.iter().chain(&[ALL_ON]) {
        for deployment in objects(&render(form)).iter().filter(|object| object["kind"] == "Deployment") {
            let arguments = arguments(deployment);
            let line = std::iter::once("tokenward").chain(arguments.iter().map(String::as_str));
            let parsed = Cli::try_parse_from(line);
            assert!(
                parsed.is_ok(),
                "{arguments:?}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
        }
    }
}

/// A variable that the binary does not read would be a setting without an effect.
pub fn every_variable_is_read() {
    let command = Cli::command();
    let roles = command.get_subcommands().flat_map(|role| role.get_arguments());
    let read: BTreeSet<_> = roles.filter_map(|flag| flag.get_env()?.to_str().map(str::to_owned)).collect();
    let mut seen = BTreeSet::new();
    for form in FORMS.iter().chain(&[ALL_ON]) {
        for deployment in objects(&render(form)).iter().filter(|object| object["kind"] == "Deployment") {
            let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
            let names = variables.expect("variables").iter().filter_map(|variable| variable["name"].as_str());
            seen.extend(names.filter(|name| name.starts_with("TOKENWARD_")).map(str::to_owned));
        }
    }
    assert!(seen.contains("TOKENWARD_ADMISSION_LISTEN"), "{seen:?}");
    let unread: Vec<_> = seen.difference(&read).collect();
    assert!(unread.is_empty(), "nothing reads {unread:?}");
}

pub fn users_values_replace_the_defaults() {
    let rendered = objects(&render(ALL_ON));
    object(&rendered, "ConfigMap", "plain");
    object(&rendered, "ConfigMap", "tokenward-templated");
    let pod = |role: &str| {
        object(&rendered, "Deployment", &format!("tokenward-{role}"))["spec"]["template"]["spec"].clone()
    };
    let spread = |role: &str| {
        let constraints = pod(role)["topologySpreadConstraints"].as_array().cloned().unwrap_or_default();
        constraints.iter().map(|constraint| constraint["topologyKey"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(spread("verifier"), [r#""rack""#]);
    assert_eq!(spread("controller"), [r#""kubernetes.io/hostname""#, r#""topology.kubernetes.io/zone""#]);
    let about = &pod("verifier")["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
    assert_eq!(about["app.kubernetes.io/component"], "verifier");
    // As OpenShift wants it.
    let security = &pod("verifier")["securityContext"];
    assert_eq!(security, &json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
}

/// For clusters whose API server reaches nodes, but not pods.
pub fn the_controller_moves_into_the_network_of_its_node() {
    let ports = "--set=controller.ports.telemetry=19090,controller.ports.admission=19443";
    let rendered = objects(&render(&["--set=controller.hostNetwork=true", ports]));
    let deployment = object(&rendered, "Deployment", "tokenward-controller");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    // Otherwise it could not resolve Services, which TokenWebhooks may name.
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    // Otherwise an upgrade would wait for a port that the old pod uses.
    let update = json!({"maxSurge": 0, "maxUnavailable": 1});
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], update);
    let container = &pod["containers"][0];
    let ports =
        json!([{"name": "telemetry", "containerPort": 19090}, {"name": "admission", "containerPort": 19443}]);
    assert_eq!(container["ports"], ports);
    assert!(arguments(deployment).iter().any(|argument| argument == "--telemetry-listen=[::]:19090"));
    let listen = json!({"name": "TOKENWARD_ADMISSION_LISTEN", "value": "[::]:19443"});
    assert!(container["env"].as_array().is_some_and(|variables| variables.contains(&listen)));
    let verifier = object(&rendered, "Deployment", "tokenward-verifier");
    assert_eq!(verifier["spec"]["template"]["spec"]["hostNetwork"], json!(null));
}

pub fn wrong_values_are_rejected_by_name() {
    for (wrong, named) in [
        ("verifier.replica=3", "at '/verifier': additional properties 'replica' not allowed"),
        ("verifier.replicas=many", "at '/verifier/replicas': got string, want integer"),
        ("verifier.maxStaleness=30", "at '/verifier/maxStaleness': got number, want string"),
        ("verifier.maxStaleness=30d", "at '/verifier/maxStaleness': '30d' does not match pattern"),
        ("verifier.stalePolicy=allow", "at '/verifier/stalePolicy': value must be one of 'serve', 'deny'"),
        ("verifier.trustedProxies={10.0.0.1}", "at '/verifier/trustedProxies/0'"),
        ("admission.failurePolicy.apiTokens=Maybe", "at '/admission/failurePolicy/apiTokens'"),
        ("watchNamespaces=shop", "at '/watchNamespaces': got string, want array"),
        ("image.digest=latest", "at '/image/digest'"),
        ("controller.ports.admission=443", "at '/controller/ports/admission': minimum: got 443, want 1,024"),
        ("controller.extraArgs={verbose}", "at '/controller/extraArgs/0'"),
        ("extraObjects={1}", "at '/extraObjects/0'"),
        ("tls.secretName=x", "additional properties 'tls' not allowed"),
        (
            "admission.enforceScopeGrants=true,admission.failurePolicy.apiTokens=Ignore",
            "would let anybody grant any scope",
        ),
    ] {
        let (ok, _, complaint) = try_render(&["--set", wrong]);
        assert!(!ok && complaint.contains(named), "{wrong}: {complaint}");
    }
}
