//! Admission reviews, sent by the API server.
//!
//! There is no node here and so no Service network: the webhook's Service is an alias of `localhost`, through which the
//! API server reaches the process and verifies its certificate by the Service's name.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenward_core::crd::{ConditionType, TokenWebhook};
use tokio::net::{TcpListener, TcpStream};

use super::Shared;
use testkit::{Site, Space, TIMEOUT, Tenant, eventually, free_port, message};

/// The label of namespaces whose objects the shared controller reviews.
pub const REVIEW_LABEL: &str = "tokenward.test/admission";
const SECRET: &str = "tokenward-admission";

/// Makes the API server send reviews to a port, for namespaces with this label.
pub async fn configure_webhooks(client: &Client, namespace: &str, name: &str, port: u16, label: &str) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": SECRET, "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    create(client, &format!("/api/v1/namespaces/{namespace}/services"), service).await;
    let webhook = |kind: &str| {
        json!({
            "name": format!("{kind}s.tokenward.dev"),
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "clientConfig": {"service": {
                "namespace": namespace, "name": SECRET, "path": format!("/validate/{kind}"), "port": port,
            }},
            "namespaceSelector": {"matchLabels": {label: "asked"}},
            "matchConditions": installed_conditions(kind),
            "rules": [{
                "apiGroups": ["tokenward.dev"], "apiVersions": ["*"], "resources": [format!("{kind}s")],
                "operations": ["CREATE", "UPDATE"],
            }],
        })
    };
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [webhook("apitoken"), webhook("tokenlock"), webhook("tokenwebhook")],
    });
    create(client, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", configuration)
        .await;
}

/// The conditions under which the API server asks, as they are installed: one that can't be evaluated would skip a review, or
/// reject every write.
fn installed_conditions(kind: &str) -> Value {
    let file = std::fs::read_to_string(testkit::root().join("deploy/admission.yaml")).expect("a manifest");
    let documents = serde_yaml::Deserializer::from_str(&file).map(Value::deserialize);
    let mut webhooks = documents
        .flat_map(|document| document.expect("YAML")["webhooks"].as_array().cloned().unwrap_or_default());
    let webhook = webhooks.find(|webhook| webhook["name"] == format!("{kind}s.tokenward.dev"));
    webhook.expect("the webhook")["matchConditions"].clone()
}

async fn create(client: &Client, path: &str, object: Value) {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(object.to_string().into_bytes()).expect("a request");
    match client.request::<Value>(request).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("{path}: {}", message(&error)),
    }
}

/// Makes the API server send reviews to the shared controller, for namespaces with [`REVIEW_LABEL`].
pub async fn configure_shared_webhooks(site: &Site, port: SocketAddr) {
    configure_webhooks(&site.client, "tokenward", "tokenward", port.port(), REVIEW_LABEL).await;
}

pub async fn label(space: &Space, label: &str) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {label: "asked"}}}));
    let api = Api::<Namespace>::all(space.client.clone());
    api.patch(&space.name, &PatchParams::default(), &patch).await.expect("a label");
}

/// Creates a namespace with [`REVIEW_LABEL`], and waits until its objects are reviewed.
async fn reviewed_namespace(shared: &Shared, name: &str) -> Space {
    let space = shared.site.namespace(name).await;
    label(&space, REVIEW_LABEL).await;
    until_reviewed(&space).await;
    space
}

/// Waits until the webhook is in force: a token whose Secret is foreign is denied.
pub async fn until_reviewed(space: &Space) {
    let foreign = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"}});
    create(&space.client, &format!("/api/v1/namespaces/{}/secrets", space.name), foreign).await;
    eventually("a denial", async || match space.try_create("theirs", json!({"scopes": ["a:b"]})).await {
        Err(denial) if denial.contains("exists and is not tokenward's") => Ok(()),
        Err(other) => Err(other),
        Ok(_) => {
            space.delete("theirs").await;
            Err("it was admitted".to_owned())
        }
    })
    .await;
}

