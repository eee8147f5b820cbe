//! Kubernetes as a client: kube-apiserver accepts ApiTokens as users, and authorizes the callers of the endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use devcluster::Options;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use crate::admission::{configure_webhooks, label, until_reviewed};
use crate::sockets::{Pki, raise_open_files};
use testkit::{Process, Site, eventually, free_port};

/// The file that users copy; the tests replace the verifier's address and the caller's token.
const WEBHOOK: &str = include_str!("../../examples/kube-apiserver/webhook.yaml");

/// The files by which the API server authenticates at admission; the tests replace the folder, and add the port, which is 443
/// behind a Service.
const ADMISSION: [(&str, &str); 2] = [
    ("admission.yaml", include_str!("../../examples/kube-apiserver/admission.yaml")),
    ("admission-kubeconfig.yaml", include_str!("../../examples/kube-apiserver/admission-kubeconfig.yaml")),
];
/// The label of namespaces whose objects the controller reviews.
const REVIEW_LABEL: &str = "tokenward.test/authenticated-admission";

/// A cluster whose API server sends TokenReviews to a verifier, and its certificate to the controller.
pub struct TokenReviewCluster {
    site: Site,
    verifier: Process,
    _controller: Process,
    admission: SocketAddr,
    pki: Pki,
}

impl TokenReviewCluster {
    pub async fn start() -> Self {
        let (pki, admission) = (Pki::new(), free_port());
        pki.issue("api-server");
        pki.issue("verifier");
        for (name, example) in ADMISSION {
            let file = example
                .replace(
                    "/etc/kubernetes/tokenward/api-server.",
                    &pki.path("..api-server/tls.").display().to_string(),
                )
                .replace("/etc/kubernetes/tokenward", &pki.path("").display().to_string())
                .replace(
                    "tokenward-admission.tokenward.svc",
                    &format!("tokenward-admission.tokenward.svc:{}", admission.port()),
                );
            std::fs::write(pki.path(name), file).expect("a file");
        }
        let config = pki.path("webhook.yaml");
        let write = |address: &str, token: &str| {
            let webhook = WEBHOOK.replace("127.0.0.1:8443", address).replace("tw_REPLACE", token);
            let authority = pki.path("ca.crt").display().to_string();
            std::fs::write(&config, webhook.replace("/etc/kubernetes/tokenward/ca.crt", &authority))
                .expect("a file");
        };
        // kube-apiserver reads the caller's token when it starts, before one can be minted: so it is restarted.
        write("127.0.0.1:1", "none-yet");
        let extra_apiserver_args = vec![
            format!("--authentication-token-webhook-config-file={}", config.display()),
            "--authentication-token-webhook-version=v1".to_owned(),
            "--authentication-token-webhook-cache-ttl=0s".to_owned(),
            format!("--admission-control-config-file={}", pki.path("admission.yaml").display()),
        ];
        let site = Site::start_with(Options { extra_apiserver_args, ..Options::default() }).await;
        let authority = pki.path("ca.crt").display().to_string();
        let listen = admission.to_string();
        let flags = ["--admission-listen", &listen, "--admission-client-ca", &authority];
        let controller = site.controller(&flags).ready().await;
        configure_webhooks(&site.client, "tokenward", "tokenward", admission.port(), REVIEW_LABEL).await;
        let verifier = site.verifier_with_tls(&pki.certificate(), &pki.key()).ready().await;
        let space = site.namespace("kube-apiserver").await;
        let token = space
            .active("kube-apiserver", json!({"scopes": ["tokens:verify"], "audiences": ["tokenward"]}))
            .await;
        write(&verifier.listen.to_string(), &token);
        tokio::task::block_in_place(|| site.cluster.restart_apiserver().expect("a restart"));
        Self { site, verifier, _controller: controller, admission, pki }
    }

