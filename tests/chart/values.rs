//! Values that users set, valid and invalid.

use std::collections::{BTreeMap, BTreeSet};

use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use tokenward::cli::{Cli, Role};

use crate::helm::{arguments, chart, object, objects, render, try_helm, try_helm_of, try_render};

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
    "--set=image.registry=registry.example.com,podDisruptionBudget.maxUnavailable=2,monitoring.podMonitor.enabled=true",
    r#"--set-json=monitoring.podMonitor.relabelings=[{"action":"labeldrop","regex":"pod"}]"#,
    "--set=verifier.service.type=LoadBalancer,verifier.service.externalTrafficPolicy=Local",
    "--set=verifier.service.loadBalancerSourceRanges={10.0.0.0/8},verifier.service.ipFamilyPolicy=SingleStack",
    "--set=verifier.service.ipFamilies={IPv4},verifier.service.internalTrafficPolicy=Cluster,verifier.service.labels.a=b",
    "--set=controller.strategy.rollingUpdate.maxSurge=2,controller.revisionHistoryLimit=3,controller.readinessProbe.periodSeconds=7",
    "--set=controller.deploymentAnnotations.a=b,verifier.dnsPolicy=Default",
    r#"--set-json=verifier.dnsConfig={"options":[{"name":"ndots","value":"2"}]}"#,
    r#"--set-json=verifier.hostAliases=[{"ip":"10.0.0.9","hostnames":["api.example.com"]}]"#,
    r#"--set-json=verifier.extraVolumes=[{"name":"ca","configMap":{"name":"ca"}}]"#,
    r#"--set-json=verifier.extraVolumeMounts=[{"name":"ca","mountPath":"/etc/ca","readOnly":true}]"#,
    r#"--set-json=controller.extraVolumes=[{"name":"tmp","emptyDir":{}}]"#,
    r#"--set-json=controller.extraVolumeMounts=[{"name":"tmp","mountPath":"/tmp"}]"#,
    "--set=controller.schedulerName=theirs,controller.runtimeClassName=gvisor,controller.hostUsers=false",
    "--set=controller.enableServiceLinks=true,verifier.automountServiceAccountToken=false,verifier.livenessProbe=null",
    "--set=global.nodeSelector.a=global,global.nodeSelector.zone=x,global.imagePullSecrets={named}",
    "--set=controller.serviceAccount.labels.a=b,crds.annotations.a=b,admission.annotations.a=b",
    "--set=admission.service.labels.a=b,admission.service.annotations.a=b,admission.service.ipFamilyPolicy=SingleStack",
    "--set=monitoring.service.annotations.a=b,monitoring.service.ipFamilies={IPv4}",
    "--set=monitoring.serviceMonitor.namespace=monitoring,monitoring.podMonitor.annotations.a=b",
    "--set=admission.certificate.certManager.renewBefore=720h,admission.certificate.certManager.revisionHistoryLimit=2",
    "--set=admission.certificate.certManager.privateKey.size=384,admission.certificate.certManager.annotations.a=b",
    "--set=uninstall.podLabels.a=b,uninstall.podAnnotations.a=b",
    r#"--set-json=verifier.extraContainers=[{"name":"beside","image":"example.com/beside","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]"#,
    r#"--set-json=verifier.extraInitContainers=[{"name":"before","image":"example.com/before","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]"#,
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
    &["--set=nameOverride=keys,rbac.create=false"],
    &[
        "--set=verifier.grpc.enabled=false,verifier.drainSeconds=0,admission.enabled=false,networkPolicy.enabled=false",
    ],
    &[
        "--set=fullnameOverride=keys,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
];

/// Many still install with the major version before.
pub fn helm_3_renders_the_same() {
    let objects_by = |program: &std::path::Path, args: &[&str]| {
        let chart = chart();
        let fixed = ["template", "tokenward", &chart, "--namespace", "tokenward", "--kube-version", "1.36.0"];
        let (ok, rendered, complaint) = try_helm_of(program, None, &[&fixed, args].concat());
        assert!(ok, "{args:?}: {complaint}");
        // They sort the objects differently.
        let key = |object: &Value| {
            (
                object["kind"].to_string(),
                object["metadata"]["namespace"].to_string(),
                object["metadata"]["name"].to_string(),
            )
        };
        objects(&rendered).into_iter().map(|object| (key(&object), object)).collect::<BTreeMap<_, _>>()
    };
    let (helm_3, helm_4) = (programs::helm3().expect("Helm 3"), programs::helm().expect("Helm"));
    for args in [&[][..], ALL_ON, &["--set=watchNamespaces={a,b}"]] {
        let (by_3, by_4) = (objects_by(&helm_3, args), objects_by(&helm_4, args));
        assert!(by_3.keys().eq(by_4.keys()), "{args:?}");
        for (key, object) in &by_3 {
            assert_eq!(Some(object), by_4.get(key), "{args:?}");
        }
    }
}

