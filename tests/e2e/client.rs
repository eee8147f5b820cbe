//! Pods with a token: one reads it from a file for each request and continuously sends checks, as a gateway would;
//! another has it in its environment.

use serde_json::json;

use crate::stage::{BUSYBOX, Stage};
use testkit::{Space, eventually};

/// Sends checks for ever, and logs the status line of each response, or an empty line.
const CHECK_LOOP: &str = r#"
url="http://tokenward-verifier.tokenward.svc:8080/auth?scope=orders:read"
while :; do
    token=$(cat /run/secrets/tokenward/token)
    answer=$(timeout 5 wget -S -O /dev/null --header "Authorization: Bearer $token" "$url" 2>&1 || true)
    echo "answer: $(echo "$answer" | grep -o -m 1 "HTTP/1.1 [0-9]*")"
    sleep 0.05
done
"#;

/// A Deployment with one pod.
pub struct Client<'s> {
    stage: &'s Stage,
    namespace: &'s str,
    name: &'static str,
}

impl<'s> Client<'s> {
    /// A pod that mounts a Secret and sends checks with its token.
    pub fn mounting(stage: &'s Stage, space: &'s Space, secret: &str) -> Self {
        let container = json!({
            "command": ["sh", "-c", CHECK_LOOP],
            "volumeMounts": [{ "name": "token", "mountPath": "/run/secrets/tokenward", "readOnly": true }],
        });
        let volumes = json!([{ "name": "token", "secret": { "secretName": secret } }]);
        Self::start(stage, space, "client", container, volumes)
    }

    /// A pod that has a Secret's token in an environment variable, and does nothing with it.
    pub fn with_variable(stage: &'s Stage, space: &'s Space, secret: &str) -> Self {
        let reference = json!({ "secretKeyRef": { "name": secret, "key": "token" } });
        let container = json!({
            "command": ["sleep", "infinity"],
            "env": [{ "name": "TOKEN", "valueFrom": reference }],
        });
        Self::start(stage, space, "variable", container, json!([]))
    }

    fn start(
        stage: &'s Stage,
        space: &'s Space,
        name: &'static str,
        mut container: serde_json::Value,
        volumes: serde_json::Value,
    ) -> Self {
        container["name"] = json!(name);
        container["image"] = json!(BUSYBOX);
        container["securityContext"] =
            json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        let labels = json!({ "app": name });
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "securityContext": {
                            "runAsNonRoot": true,
                            "runAsUser": 65532,
                            "seccompProfile": { "type": "RuntimeDefault" },
                        },
                        "containers": [container],
                        "volumes": volumes,
                    },
                },
            },
        });
        let client = Self { stage, namespace: &space.name, name };
        client.kubectl(&format!("apply -f - <<'EOF'\n{object}\nEOF"));
        client.wait();
        client
    }

    /// Waits until its newest pod is ready.
    pub fn wait(&self) {
        self.kubectl(&format!("rollout status --timeout=120s deployment/{}", self.name));
    }

    /// Restarts the pod, and waits until the old one is gone.
    pub fn restart(&self) {
        self.kubectl(&format!("rollout restart deployment/{}", self.name));
        self.wait();
        // Until then, `exec` could choose the old one.
        let gone =
            format!("[ $(kubectl get pods -n {} -l app={} -o name | wc -l) = 1 ]", self.namespace, self.name);
        self.stage.sh(&format!("for i in $(seq 100); do {gone} && exit; sleep 0.2; done; exit 1"));
    }

    /// Runs a command in its container; returns what it printed.
    pub fn exec(&self, command: &str) -> String {
        self.kubectl(&format!("exec deployment/{} -- {command}", self.name))
    }

    /// The value of the variable in its container.
    pub fn variable(&self) -> String {
        let environment = self.exec("env");
        environment.lines().find_map(|line| line.strip_prefix("TOKEN=")).unwrap_or_default().to_owned()
    }

    /// The statuses of all checks so far. `None`: there was no response.
    pub fn answers(&self) -> Vec<Option<u16>> {
        let log = self.kubectl(&format!("logs --tail=-1 deployment/{}", self.name));
        let lines = log.lines().filter_map(|line| line.strip_prefix("answer: "));
        lines.map(|line| line.rsplit(' ').next().and_then(|status| status.parse().ok())).collect()
    }

    /// Waits until there are this many more responses.
    pub async fn answered(&self, more: usize) {
        let before = self.answers().len();
        eventually("answers", async || {
            let answers = self.answers();
            if answers.len() >= before + more { Ok(()) } else { Err(format!("{answers:?}")) }
        })
        .await;
    }

    fn kubectl(&self, arguments: &str) -> String {
        self.stage.sh(&format!("kubectl -n {} {arguments}", self.namespace))
    }
}
