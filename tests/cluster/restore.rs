//! Restores, as docs/restore.md says: what worked works, and what was revoked does not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenward_core::crd::{ConditionType, RevocationSource, VersionState};
use tokenward_core::tombstone::{TOMBSTONE_BYTES, TokenIdentity};

use crate::checkpoint;
use crate::faults::clock;
use testkit::{Process, Site, Space, condition, eventually};

const RUNBOOK: &str = include_str!("../../docs/restore.md");

/// The commands of the runbook under this name.
fn commands(name: &str) -> &'static str {
    let start = format!("```sh {name}\n");
    let (_, block) =
        RUNBOOK.split_once(&start).unwrap_or_else(|| panic!("docs/restore.md has no block {name}"));
    block.split_once("```").expect("the end of a block").0
}

/// Follows the runbook by the letter, in a folder.
fn follow(site: &Site, folder: &Path, blocks: &[&str]) {
    let commands: String = blocks.iter().map(|name| commands(name)).collect();
    let kubectl = site.cluster.kubectl();
    let program = Path::new(kubectl.get_program()).parent().expect("the folder of kubectl");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("PATH"));
    let environment = kubectl.get_envs().filter_map(|(key, value)| Some((key, value?)));
    let output = Command::new("sh")
        .args(["-e", "-c", &commands])
        .envs(environment)
        .env("PATH", path)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("sh");
    assert!(output.status.success(), "{commands}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A controller by whose clock it is two minutes ago, so that what it issues is old at once.
fn controller(site: &Site) -> Process {
    let library = programs::faketime().expect("libfaketime").display().to_string();
    site.controller_with(&["--lease-duration", "3s"], &clock(&library, "-120"))
}

async fn revoke(space: &Space, name: &str) {
    space.patch(name, json!({"spec": {"revoked": true}})).await;
    space.reason(name, ConditionType::Revoked, "Enforced").await;
}

fn ledger(site: &Site) -> Api<ConfigMap> {
    Api::namespaced(site.client.clone(), "tokenward")
}

/// Waits until the ledger has a revoked token.
pub async fn is_in_ledger(space: &Space, site: &Site, name: &str) {
    let token_id = space.get(name).await.status.and_then(|status| status.token_id).expect("an id");
    let tombstone = TokenIdentity { namespace: &space.name, name, token_id: &token_id }.token();
    eventually("the tombstone in the ledger", async || {
        if tombstones(site).await.contains(tombstone.as_bytes()) { Ok(()) } else { Err(name.to_owned()) }
    })
    .await;
}

/// The number of tombstones that are stored.
async fn stored(site: &Site) -> usize {
    tombstones(site).await.len()
}

async fn tombstones(site: &Site) -> Vec<[u8; TOMBSTONE_BYTES]> {
    let pages = ledger(site).list(&ListParams::default().labels("tokenward.dev/ledger=true")).await;
    let data = pages.expect("a list").items.into_iter().flat_map(|page| page.binary_data.unwrap_or_default());
    data.flat_map(|(_, data)| data.0.as_chunks().0.to_vec()).collect()
}

async fn has_stored(site: &Site, at_least: usize) {
    eventually("the tombstones in the ledger", async || {
        let stored = stored(site).await;
        if stored >= at_least { Ok(()) } else { Err(format!("{stored} of {at_least}")) }
    })
    .await;
}

/// A cluster is lost, and its objects are created again from a dump: by names, without uids and statuses.
pub async fn what_is_restored_by_the_api_works_unless_it_was_revoked(site: &Site) {
    let (space, folder) = (site.namespace("restore").await, TempDir::new().expect("a folder"));
    let mut running = controller(site).ready().await;
    let verifier = site.verifier(&[]).ready().await;
    let mut secrets = Vec::new();
    for name in ["living", "rotated", "revoked", "later", "locked", "cut"] {
        secrets.push(space.active(name, json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await);
    }
    let [living, rotated, revoked, later, locked, cut] = &secrets[..] else { unreachable!() };
    space.patch("rotated", json!({"spec": {"rotation": {"trigger": "1"}}})).await;
    let current = space.version("rotated", 2).await;
    revoke(&space, "revoked").await;

    follow(site, folder.path(), &["keep", "save", "save-ledger"]);

    // What was dumped alive, and was revoked before the cluster was lost: by the spec, by a lock, by a cut.
    revoke(&space, "later").await;
    let lock = json!({
        "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenLock",
        "metadata": {"name": "leak", "namespace": space.name},
        "spec": {"action": "Revoke", "match": {"names": ["locked"]}},
    });
    apply(site, &lock);
    space.condition("locked", ConditionType::Revoked, "True").await;
    // Now, by its clock.
    let now = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(120);
    space.patch("cut", json!({"spec": {"rotation": {"notBefore": now.to_string()}}})).await;
    let after_cut = space.version("cut", 2).await;
    assert_eq!(space.get("cut").await.status.expect("a status").versions[1].state, VersionState::Revoked);
    site.kubectl(&["-n", &space.name, "delete", "tokenlock", "leak"]);
    has_stored(site, 4).await;
    follow(site, folder.path(), &["keep", "save-ledger"]);

    // The cluster is lost: what is deleted is created again while nobody watches.
    let ids: Vec<_> = token_ids(&space).await;
    running.kill();
    drop(running);
    site.kubectl(&["-n", &space.name, "delete", "apitokens,secrets", "--all", "--wait=false"]);
    site.kubectl(&["-n", "tokenward", "delete", "configmaps", "-l", "tokenward.dev/ledger=true"]);
    eventually("the tokens gone", async || {
        let left = site.kubectl(&["-n", &space.name, "get", "apitokens", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    follow(site, folder.path(), &["keep", "restore"]);
    let _running = controller(site).ready().await;

    for (name, secret) in [("living", living), ("rotated", &current)] {
        space.condition(name, ConditionType::Ready, "True").await;
        verifier.answers(secret, "scope=a:b", 200).await;
        assert_eq!(&space.secret_of(name).await, secret, "{name}: nothing is minted");
        space.has_events(name, &["Rebuilt"]).await;
        // Sealed for the object that there is now.
        space.patch_status(name, json!({"status": null})).await;
        space.condition(name, ConditionType::Ready, "True").await;
        verifier.answers(secret, "scope=a:b", 200).await;
    }
    assert_eq!(token_ids(&space).await[..2], ids[..2], "the same tokens");
    assert_eq!(verifier.check(rotated, "").await, 401, "only what the Secret contains comes back");
    // The others are new tokens, but for the one whose manifest says that it is revoked.
    space.reason("revoked", ConditionType::Revoked, "Enforced").await;
    for (name, secret) in [("later", later), ("locked", locked), ("cut", cut)] {
        space.condition(name, ConditionType::Ready, "True").await;
        verifier.answers(&space.secret_of(name).await, "scope=a:b", 200).await;
        assert_eq!(verifier.check(secret, "").await, 401, "{name}");
    }
    let late = site.verifier(&[]).ready().await;
    for secret in [revoked, later, locked, cut, &after_cut, rotated] {
        assert_eq!(late.check(secret, "").await, 401, "at one that has just started");
    }

    // Into another namespace, where it is another token.
    let elsewhere = site.namespace("elsewhere").await;
    let dump = std::fs::read_to_string(folder.path().join("secrets.json")).expect("the dump");
    let dump = dump.replace(
        &format!("\"namespace\": \"{}\"", space.name),
        &format!("\"namespace\": \"{}\"", elsewhere.name),
    );
    let mut copies: Value = serde_json::from_str(&dump).expect("JSON");
    let items = copies["items"].as_array_mut().expect("items");
    items.retain(|secret| {
        secret["metadata"]["namespace"] == elsewhere.name.as_str() && secret["metadata"]["name"] == "living"
    });
    assert_eq!(items.len(), 1);
    apply(site, &copies);
    elsewhere.create("living", json!({"scopes": ["a:b"]})).await;
    elsewhere.condition("living", ConditionType::Ready, "True").await;
    let minted = elsewhere.secret_of("living").await;
    assert_ne!(&minted, living);
    verifier.answers(&minted, "scope=a:b", 200).await;
}

async fn token_ids(space: &Space) -> Vec<Option<String>> {
    let mut ids = Vec::new();
    for name in ["living", "rotated"] {
        ids.push(space.get(name).await.status.and_then(|status| status.token_id));
    }
    ids
}

fn apply(site: &Site, object: &Value) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), object.to_string()).expect("a file");
    site.kubectl(&["apply", "-f", &file.path().display().to_string()]);
}

/// etcd is set back under running processes, and again under ones that have just started and know only what is stored.
pub async fn an_older_etcd_revives_nothing(site: &Site) {
    let (space, folder) = (site.namespace("etcd").await, TempDir::new().expect("a folder"));
    let mut controller = site.controller(&["--lease-duration", "3s"]).ready().await;
    let verifier = site.verifier(&[]).ready().await;
    let living = space.active("living", json!({"scopes": ["a:b"]})).await;
    let revoked = space.active("revoked", json!({"scopes": ["a:b"]})).await;
    let cut = space.active("cut", json!({"scopes": ["a:b"]})).await;
    let snapshot = folder.path().join("snapshot.db");
    site.cluster.save_etcd(&snapshot).expect("a snapshot");

    revoke(&space, "revoked").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    space
        .patch("cut", json!({"spec": {"rotation": {"notBefore": jiff::Timestamp::now().to_string()}}}))
        .await;
    space.version("cut", 2).await;
    has_stored(site, 2).await;
    follow(site, folder.path(), &["keep", "save-ledger"]);

    // Under running processes.
    let restored = site.cluster.restore_etcd(&snapshot);
    let refused =
        async || assert_eq!([verifier.check(&revoked, "").await, verifier.check(&cut, "").await], [401, 401]);
    refused().await;
    restored.expect("a restore");
    let token = space.until("revoked", "the ledger's revocation", |token| {
        let revocation = token.status.as_ref().and_then(|status| status.revocation.as_ref());
        revocation.is_some_and(|revocation| revocation.source == RevocationSource::Ledger)
    });
    token.await;
    let told = space.reason("revoked", ConditionType::Revoked, "Enforced").await;
    let (_, message) = condition(&told, ConditionType::Revoked).expect("Revoked");
    assert!(message.contains("by the ledger, as it was revoked before a restore"), "{message}");
    refused().await;
    let new = space.version("cut", 2).await;
    verifier.answers(&new, "scope=a:b", 200).await;
    refused().await;
    verifier.answers(&living, "scope=a:b", 200).await;
    has_stored(site, 2).await;

    // Of those that start anew, only one with a checkpoint remembers; the runbook brings the ledger back.
    controller.kill();
    let checkpoints = folder.path().join("checkpoints");
    std::fs::create_dir(&checkpoints).expect("a folder");
    checkpoint::keeping(site, &checkpoints).await.kill();
    site.cluster.restore_etcd(&snapshot).expect("a restore");
    let remembers = checkpoint::keeping(site, &checkpoints).await;
    assert_eq!([remembers.check(&revoked, "").await, remembers.check(&living, "").await], [401, 200]);
    let late = site.verifier(&[]).ready().await;
    assert_eq!(
        late.check(&revoked, "").await,
        200,
        "what the runbook says of a verifier that has just started"
    );
    let late_controller = site.controller(&["--lease-duration", "3s"]).ready().await;
    let ledger = folder.path().join("ledger.json").display().to_string();
    site.kubectl(&["apply", "-f", &ledger]);
    late.answers(&revoked, "", 401).await;
    late.answers(&cut, "", 401).await;
    late.answers(&living, "scope=a:b", 200).await;
    space.reason("revoked", ConditionType::Revoked, "Enforced").await;
    assert_eq!(late_controller.metric("tokenward_ledger_unwritten").await, 0.0);
    refused().await;
}

/// An object that is gone before the controller has handled its revocation leaves no status to take a tombstone from.
pub async fn what_is_revoked_and_deleted_at_once_is_in_the_ledger(site: &Site) {
    let space = site.namespace("at-once").await;
    let _controller = site.controller(&[]).ready().await;
    let before = stored(site).await;
    for number in 0..10 {
        let name = format!("t{number}");
        space.active(&name, json!({"scopes": ["a:b"]})).await;
        space.patch(&name, json!({"spec": {"revoked": true}})).await;
        space.delete(&name).await;
    }
    has_stored(site, before + 10).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stored(site).await, before + 10, "each once");
}