pub fn the_linter_finds_nothing() {
    for form in FORMS {
        let (ok, printed, complaint) = try_helm(None, &[&["lint", "--strict", &chart()], *form].concat());
        assert!(ok, "{printed}{complaint}");
    }
}

pub fn every_flag_is_understood() {
    for form in FORMS.iter().chain(&[ALL_ON]) {
        let rendered = objects(&render(form));
        for process in rendered.iter().filter(|o| o["kind"] == "Deployment" || o["kind"] == "Job") {
            let arguments = arguments(process);
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

pub fn users_labels_and_annotations_come_before_the_charts() {
    let rendered = render(&[
        r#"--set-json=commonLabels={"app.kubernetes.io/part-of":"platform","team":"a"}"#,
        r#"--set-json=verifier.podLabels={"app.kubernetes.io/version":"blue","team":"b"}"#,
        r#"--set-json=verifier.podAnnotations={"kubectl.kubernetes.io/default-container":"sidecar"}"#,
        r#"--set-json=monitoring.serviceMonitor={"enabled":true,"labels":{"team":"c"}}"#,
    ]);
    // A key that is twice in a map is an error for kustomize and Flux, though not for Helm.
    for map in rendered.split("labels:").skip(1) {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let mut lines = map.lines().skip(1);
        let first = lines.next().unwrap_or_default();
        let keys = std::iter::once(first).chain(lines.take_while(|line| indent(line) == indent(first)));
        let keys: Vec<_> = keys.filter_map(|line| line.trim().split(": ").next()).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "{keys:?}");
    }
    let rendered = objects(&rendered);
    let ours = rendered.iter().filter(|object| object["kind"] != "Pod" && object["kind"] != "ApiToken");
    for object in ours.filter(|object| object["kind"] != "CustomResourceDefinition") {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/part-of"], "platform", "{object}");
        let team = if object["kind"] == "ServiceMonitor" { "c" } else { "a" };
        assert_eq!(labels["team"], team, "{object}");
    }
    let pod = &object(&rendered, "Deployment", "tokenward-verifier")["spec"]["template"]["metadata"];
    assert_eq!(pod["labels"]["app.kubernetes.io/version"], "blue");
    assert_eq!(
        (&pod["labels"]["team"], &pod["labels"]["app.kubernetes.io/name"]),
        (&json!("b"), &json!("tokenward"))
    );
    assert_eq!(pod["annotations"]["kubectl.kubernetes.io/default-container"], "sidecar");
}

/// By `condition: tokenward.enabled`, and with YAML anchors under keys of the user's.
pub fn what_a_parent_chart_passes_is_accepted() {
    render(&["--set=enabled=true,global.registry=x,x-anchors.a=b"]);
}

pub fn the_namespace_can_be_set() {
    let rendered = render(&["--set=namespaceOverride=infra"]);
    assert!(!rendered.contains("namespace: tokenward") && !rendered.contains(".tokenward.svc"), "{rendered}");
    let rendered = objects(&rendered);
    assert_eq!(object(&rendered, "Deployment", "tokenward-verifier")["metadata"]["namespace"], "infra");
    let binding = object(&rendered, "ClusterRoleBinding", "tokenward-controller");
    assert_eq!(binding["subjects"][0]["namespace"], "infra");
}

pub fn further_flags_replace_the_charts() {
    let rendered =
        objects(&render(&["--set=verifier.extraArgs={--max-staleness=7m,--max-connections=20000}"]));
    let arguments = arguments(object(&rendered, "Deployment", "tokenward-verifier"));
    let line = std::iter::once("tokenward").chain(arguments.iter().map(String::as_str));
    let Role::Verifier(verifier) = Cli::parse_from(line).role else { panic!("verifier") };
    assert_eq!(verifier.max_staleness.as_secs(), 420);
    assert_eq!(verifier.max_connections, Some(20_000));
}

pub fn further_fields_are_rendered() {
    let accounts = [
        "--set=verifier.serviceAccount.create=false,verifier.serviceAccount.name=theirs",
        "--set=controller.serviceAccount.name=minter,podDisruptionBudget.minAvailable=50%",
    ];
    let rendered = objects(&render(&[ALL_ON, &accounts].concat()));
    let verifier = object(&rendered, "Deployment", "tokenward-verifier");
    let pod = &verifier["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example.com/tokenward:0.1.0");
    assert_eq!(
        (&pod["dnsPolicy"], &pod["dnsConfig"]["options"][0]["value"]),
        (&json!("Default"), &json!("2"))
    );
    assert_eq!(pod["hostAliases"][0]["ip"], "10.0.0.9");
    let mounts = pod["containers"][0]["volumeMounts"].as_array().map(Vec::len);
    assert_eq!(
        (mounts, pod["volumes"].as_array().map(Vec::len)),
        (Some(3), Some(3)),
        "with those of TLS and the checkpoint"
    );
    assert_eq!(pod["serviceAccountName"], "theirs");
    let controller = object(&rendered, "Deployment", "tokenward-controller");
    assert_eq!(
        (&controller["spec"]["strategy"]["rollingUpdate"], &controller["spec"]["revisionHistoryLimit"]),
        (&json!({"maxSurge": 2}), &json!(3))
    );
    assert_eq!(controller["metadata"]["annotations"]["a"], "b");
    let probe = &controller["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    assert_eq!(
        *probe,
        json!({"httpGet": {"path": "/readyz", "port": "telemetry"}, "periodSeconds": 7, "timeoutSeconds": 3, "failureThreshold": 1})
    );
    let pods = |kind: &str, name: &str| object(&rendered, kind, name)["spec"]["template"]["spec"].clone();
    for pod in [pods("Deployment", "tokenward-controller"), pods("Job", "tokenward-remove-finalizers")] {
        let named =
            ["schedulerName", "runtimeClassName", "hostUsers", "enableServiceLinks"].map(|key| &pod[key]);
        assert_eq!(named, [&json!("theirs"), &json!("gvisor"), &json!(false), &json!(true)]);
        // The controller's own comes before that of the parent chart.
        assert_eq!(pod["nodeSelector"], json!({"a": "b", "zone": "x"}));
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}, {"name": "named"}]));
    }
    let pod = pods("Deployment", "tokenward-verifier");
    assert_eq!(
        (&pod["automountServiceAccountToken"], &pod["enableServiceLinks"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(
        (&pod["hostUsers"], &pod["nodeSelector"]),
        (&json!(null), &json!({"a": "global", "zone": "x"}))
    );
    let containers =
        |key: &str| pod[key].as_array().map(|list| list.iter().map(|c| c["name"].clone()).collect());
    assert_eq!(containers("containers"), Some(vec![json!("verifier"), json!("beside")]));
    assert_eq!(containers("initContainers"), Some(vec![json!("before")]));
    assert!(
        pod["containers"][0].get("livenessProbe").is_none()
            && pod["containers"][0]["readinessProbe"].is_object()
    );
    for (kind, name, field) in [
        ("ServiceAccount", "minter", "labels"),
        ("CustomResourceDefinition", "apitokens.tokenward.dev", "annotations"),
        ("ValidatingWebhookConfiguration", "tokenward", "annotations"),
        ("Service", "tokenward-admission", "labels"),
        ("Service", "tokenward-admission", "annotations"),
        ("Service", "tokenward-telemetry", "annotations"),
        ("Certificate", "tokenward-admission", "annotations"),
        ("PodMonitor", "tokenward", "annotations"),
    ] {
        assert_eq!(object(&rendered, kind, name)["metadata"][field]["a"], "b", "{kind} {name}");
    }
    let job = &object(&rendered, "Job", "tokenward-remove-finalizers")["spec"]["template"]["metadata"];
    assert_eq!((&job["labels"]["a"], &job["annotations"]["a"]), (&json!("b"), &json!("b")));
    assert_eq!(object(&rendered, "Service", "tokenward-admission")["spec"]["ipFamilyPolicy"], "SingleStack");
    assert_eq!(object(&rendered, "Service", "tokenward-telemetry")["spec"]["ipFamilies"], json!(["IPv4"]));
    let certificate = &object(&rendered, "Certificate", "tokenward-admission")["spec"];
    assert_eq!(
        (&certificate["renewBefore"], &certificate["revisionHistoryLimit"]),
        (&json!("720h"), &json!(2))
    );
    let key = json!({"algorithm": "ECDSA", "size": 384, "rotationPolicy": "Always"});
    assert_eq!(certificate["privateKey"], key);
    let monitor = object(&rendered, "ServiceMonitor", "tokenward");
    assert_eq!(monitor["metadata"]["namespace"], "monitoring");
    assert_eq!(monitor["spec"]["namespaceSelector"], json!({"matchNames": ["tokenward"]}));
    let service = &object(&rendered, "Service", "tokenward-verifier");
    assert_eq!(service["spec"]["loadBalancerSourceRanges"], json!(["10.0.0.0/8"]));
    assert_eq!(
        (&service["metadata"]["labels"]["a"], &service["spec"]["ipFamilies"]),
        (&json!("b"), &json!(["IPv4"]))
    );
    let budget = &object(&rendered, "PodDisruptionBudget", "tokenward-verifier")["spec"];
    assert_eq!((&budget["minAvailable"], &budget["maxUnavailable"]), (&json!("50%"), &json!(null)));
    let scraped = &object(&rendered, "PodMonitor", "tokenward")["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&scraped["interval"], &scraped["relabelings"][0]["regex"]), (&json!("30s"), &json!("pod")));
    // Rights go to the accounts by their names, and no other is made.
    let accounts: Vec<_> = rendered.iter().filter(|object| object["kind"] == "ServiceAccount").collect();
    assert_eq!(
        accounts.iter().map(|account| &account["metadata"]["name"]).collect::<Vec<_>>(),
        ["minter", "tokenward-remove-finalizers"]
    );
    for (binding, account) in [("tokenward-controller", "minter"), ("tokenward-verifier", "theirs")] {
        assert_eq!(object(&rendered, "ClusterRoleBinding", binding)["subjects"][0]["name"], account);
    }
    let policy = object(&rendered, "ValidatingAdmissionPolicy", "tokenward-status");
    assert!(policy.to_string().contains("endsWith(':minter')"), "{policy}");
}

/// Everything that selects pods still finds them.
pub fn the_name_can_be_set() {
    let rendered = objects(&render(&["--set=nameOverride=keys,monitoring.podMonitor.enabled=true"]));
    let pods = &object(&rendered, "Deployment", "tokenward-keys-verifier")["spec"]["template"]["metadata"];
    assert_eq!(pods["labels"]["app.kubernetes.io/name"], "keys");
    let selectors = [
        &object(&rendered, "Service", "tokenward-keys-verifier")["spec"]["selector"],
        &object(&rendered, "Service", "tokenward-keys-telemetry")["spec"]["selector"],
        &object(&rendered, "PodMonitor", "tokenward-keys")["spec"]["selector"]["matchLabels"],
        &object(&rendered, "NetworkPolicy", "tokenward-keys-verifier")["spec"]["podSelector"]["matchLabels"],
    ];
    for selector in selectors {
        let labels = selector.as_object().expect("labels");
        assert!(labels.iter().all(|(key, value)| pods["labels"][key] == *value), "{selector}");
    }
    let (ok, _, complaint) = try_render(&["--set=nameOverride=a-name-that-is-too-long"]);
    assert!(!ok && complaint.contains("at '/nameOverride'"), "{complaint}");
}

pub fn rights_can_be_left_out() {
    let rendered = objects(&render(&["--set=rbac.create=false"]));
    let rights = rendered.iter().filter(|object| {
        let group = object["apiVersion"].as_str().unwrap_or_default();
        group.starts_with("rbac.authorization.k8s.io/") || object["kind"] == "Job"
    });
    assert_eq!(rights.collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());
    object(&rendered, "ServiceAccount", "tokenward-controller");
}

pub fn the_job_of_the_uninstall_can_be_left_out() {
    assert!(render(&[]).contains("post-delete"));
    let rendered = render(&["--set=uninstall.removeFinalizers=false"]);
    assert!(!rendered.contains("post-delete") && !rendered.contains("remove-finalizers"), "{rendered}");
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
        ("commonLabels.app\\.kubernetes\\.io/name=x", "the label app.kubernetes.io/name can't be set"),
        (
            "verifier.podLabels.app\\.kubernetes\\.io/component=x",
            "the chart selects pods by it; choose another key",
        ),
        (
            "verifier.extraEnv[0].name=TOKENWARD_MAX_STALENESS,verifier.extraEnv[0].value=1m",
            "verifier.extraEnv: TOKENWARD_MAX_STALENESS would have no effect",
        ),
        ("admission.enforceScopeGrants=true,admission.enabled=false", "needs the admission webhook"),
        ("admission.enforceScopeGrants=true,watchNamespaces={a}", "needs the admission webhook"),
        (
            "admission.enforceScopeGrants=true,admission.failurePolicy.apiTokens=Ignore",
            "would let anybody grant any scope",
        ),
    ] {
        let (ok, _, complaint) = try_render(&["--set", wrong]);
        assert!(!ok && complaint.contains(named), "{wrong}: {complaint}");
    }
}
