//! The published libraries of Standard Webhooks verify real deliveries: in Python (by the receiver of
//! `examples/webhooks`, unchanged), JavaScript and Go.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use devcluster::process::Guarded;
use serde_json::{Value, json};

use crate::stage::Stage;
use testkit::eventually;

/// The key of the receivers.
const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// The key of a forger.
const OTHER_KEY: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A program that prints its port, and then a line for each event that it has verified.
struct Receiver {
    _process: Guarded,
    port: u16,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start(mut command: Command, key: &str) -> Self {
        command.env("WEBHOOK_KEY", key).env("RECEIVER_LISTEN", "127.0.0.1:0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Guarded::spawn(command).expect("a receiver");
        let mut stdin = process.take_stdin().expect("its input");
        // Ignored: a receiver that reads its key elsewhere may have closed its stdin.
        let _ = stdin.write_all(key.as_bytes());
        drop(stdin);
        let mut lines = BufReader::new(process.take_stdout().expect("its output")).lines();
        let port = lines.next().expect("a port").expect("a line").parse().expect("a port");
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let seen = events.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).expect("a line of JSON");
                seen.lock().expect("a lock").push(line["event"].clone());
            }
        });
        Self { _process: process, port, events }
    }

    fn types_of(&self, token: &str) -> Vec<String> {
        let events = self.events.lock().expect("a lock");
        let of_token = events.iter().filter(|event| event["data"]["name"] == token);
        of_token.filter_map(|event| event["type"].as_str().map(str::to_owned)).collect()
    }
}

pub fn python_verifies(stage: &Stage) {
    let mut command = stage.python.program("python");
    command.arg(folder("examples/webhooks/receiver.py"));
    verifies(stage, "python", command);
}

pub fn javascript_verifies(stage: &Stage) {
    let (source, work) = (folder("tests/contract/receivers/javascript"), work("javascript"));
    for file in ["package.json", "package-lock.json", "receiver.js"] {
        std::fs::copy(source.join(file), work.join(file)).expect("a copy");
    }
    run(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&work));
    let mut command = Command::new("node");
    command.arg("receiver.js").current_dir(&work);
    verifies(stage, "javascript", command);
}

pub fn go_verifies(stage: &Stage) {
    let (source, binary) = (folder("tests/contract/receivers/go"), work("go").join("receiver"));
    run(Command::new("go").arg("build").arg("-o").arg(&binary).arg(".").current_dir(source));
    verifies(stage, "go", Command::new(binary));
}

/// A receiver with the right key receives the events of a token; the library rejects what another key has signed.
fn verifies(stage: &Stage, language: &str, command: Command) {
    let receiver = Receiver::start(command, KEY);
    stage.runtime.block_on(async {
        for (name, key) in [(language.to_owned(), KEY), (format!("{language}-forged"), OTHER_KEY)] {
            create(stage, &name, key, receiver.port).await;
        }
        let token = format!("of-{language}");
        stage.space.active(&token, json!({"scopes": ["a:b"]})).await;
        stage.space.patch(&token, json!({"spec": {"revoked": true}})).await;
        eventually("the events", async || {
            let types = receiver.types_of(&token);
            if types == ["token.created", "token.revoked"] { Ok(()) } else { Err(format!("{types:?}")) }
        })
        .await;
        eventually("a rejection of the forged events", async || {
            let arguments = ["get", "tokenwebhook", &format!("{language}-forged"), "-n", &stage.space.name];
            let line = stage.kubectl(&arguments);
            if line.contains("ClientError") { Ok(()) } else { Err(line) }
        })
        .await;
        assert_eq!(receiver.types_of(&token), ["token.created", "token.revoked"], "a forged one passed");
        let events = receiver.events.lock().expect("a lock").clone();
        let revoked = events.iter().find(|event| event["type"] == "token.revoked").expect("it");
        assert_eq!(revoked["data"]["namespace"], stage.space.name.as_str());
        assert_eq!(revoked["data"]["scopes"], json!(["a:b"]));
    });
}

/// Creates a TokenWebhook that signs with a key, and waits until it is ready.
async fn create(stage: &Stage, name: &str, key: &str, port: u16) {
    let manifest = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": key},
        },
        {
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook", "metadata": {"name": name},
            "spec": {
                "url": format!("http://127.0.0.1:{port}/"),
                "events": ["token.created", "token.revoked"],
                "signing": {"secretRef": {"name": name, "key": "key"}},
            },
        },
    ]});
    let file = work(name).join("manifest.json");
    std::fs::write(&file, manifest.to_string()).expect("a manifest");
    stage.kubectl(&["apply", "-n", &stage.space.name, "-f", &file.display().to_string()]);
    let resource = format!("tokenwebhook/{name}");
    stage.kubectl(&["wait", "-n", &stage.space.name, "--for=condition=Ready", &resource, "--timeout=60s"]);
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn work(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("webhooks").join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    let status =
        status.unwrap_or_else(|error| panic!("{command:?}: {error}; install Go, and Node.js with npm"));
    assert!(status.success(), "{command:?}: {status}");
}