/// The same namespace, with a user's rights.
async fn as_user(shared: &Shared, space: &Space, user: &str) -> Space {
    let kubeconfig = Kubeconfig::read_from(shared.site.cluster.kubeconfig()).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("a configuration");
    config.auth_info.impersonate = Some(user.to_owned());
    Space { name: space.name.clone(), client: Client::try_from(config).expect("a client") }
}

/// Gives a user rights on ApiTokens, and the right to grant scopes.
async fn allow(space: &Space, user: &str, scopes: &[&str]) {
    let (name, path) = (user, format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", space.name));
    let mut rules = vec![json!({
        "apiGroups": ["tokenward.dev"], "resources": ["apitokens"],
        "verbs": ["get", "create", "update", "patch", "delete"],
    })];
    if !scopes.is_empty() {
        rules.push(json!({
            "apiGroups": ["tokenward.dev"], "resources": ["scopes"], "resourceNames": scopes, "verbs": ["grant"],
        }));
    }
    let role = json!({"metadata": {"name": name}, "rules": rules});
    create(&space.client, &format!("{path}/roles"), role).await;
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    create(&space.client, &format!("{path}/rolebindings"), binding).await;
}

fn spec(scopes: &[&str]) -> Value {
    json!({"scopes": scopes})
}

pub async fn a_secret_has_one_token(shared: &Shared) {
    let space = reviewed_namespace(shared, "one-secret").await;
    let named = json!({"scopes": ["a:b"], "secret": {"name": "same"}});
    space.create("first", named.clone()).await;
    space.condition("first", ConditionType::Active, "True").await;
    let denial = space.try_create("second", named).await.expect_err("a denial");
    assert!(denial.contains("Secret same is that of ApiToken first"), "{denial}");
    let denial = space.try_create("same", spec(&["a:b"])).await.expect_err("a denial");
    assert!(denial.contains("Secret same is that of ApiToken first"), "{denial}");
    let labels = json!({"metadata": {"labels": {"argoproj.io/instance": "x"}}});
    let template = json!({"scopes": ["a:b"], "secret": {"template": labels}});
    let denial = space.try_create("labelled", template).await.expect_err("a denial");
    assert!(denial.contains("argoproj.io"), "{denial}");
    // Somebody else's Secret takes its owner's consent; one that is still to come does not yet.
    let theirs = json!({"metadata": {"name": "from-git", "labels": {"tokenward.dev/token": "merged"}}});
    let theirs = serde_json::from_value(theirs).expect("a Secret");
    space.secrets().create(&Default::default(), &theirs).await.expect("a Secret");
    let merge =
        |secret: &str| json!({"scopes": ["a:b"], "secret": {"name": secret, "creationPolicy": "Merge"}});
    let denial = space.try_create("stranger", merge("from-git")).await.expect_err("a denial");
    assert!(denial.contains("lacks the label tokenward.dev/token=stranger"), "{denial}");
    space.create("merged", merge("from-git")).await;
    space.create("early", merge("to-come")).await;
}

pub async fn scopes_are_granted_only_with_the_right(shared: &Shared) {
    let space = reviewed_namespace(shared, "grants").await;
    allow(&space, "alice", &["orders:*", "audit:read"]).await;
    allow(&space, "argocd", &[]).await;
    let (alice, argocd) = (as_user(shared, &space, "alice").await, as_user(shared, &space, "argocd").await);

    eventually("alice's rights", async || {
        alice.try_create("hers", spec(&["orders:read", "audit:read"])).await
    })
    .await;
    let denial = alice.try_create("more", spec(&["orders:read", "payments:read", "audit:*"])).await;
    let denial = denial.expect_err("a denial");
    assert!(denial.contains("alice may not grant payments:read, audit:*"), "{denial}");

    // A GitOps controller without the right can't apply it, and gets the reason.
    let denial = argocd.try_create("synced", spec(&["orders:read"])).await.expect_err("a denial");
    assert!(denial.contains("argocd may not grant orders:read"), "{denial}");

    // Only scopes that an edit adds are checked, so a token with scopes beyond one's own rights can be edited.
    space.create("rich", spec(&["payments:*", "orders:read"])).await;
    alice.patch("rich", json!({"spec": {"displayName": "Payments"}})).await;
    alice.patch("rich", json!({"spec": {"scopes": ["payments:read", "orders:read"]}})).await;
    let denial = alice.try_patch("rich", json!({"spec": {"scopes": ["payments:*"]}})).await;
    assert!(denial.expect_err("a denial").contains("may not grant payments:*"));
    argocd.patch("rich", json!({"spec": {"revoked": true}})).await;

    // To lift a limit is to hand the scopes out anew. `revoked: null` is no revocation, which would skip the review.
    let limits = json!({
        "scopes": ["payments:read"], "audiences": ["ledger"], "constraints": {"cidrs": ["10.9.9.0/24"]},
        "expiresAt": "2099-01-01T00:00:00Z", "suspend": true,
    });
    space.create("limited", limits).await;
    for lifted in [
        json!({"audiences": null}),
        json!({"constraints": null}),
        json!({"expiresAt": null}),
        json!({"suspend": null}),
        json!({"scopes": ["payments:read", "payments:write"], "revoked": null}),
    ] {
        let denial = argocd.try_patch("limited", json!({"spec": lifted})).await;
        assert!(denial.expect_err("a denial").contains("argocd may not grant payments:"), "{lifted}");
    }
    let unrevoked = json!({"scopes": ["payments:refund"], "revoked": null});
    let denial = argocd.try_create("unrevoked", unrevoked).await.expect_err("a denial");
    assert!(denial.contains("argocd may not grant payments:refund"), "{denial}");
    argocd
        .patch("limited", json!({"spec": {"audiences": ["ledger"], "expiresAt": "2098-01-01T00:00:00Z"}}))
        .await;
    // No request makes thousands of others.
    let many: Vec<String> = (0..64).map(|n| format!("s{n}:a:b:c:d:e:f:g:h")).collect();
    let denial = argocd.try_create("many", json!({"scopes": many})).await.expect_err("a denial");
    assert!(denial.contains("at most 256 are checked"), "{denial}");
}

/// A rule that was broken before the webhook was installed must not block an edit, least of all a revocation.
pub async fn a_token_from_before_the_webhook_can_be_edited(shared: &Shared) {
    let space = shared.site.namespace("before").await;
    let named = json!({"scopes": ["a:b"], "secret": {"name": "same"}});
    space.create("first", named.clone()).await;
    space.condition("first", ConditionType::Active, "True").await;
    space.create("second", named).await;
    label(&space, REVIEW_LABEL).await;
    until_reviewed(&space).await;
    space.patch("second", json!({"spec": {"displayName": "the second"}})).await;
    space.patch("second", json!({"spec": {"revoked": true}})).await;
}

pub async fn a_webhook_that_points_inside_is_denied(shared: &Shared) {
    let space = reviewed_namespace(shared, "inside").await;
    let webhooks = Api::<TokenWebhook>::namespaced(space.client.clone(), &space.name);
    let webhook = |name: &str, url: &str| {
        let spec = serde_json::from_value(json!({"url": url, "events": ["token.*"], "suspend": true}));
        TokenWebhook::new(name, spec.expect("a spec"))
    };
    for url in
        ["http://169.254.169.254/latest", "http://localhost:6443/", "https://[::1]/", "http://10.96.0.1/"]
    {
        let refused = webhooks.create(&PostParams::default(), &webhook("inside", url)).await;
        let denial = message(&refused.expect_err("a denial"));
        assert!(denial.contains("spec.url"), "{denial}");
    }
    let outside = webhook("outside", "https://audit.example.com/");
    webhooks.create(&PostParams::default(), &outside).await.expect("a webhook");
}

/// Two replicas behind one address, as behind a Service: a connection goes to one that accepts it.
async fn balance(replicas: [SocketAddr; 2]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let turn = AtomicUsize::new(0);
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let first = turn.fetch_add(1, Ordering::Relaxed) % 2;
            tokio::spawn(async move {
                for replica in [replicas[first], replicas[1 - first]] {
                    if let Ok(mut server) = TcpStream::connect(replica).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
        }
    });
    (address, task)
}

/// Writes continuously: whatever happens to certificates, no write fails.
pub async fn certificates_are_replaced_under_load(site: &Site) {
    let tenant = Tenant::new(site, "certificates").await;
    let ports = [free_port(), free_port()];
    let flags = |port: &SocketAddr| {
        [
            "--admission-listen",
            &port.to_string(),
            "--admission-configuration",
            "certificates",
            "--admission-certificate-lifetime",
            "12s",
            "--lease-duration",
            "2s",
        ]
        .map(ToOwned::to_owned)
    };
    let start = |port| {
        let flags = flags(port);
        tenant.controller(&flags.each_ref().map(String::as_str))
    };
    let mut replicas = [start(&ports[0]), start(&ports[1])];
    let (address, relay) = balance(ports).await;
    let own = "tokenward.test/certificates";
    configure_webhooks(&site.client, tenant.namespace(), "certificates", address.port(), own).await;
    label(&tenant.space, own).await;
    until_reviewed(&tenant.space).await;

    // Two generations of a certificate, the second after the replica that made the first was killed.
    let failed = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let (space, failures, stop) = (tenant.space.clone(), failed.clone(), done.clone());
    let asking = tokio::spawn(async move {
        let mut asked = 0;
        while !stop.load(Ordering::Relaxed) {
            let params = PostParams { dry_run: true, ..Default::default() };
            let token = serde_json::from_value(json!({
                "metadata": {"name": "asked"}, "spec": {"scopes": ["a:b"]},
            }));
            if let Err(error) = space.tokens().create(&params, &token.expect("a token")).await {
                eprintln!("a write failed: {}", message(&error));
                failures.fetch_add(1, Ordering::Relaxed);
            }
            asked += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asked
    });
    let mut certificate = served(&tenant).await;
    for _ in 0..2 {
        let before = certificate.clone();
        certificate = eventually("another certificate", async || {
            let now = served(&tenant).await;
            if now == before { Err("the same".to_owned()) } else { Ok(now) }
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    let asked = asking.await.expect("a task");
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {asked} writes");
    assert!(asked >= 10, "{asked}");

    // The leader is killed; the other replica serves meanwhile, and takes over.
    let leads = replicas.iter().position(|replica| replica.log().contains("leading")).expect("a leader");
    replicas[leads].kill();
    // A reinstallation creates a configuration without the bundle, and the Secret may be gone.
    let api = Api::<ValidatingWebhookConfiguration>::all(site.client.clone());
    api.delete("certificates", &DeleteParams::default()).await.expect("a deletion");
    tenant.peppers().delete(SECRET, &DeleteParams::default()).await.expect("a deletion");
    configure_webhooks(&site.client, tenant.namespace(), "certificates", address.port(), own).await;
    until_reviewed(&tenant.space).await;
    let gone = tokio::time::timeout(TIMEOUT, async {
        while served(&tenant).await == certificate {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    gone.await.expect("a certificate of the other replica");

    // With failurePolicy Fail, a webhook that is down blocks writes until it is back.
    let survivor = 1 - leads;
    replicas[survivor].kill();
    let denial = tenant.space.try_create("blocked", spec(&["a:b"])).await.expect_err("a denial");
    assert!(denial.contains("failed calling webhook"), "{denial}");
    // Meanwhile all cached decisions expire.
    tokio::time::sleep(Duration::from_secs(12)).await;
    replicas[survivor] = start(&ports[survivor]);
    eventually("admission", async || tenant.space.try_create("blocked", spec(&["a:b"])).await).await;
    relay.abort();
    api.delete("certificates", &DeleteParams::default()).await.expect("a deletion");
}

/// Scope grants that the API server skips while no controller responds.
pub async fn grants_that_an_outage_would_end_are_an_error(site: &Site) {
    let tenant = Tenant::new(site, "skipped-grants").await;
    let port = free_port();
    configure_webhooks(
        &site.client,
        tenant.namespace(),
        "skipped-grants",
        port.port(),
        "tokenward.test/none",
    )
    .await;
    let ignore = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]"#;
    site.kubectl(&["patch", "validatingwebhookconfiguration", "skipped-grants", "--type=json", "-p", ignore]);
    let listen = port.to_string();
    let flags = [
        "--admission-listen",
        &listen,
        "--admission-configuration",
        "skipped-grants",
        "--enforce-scope-grants",
    ];
    let controller = tenant.controller(&flags).ready().await;
    eventually("the log says it", async || {
        let log = controller.log();
        let error = "skipped-grants has no webhook apitokens.tokenward.dev with failurePolicy Fail";
        if log.contains(error) { Ok(()) } else { Err(log) }
    })
    .await;
    let api = Api::<ValidatingWebhookConfiguration>::all(site.client.clone());
    api.delete("skipped-grants", &DeleteParams::default()).await.expect("a deletion");
}

async fn served(tenant: &Tenant<'_>) -> Vec<u8> {
    let secret = tenant.peppers().get_opt(SECRET).await.expect("an answer");
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    data.get("tls.crt").map(|value| value.0.clone()).unwrap_or_default()
}

/// With a provided certificate, such as cert-manager's, the controller issues and writes none, and reloads it when it
/// changes.
pub async fn a_provided_certificate_is_served(site: &Site) {
    let tenant = Tenant::new(site, "cert-manager").await;
    let folder = tempfile::tempdir().expect("a folder");
    let host = format!("{SECRET}.{}.svc", tenant.namespace());
    let bundle = issue(folder.path(), &host);
    let port = free_port();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let controller = tenant.controller(&[
        "--admission-listen",
        &port.to_string(),
        "--admission-configuration",
        "cert-manager",
        "--admission-tls-cert",
        &path("tls.crt"),
        "--admission-tls-key",
        &path("tls.key"),
    ]);
    let _controller = controller.ready().await;
    let own = "tokenward.test/cert-manager";
    configure_webhooks(&site.client, tenant.namespace(), "cert-manager", port.port(), own).await;
    label(&tenant.space, own).await;
    trust(site, &bundle).await;
    until_reviewed(&tenant.space).await;

    // Its authority is replaced: the new bundle first, then the new certificate in the mounted files.
    let renewed = issue(folder.path(), &host);
    trust(site, &format!("{bundle}{renewed}")).await;
    until_reviewed(&tenant.space).await;
    trust(site, &renewed).await;
    until_reviewed(&tenant.space).await;
    assert!(served(&tenant).await.is_empty(), "a certificate was made");
    let api = Api::<ValidatingWebhookConfiguration>::all(site.client.clone());
    api.delete("cert-manager", &DeleteParams::default()).await.expect("a deletion");
}

/// Writes a new self-signed certificate where the controller reads it; returns the certificate.
fn issue(folder: &Path, host: &str) -> String {
    let params = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("parameters");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    std::fs::write(folder.join("tls.crt"), &certificate).expect("a file");
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).expect("a file");
    certificate
}

async fn trust(site: &Site, bundle: &str) {
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
    let patch: Vec<_> = (0..2)
        .map(|at| json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle}))
        .collect();
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/cert-manager";
    let request = http::Request::patch(path).header("content-type", "application/json-patch+json");
    let request = request.body(json!(patch).to_string().into_bytes()).expect("a request");
    site.client.request::<Value>(request).await.expect("a patch");
}