    /// Sends a body to an endpoint with curl; returns the status and the response's body.
    fn post(&self, caller: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
            "--cacert",
        ]);
        curl.arg(self.pki.path("ca.crt")).args(["--json", &body.to_string()]);
        curl.args(["--header", &format!("Authorization: Bearer {caller}")]);
        let output = curl.arg(format!("https://{}{path}", self.verifier.listen)).output().expect("curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.parse().expect("a status"), serde_json::from_str(body).unwrap_or_default())
    }

    /// Waits until `/v1/verify` returns this code for a token; `None` is valid.
    async fn until_code(&self, token: &str, expected: Option<&str>) {
        let config = std::fs::read_to_string(self.pki.path("webhook.yaml")).expect("a file");
        let caller =
            config.split("token: ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a token");
        eventually("the expected code", async || {
            let (_, answer) = self.post(caller, "/v1/verify", &json!({ "token": token }));
            if answer["valid"] == expected.is_none() && answer["code"].as_str() == expected {
                return Ok(());
            }
            Err(answer.to_string())
        })
        .await;
    }

    /// Runs kubectl with a token; returns whether it succeeded, and its output and errors.
    fn kubectl(&self, token: &str, args: &[&str]) -> (bool, String) {
        // Without a client certificate, which kubectl would prefer to a token.
        let mut config = Kubeconfig::read_from(self.site.cluster.kubeconfig()).expect("a kubeconfig");
        for user in &mut config.auth_infos {
            user.auth_info = Some(Default::default());
        }
        let path =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tokened-{}.yaml", std::process::id()));
        std::fs::write(&path, serde_json::to_string(&config).expect("JSON")).expect("a file");
        let output = self
            .site
            .cluster
            .kubectl_as(&path)
            .args(["--token", token])
            .args(args)
            .output()
            .expect("kubectl");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

pub async fn kube_apiserver_accepts_a_token_until_it_is_revoked(cluster: &TokenReviewCluster) {
    let space = cluster.site.namespace("reads").await;
    let (namespace, site) = (space.name.as_str(), &cluster.site);
    let stranger = space.active("stranger", json!({"scopes": ["anything:at-all"]})).await;
    let token = space.active("reader", json!({"scopes": ["tokens:login"]})).await;
    cluster.until_code(&stranger, None).await;
    cluster.until_code(&token, None).await;
    let (ok, refused) = cluster.kubectl(&stranger, &["auth", "whoami"]);
    assert!(!ok && refused.contains("Unauthorized"), "{refused}");
    let user = format!("tokenward:{namespace}:reader");

    let (ok, who) = cluster.kubectl(&token, &["auth", "whoami", "-o", "json"]);
    assert!(ok, "{who}");
    let who: Value = serde_json::from_str(&who).expect("JSON");
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], user);
    assert_eq!(info["uid"], space.get("reader").await.status.expect("a status").token_id.expect("an id"));
    for group in ["tokenward:apitokens", &format!("tokenward:apitokens:{namespace}"), "system:authenticated"]
    {
        assert!(info["groups"].as_array().is_some_and(|groups| groups.contains(&json!(group))), "{info}");
    }

    let list = ["get", "configmaps", "-n", namespace];
    let (ok, refused) = cluster.kubectl(&token, &list);
    assert!(!ok && refused.contains("Forbidden") && refused.contains(&user), "{refused}");
    site.kubectl(&["create", "role", "reader", "-n", namespace, "--verb=list", "--resource=configmaps"]);
    site.kubectl(&["create", "rolebinding", "reader", "-n", namespace, "--role=reader", "--user", &user]);
    eventually("the RoleBinding takes effect", async || match cluster.kubectl(&token, &list) {
        (true, _) => Ok(()),
        (false, why) => Err(why),
    })
    .await;
    let (_, listed) = cluster.kubectl(&token, &list);
    assert!(listed.contains("kube-root-ca.crt"), "{listed}");

    space.patch("reader", json!({"spec": {"revoked": true}})).await;
    cluster.until_code(&token, Some("REVOKED")).await;
    // kube-apiserver itself caches a result for 10 s.
    eventually("the API server's cache expires", async || match cluster.kubectl(&token, &list) {
        (false, refused) if refused.contains("Unauthorized") => Ok(()),
        (_, other) => Err(other),
    })
    .await;
    for _ in 0..3 {
        let (ok, refused) = cluster.kubectl(&token, &list);
        assert!(!ok && refused.contains("Unauthorized"), "{refused}");
    }
    let counted = cluster.verifier.metrics().await;
    assert!(counted.contains(r#"checks_total{endpoint="tokenreview",code="REVOKED"}"#), "{counted}");
}

/// Nobody else can even ask: an answer would tell which Secrets there are.
pub async fn admission_answers_the_api_server_alone(cluster: &TokenReviewCluster) {
    let space = cluster.site.namespace("authenticated").await;
    label(&space, REVIEW_LABEL).await;
    until_reviewed(&space).await;
    let other = Pki::new();
    other.issue("stranger");
    let url = format!("https://localhost:{}/validate/apitoken", cluster.admission.port());
    let ask = |folder: Option<PathBuf>| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--insecure", "--json", "{}", &url]);
        if let Some(folder) = folder {
            curl.arg("--cert").arg(folder.join("tls.crt")).arg("--key").arg(folder.join("tls.key"));
        }
        curl.output().expect("curl")
    };
    for (who, folder) in [("nobody", None), ("a stranger", Some(other.path("..stranger")))] {
        let output = ask(folder);
        assert!(!output.status.success() && output.stdout.is_empty(), "{who}: {output:?}");
    }
    let output = ask(Some(cluster.pki.path("..api-server")));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("no AdmissionReview of this kind"),
        "{output:?}"
    );
}

