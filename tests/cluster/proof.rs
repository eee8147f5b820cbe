//! A revocation, or a lock, is called enforced once every verifier has confirmed it.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use tokenward_core::crd::{ApiToken, ConditionType, TokenLockStatus, find_condition};
use tokio::sync::watch;

use crate::at_least::behind_gate;
use crate::faults::clock;
use crate::lock;
use testkit::{Process, Site, Space, condition, eventually, has};

/// A controller of a namespace alone, which asks verifiers at these telemetry addresses, if there are any.
pub(crate) async fn controller(site: &Site, space: &Space, verifiers: &[SocketAddr]) -> Process {
    let verifiers = verifiers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    let name = space.name.as_str();
    let mut flags = vec!["--watch-namespaces", name, "--lease-name", name, "--identity", name];
    if !verifiers.is_empty() {
        flags.extend(["--verifiers", &verifiers]);
    }
    site.controller_as_admin(&flags, &[]).ready().await
}

fn signal(process: &Process, signal: &str) {
    let status = Command::new("kill").args([signal, &process.pid().to_string()]).status();
    assert!(status.expect("kill").success());
}

fn verifiers(token: &ApiToken) -> Option<(i64, i64)> {
    let count = token.status.as_ref()?.revocation.as_ref()?.verifiers?;
    Some((count.asked, count.confirmed))
}

fn enforced(status: &TokenLockStatus) -> (String, String) {
    let condition = find_condition(&status.conditions, ConditionType::Enforced).expect("Enforced");
    (condition.reason.clone(), condition.message.clone())
}

