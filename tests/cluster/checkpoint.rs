//! A verifier that is started again goes on from its checkpoint, and answers nothing that it would not answer after a list.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use testkit::{Process, Site, eventually};

use crate::proof::controller;

const LISTED: &str = "listed ApiTokens";
const CAUGHT_UP: &str = "what has happened since the checkpoint is known";

/// A verifier with its checkpoint in this folder, once it has written one.
pub(crate) async fn keeping(site: &Site, folder: &Path) -> Process {
    let folder = folder.display().to_string();
    let verifier =
        site.verifier(&["--checkpoint-dir", &folder, "--checkpoint-min-tokens", "0"]).ready().await;
    is_written(&verifier).await;
    verifier
}

async fn is_written(verifier: &Process) {
    eventually("a checkpoint is written", async || {
        let at = verifier.metric("tokenward_checkpoint_timestamp_seconds").await;
        if at > 0.0 { Ok(()) } else { Err(verifier.log()) }
    })
    .await;
}

pub async fn a_verifier_that_is_killed_goes_on_from_its_checkpoint(site: &Site) {
    let (space, folder) = (site.namespace("checkpoint").await, TempDir::new().expect("a folder"));
    let _controller = controller(site, &space, &[]).await;
    let mut texts = Vec::new();
    for name in ["stays", "revoked", "deleted"] {
        texts.push(space.active(name, json!({"scopes": ["a:b"]})).await);
    }
    let mut verifier = keeping(site, folder.path()).await;
    assert!(verifier.log().contains(LISTED), "{}", verifier.log());

    // What happens while there is none.
    verifier.kill();
    space.patch("revoked", json!({"spec": {"revoked": true}})).await;
    space.delete("deleted").await;
    texts.push(space.active("new", json!({"scopes": ["a:b"]})).await);
    let answers = async |verifier: &Process| {
        let mut answers = Vec::new();
        for text in &texts {
            answers.push(verifier.check(text, "scope=a:b").await);
        }
        answers
    };
    // Its first answers count.
    let mut again = keeping(site, folder.path()).await;
    assert_eq!(answers(&again).await, [200, 401, 401, 200]);
    let log = again.log();
    assert!(log.contains(CAUGHT_UP) && !log.contains(LISTED), "{log}");

    // It goes on to follow them.
    space.patch("new", json!({"spec": {"suspend": true}})).await;
    again.answers(&texts[3], "", 401).await;

    // A file that is damaged is worth nothing, and does no harm.
    again.kill();
    let file = folder.path().join("index.checkpoint");
    let mut bytes = std::fs::read(&file).expect("a checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("a damaged checkpoint");
    let mut third = keeping(site, folder.path()).await;
    assert_eq!(answers(&third).await, [200, 401, 401, 401]);
    let log = third.log();
    assert!(log.contains("it is not whole, or was not written under this pepper"), "{log}");
    assert!(log.contains(LISTED) && !log.contains(CAUGHT_UP), "{log}");
    third.kill();
}

/// Checks are answered all the same.
pub async fn a_checkpoint_that_can_not_be_written_stops_nothing(site: &Site) {
    let (space, folder) = (site.namespace("checkpoint-unwritten").await, TempDir::new().expect("a folder"));
    let _controller = controller(site, &space, &[]).await;
    let text = space.active("t", json!({"scopes": ["a:b"]})).await;
    let none = folder.path().join("none").display().to_string();
    let verifier = site.verifier(&["--checkpoint-dir", &none]).ready().await;
    verifier.answers(&text, "scope=a:b", 200).await;
    eventually("it is told", async || {
        let log = verifier.log();
        if log.contains("the checkpoint can't be written") { Ok(()) } else { Err(log) }
    })
    .await;
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    verifier.answers(&text, "", 401).await;
    assert_eq!(verifier.metric("tokenward_checkpoint_timestamp_seconds").await, 0.0);
}