pub async fn a_service_account_may_call_once_it_is_bound(cluster: &TokenReviewCluster) {
    let space = cluster.site.namespace("callers").await;
    let (site, namespace) = (&cluster.site, space.name.as_str());
    let token = space.active("t", json!({"scopes": ["orders:*"]})).await;
    cluster.until_code(&token, None).await;
    site.kubectl(&["create", "serviceaccount", "shop", "-n", namespace]);
    let account = |audience: &str| {
        let token = site.kubectl(&["create", "token", "shop", "-n", namespace, "--audience", audience]);
        token.trim().to_owned()
    };
    let body = json!({"token": token, "scopes": ["orders:read"]});
    let ask = |caller: &str| cluster.post(caller, "/v1/verify", &body);

    let (status, why) = ask(&account("other"));
    assert_eq!(status, 401, "{why}");
    assert!(why["message"].as_str().is_some_and(|text| text.contains("audience: tokenward")), "{why}");
    let caller = account("tokenward");
    let (status, why) = ask(&caller);
    assert_eq!(status, 403, "{why}");
    assert!(
        why["message"].as_str().is_some_and(|text| text.contains("ClusterRole tokenward-caller")),
        "{why}"
    );

    let account_name = format!("{namespace}:shop");
    site.kubectl(&[
        "create",
        "clusterrolebinding",
        namespace,
        "--clusterrole=tokenward-caller",
        "--serviceaccount",
        &account_name,
    ]);
    eventually("the ClusterRoleBinding takes effect", async || match ask(&caller) {
        (200, answer) => {
            assert_eq!((&answer["valid"], &answer["token"]["name"]), (&json!(true), &json!("t")));
            Ok(())
        }
        (status, why) => Err(format!("{status} {why}")),
    })
    .await;

    // Not signed by the API server.
    let (head, _) = caller.rsplit_once('.').expect("a JWT");
    assert_eq!(ask(&format!("{head}.{}", "A".repeat(342))).0, 401);
    // After the account is deleted, its token is accepted only as long as results are cached.
    site.kubectl(&["delete", "serviceaccount", "shop", "-n", namespace]);
    eventually("the cached result expires", async || match ask(&caller) {
        (401, _) => Ok(()),
        (status, why) => Err(format!("{status} {why}")),
    })
    .await;
}

/// Each forged token is another one, so no verdict on one answers for the next.
pub async fn a_flood_of_forged_callers_holds_up_no_other(site: &Site) {
    // More than the API server reviews in the time for which a caller waits.
    const FLOOD: usize = 3000;
    raise_open_files();
    let _controller = site.controller(&[]).ready().await;
    let verifier = site.verifier(&[]).ready().await;
    let space = site.namespace("forged").await;
    let token = space.active("t", json!({"scopes": ["orders:*"]})).await;
    site.kubectl(&["create", "serviceaccount", "shop", "-n", &space.name]);
    let account = format!("--serviceaccount={}:shop", space.name);
    site.kubectl(&["create", "clusterrolebinding", &space.name, "--clusterrole=tokenward-caller", &account]);
    let new_caller = async || {
        let requested = TokenRequest {
            spec: TokenRequestSpec { audiences: vec!["tokenward".to_owned()], ..Default::default() },
            ..Default::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(site.client.clone(), &space.name);
        let created = accounts.create_token_request("shop", &PostParams::default(), &requested).await;
        created.expect("a token").status.expect("a status").token
    };
    let caller = new_caller().await;
    let url = format!("http://{}/v1/verify", verifier.listen);
    let body = json!({"token": token}).to_string();
    let ask = async |client: &reqwest::Client, caller: &str| {
        let request = client.post(&url).bearer_auth(caller).header("content-type", "application/json");
        request.body(body.clone()).send().await.map(|answer| answer.status().as_u16())
    };
    let good = reqwest::Client::new();
    let succeeds = async |caller: &str| match ask(&good, caller).await {
        Ok(200) => Ok(()),
        answer => Err(format!("{answer:?}")),
    };
    eventually("a known caller", async || succeeds(&caller).await).await;
    let flood = reqwest::Client::builder().pool_max_idle_per_host(FLOOD).build().expect("a client");
    let (head, _) = caller.rsplit_once('.').expect("a JWT");
    let end = Instant::now() + Duration::from_secs(45);
    let forge = async |from: usize| {
        let mut answers = BTreeMap::<u16, u32>::new();
        for number in (from..).step_by(FLOOD) {
            if Instant::now() > end {
                break;
            }
            // A connection that had to wait for long before its first request is closed.
            if let Ok(status) = ask(&flood, &format!("{head}.{number:0342}")).await {
                *answers.entry(status).or_default() += 1;
            }
        }
        answers
    };
    // For longer than a verdict is kept, so that the known caller is asked about again; and callers that are new.
    let others = async {
        while Instant::now() < end {
            assert_eq!(succeeds(&caller).await, Ok(()), "a known caller");
            // The flood takes all of the processor. Behind a queue of reviews, though, a new caller would never be in time.
            let new = new_caller().await;
            eventually("a new caller", async || succeeds(&new).await).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (answers, ()) = futures::future::join(futures::future::join_all((0..FLOOD).map(forge)), others).await;
    let statuses: BTreeSet<u16> = answers.iter().flat_map(BTreeMap::keys).copied().collect();
    assert_eq!(statuses, BTreeSet::from([401]));
}