pub async fn a_revocation_is_enforced_once_every_verifier_has_confirmed_it(site: &Site) {
    let space = site.namespace("proof").await;
    // Ready once there is a pepper, which the controller makes.
    let three = [site.verifier(&[]), site.verifier(&[]), site.verifier(&[])];
    let controller = controller(site, &space, &three.each_ref().map(|verifier| verifier.telemetry)).await;
    for name in ["first", "second", "third"] {
        space.active(name, json!({"scopes": ["a:b"]})).await;
    }
    let token = space.secret_of("first").await;
    let writes = controller.metric("tokenward_status_writes_total").await;
    space.patch("first", json!({"spec": {"revoked": true}})).await;
    let first = space.reason("first", ConditionType::Enforced, "Confirmed").await;
    assert_eq!(verifiers(&first), Some((3, 3)));
    let (_, text) = condition(&first, ConditionType::Enforced).expect("Enforced");
    assert!(text.starts_with("3 of 3 verifiers had confirmed by "), "{text}");
    assert!(first.status.expect("a status").revocation.expect("a revocation").enforced_at.is_some());
    for verifier in &three {
        assert_eq!(verifier.check(&token, "").await, 401, "it has confirmed");
    }
    let writes = controller.metric("tokenward_status_writes_total").await - writes;
    assert!(writes <= 2.0, "{writes} status writes");

    // One that hangs is named, and delays nobody: the spec is realised as far as the controller can.
    signal(&three[2], "-STOP");
    space.patch("second", json!({"spec": {"revoked": true}})).await;
    let second = space.reason("second", ConditionType::Enforced, "Unconfirmed").await;
    assert_eq!(verifiers(&second), Some((3, 2)));
    let (_, text) = condition(&second, ConditionType::Enforced).expect("Enforced");
    let address = three[2].telemetry.to_string();
    let expected = format!("2 of 3 verifiers have confirmed it; {address} is silent since ");
    assert!(text.starts_with(&expected) && text.contains("--stale-policy serve"), "{text}");
    assert!(has(&second, ConditionType::Ready, "True"), "{second:?}");
    assert_eq!(second.status.expect("a status").revocation.expect("a revocation").enforced_at, None);
    // Nor is a lock in force that it has not seen.
    lock::create(&space, "l", json!({"match": {"names": ["third"]}, "action": "Suspend"})).await;
    let status = eventually("the lock is told to be unconfirmed", async || {
        let lock = lock::locks(&space).get("l").await.expect("a lock");
        let status = lock.status.unwrap_or_default();
        if status.verifiers.is_some_and(|count| count.confirmed == 2) {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let (reason, text) = enforced(&status);
    assert_eq!(reason, "Unconfirmed");
    assert!(text.contains(&address), "{text}");

    signal(&three[2], "-CONT");
    assert_eq!(verifiers(&space.reason("second", ConditionType::Enforced, "Confirmed").await), Some((3, 3)));
    eventually("the lock is confirmed", async || {
        let lock = lock::locks(&space).get("l").await.expect("a lock");
        let status = lock.status.unwrap_or_default();
        if status.enforced_at.is_some() { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    lock::delete(&space, "l").await;
}

/// Neither one that starts in the middle of a revocation nor one that is gone makes a false proof.
pub async fn a_verifier_that_starts_late_counts_once_it_knows_all(site: &Site) {
    let space = site.namespace("proof-late").await;
    let first = site.verifier(&[]);
    // Where nothing listens yet.
    let late = testkit::free_port();
    let _controller = controller(site, &space, &[first.telemetry, late]).await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let token = space.secret_of("t").await;
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    let unconfirmed = space.reason("t", ConditionType::Enforced, "Unconfirmed").await;
    assert_eq!(verifiers(&unconfirmed), Some((2, 1)));
    let (_, text) = condition(&unconfirmed, ConditionType::Enforced).expect("Enforced");
    assert!(text.contains("it has never answered"), "{text}");
    let listen = testkit::free_port();
    let flags = ["--listen", &listen.to_string(), "--telemetry-listen", &late.to_string(), "--plain-http"];
    let rights = site.rights_of("tokenward-verifier");
    let _second = Process::start("verifier", &rights, &[], &flags, &[]);
    assert_eq!(verifiers(&space.reason("t", ConditionType::Enforced, "Confirmed").await), Some((2, 2)));
    let answer = testkit::client().get(format!("http://{listen}/auth")).bearer_auth(&token).send().await;
    assert_eq!(answer.expect("an answer").status(), 401);
}

/// A verifier that answers and whose watch is held up, as by a proxy that is dead and keeps the connection: it says how far it has
/// come, and that is not far enough.
pub async fn a_verifier_whose_watch_is_held_up_confirms_nothing(site: &Site) {
    let space = site.namespace("proof-held").await;
    let (gate, is_open) = watch::channel(true);
    let kubeconfig = behind_gate(site, is_open).await;
    let ports = ["--telemetry-listen", "--listen"];
    let held = Process::start("verifier", &kubeconfig, &ports, &["--plain-http"], &[]);
    let sound = site.verifier(&[]);
    let _controller = controller(site, &space, &[sound.telemetry, held.telemetry]).await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    for verifier in [&sound, &held] {
        verifier.answers(&token, "", 200).await;
    }
    gate.send_replace(false);
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    let unconfirmed = space.reason("t", ConditionType::Enforced, "Unconfirmed").await;
    assert_eq!(verifiers(&unconfirmed), Some((2, 1)));
    let (_, text) = condition(&unconfirmed, ConditionType::Enforced).expect("Enforced");
    assert!(text.contains(&held.telemetry.to_string()), "{text}");
    assert_eq!((sound.check(&token, "").await, held.check(&token, "").await), (401, 200), "it is true");
    gate.send_replace(true);
    space.reason("t", ConditionType::Enforced, "Confirmed").await;
    assert_eq!(held.check(&token, "").await, 401);
}

/// Nothing that is proved depends on the time of day of whoever proves it.
pub async fn clocks_that_differ_by_a_minute_prove_the_same(site: &Site) {
    let library = programs::faketime().expect("libfaketime").display().to_string();
    for (of_controller, of_verifier) in [("-60", "+60"), ("+60", "-60")] {
        let space = site.namespace("proof-clocks").await;
        let own = site.rights_of("tokenward-verifier");
        let ports = ["--telemetry-listen", "--listen"];
        let verifier =
            Process::start("verifier", &own, &ports, &["--plain-http"], &clock(&library, of_verifier));
        let (name, address) = (space.name.as_str(), verifier.telemetry.to_string());
        let flags =
            ["--watch-namespaces", name, "--lease-name", name, "--identity", name, "--verifiers", &address];
        let _controller = site.controller_as_admin(&flags, &clock(&library, of_controller)).ready().await;
        let mut tokens = Vec::new();
        for name in ["revoked", "locked", "later"] {
            tokens.push(space.active(name, json!({"scopes": ["a:b"]})).await);
        }
        for token in &tokens {
            verifier.answers(token, "", 200).await;
        }
        space.patch("revoked", json!({"spec": {"revoked": true}})).await;
        let confirmed = space.reason("revoked", ConditionType::Enforced, "Confirmed").await;
        assert_eq!(verifiers(&confirmed), Some((1, 1)));
        lock::create(&space, "l", json!({"match": {"names": ["locked"]}, "action": "Revoke"})).await;
        verifier.answers(&tokens[1], "", 401).await;
        space.reason("locked", ConditionType::Enforced, "Confirmed").await;
        lock::reason(&space, "l", "Revoked").await;
        assert_eq!(verifier.check(&tokens[2], "").await, 200, "{of_controller} {of_verifier}");
        lock::delete(&space, "l").await;
    }
}

/// The API server goes away while a revocation and a lock are being recorded, and is not asked for what was there before.
pub async fn an_api_server_that_restarts_holds_up_a_proof_and_no_more(site: &Site) {
    let space = site.namespace("proof-restart").await;
    let three = [site.verifier(&[]), site.verifier(&[]), site.verifier(&[])];
    let _controller = controller(site, &space, &three.each_ref().map(|verifier| verifier.telemetry)).await;
    let mut tokens = Vec::new();
    for number in 0..20 {
        tokens.push(space.active(&format!("t{number}"), json!({"scopes": ["a:b"]})).await);
    }
    for verifier in &three {
        for token in &tokens {
            verifier.answers(token, "", 200).await;
        }
    }
    for (round, locked) in [false, true, false, true].into_iter().enumerate() {
        let mine = round * 5..(round + 1) * 5;
        if locked {
            let names: Vec<_> = mine.clone().map(|number| format!("t{number}")).collect();
            let matches = json!({"match": {"names": names}, "action": "Revoke"});
            lock::create(&space, &format!("l{round}"), matches).await;
        } else {
            for number in mine.clone() {
                space.patch(&format!("t{number}"), json!({"spec": {"revoked": true}})).await;
            }
        }
        site.cluster.restart_apiserver().expect("a restart");
        for number in mine {
            let name = format!("t{number}");
            let confirmed = space.reason(&name, ConditionType::Enforced, "Confirmed").await;
            assert_eq!(verifiers(&confirmed), Some((3, 3)), "{name}");
            for verifier in &three {
                assert_eq!(verifier.check(&tokens[number], "").await, 401, "{name} has been confirmed");
            }
        }
        for token in &tokens[(round + 1) * 5..] {
            assert_eq!(three[0].check(token, "").await, 200, "the others");
        }
    }
}
