//! Starts real control planes, and tests what other tests rely on: a working API, faults that can be undone, and
//! nothing left behind, however the owner ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "the harness shows it with --nocapture")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use devcluster::process::Guarded;
use devcluster::{Cluster, Error, Options};

/// Set in the process that is to be killed.
const OWNER: &str = "DEVCLUSTER_TEST_OWNER";

#[test]
fn a_control_plane_works_recovers_and_leaves_nothing() {
    let start = Instant::now();
    let cluster = Cluster::start(Options::default()).unwrap();
    println!("started in {:?}", start.elapsed());
    let folder = cluster.dir().to_owned();
    assert!(!cluster.is_external());
    assert_eq!(cluster.processes().len(), 3);

    kubectl(cluster.kubectl(), "create namespace demo").unwrap();
    identities(&cluster);
    collects_garbage(&cluster);
    faults(&cluster);
    kubectl(cluster.kubectl(), "get namespace demo").unwrap();

    let stop = Instant::now();
    cluster.stop().unwrap();
    println!("stopped in {:?}", stop.elapsed());
    assert!(!folder.exists());
    assert_eq!(processes_naming(&folder), [""; 0]);
}

fn identities(cluster: &Cluster) {
    let whoami = "auth whoami --output jsonpath={.status.userInfo.username}";
    let account = cluster.kubeconfig_for_service_account("default", "default").unwrap();
    assert_eq!(
        kubectl(cluster.kubectl_as(&account), whoami).unwrap(),
        "system:serviceaccount:default:default"
    );
    assert!(kubectl(cluster.kubectl_as(&account), "get namespaces").unwrap_err().contains("Forbidden"));

    let user = cluster.kubeconfig_for_user("alice", Some("team-a")).unwrap();
    assert_eq!(kubectl(cluster.kubectl_as(&user), whoami).unwrap(), "alice");
    let groups = "auth whoami --output jsonpath={.status.userInfo.groups}";
    assert!(kubectl(cluster.kubectl_as(&user), groups).unwrap().contains("team-a"));

    let missing = cluster.kubeconfig_for_service_account("default", "nobody").unwrap_err();
    assert!(missing.to_string().starts_with("`kubectl create token nobody"), "{missing}");
}

fn collects_garbage(cluster: &Cluster) {
    kubectl(cluster.kubectl(), "create configmap owner").unwrap();
    let uid = kubectl(cluster.kubectl(), "get configmap owner --output jsonpath={.metadata.uid}").unwrap();
    let owned = format!(
        r#"{{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "owned", "ownerReferences":
        [{{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "{uid}"}}]}}}}"#
    );
    let path = cluster.dir().join("owned.json");
    fs::write(&path, owned).unwrap();
    kubectl(cluster.kubectl(), &format!("create --filename {}", path.display())).unwrap();
    kubectl(cluster.kubectl(), "delete configmap owner").unwrap();
    kubectl(cluster.kubectl(), "wait --for=delete configmap/owned --timeout=20s").unwrap();
}

fn faults(cluster: &Cluster) {
    cluster.stop_apiserver().unwrap();
    assert_eq!(cluster.processes().len(), 2);
    assert!(matches!(cluster.pause_apiserver(), Err(Error::ApiserverStopped)));
    assert!(kubectl(cluster.kubectl(), "get namespaces").unwrap_err().contains("refused"));
    let start = Instant::now();
    cluster.start_apiserver().unwrap();
    println!("started again in {:?}", start.elapsed());
    assert!(matches!(cluster.start_apiserver(), Err(Error::ApiserverRunning)));

    cluster.pause_apiserver().unwrap();
    kubectl(cluster.kubectl(), "get namespaces --request-timeout=200ms").unwrap_err();
    cluster.resume_apiserver().unwrap();
    kubectl(cluster.kubectl(), "get namespaces").unwrap();
    cluster.restart_apiserver().unwrap();
}

#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "owner", "--nocapture", "--test-threads=1"])
        .env(OWNER, "1")
        .stdout(Stdio::piped());
    let mut owner = Guarded::spawn(command).unwrap();
    let mut lines = BufReader::new(owner.take_stdout().unwrap()).lines();
    // The test harness prints on that line too.
    let folder = lines.find_map(|line| Some(line.unwrap().split_once("folder=")?.1.to_owned())).unwrap();
    let folder = Path::new(&folder);
    assert!(processes_naming(folder).len() >= 2);

    // The owner alone, by SIGKILL: none of its destructors runs.
    Command::new("kill").args(["-KILL", &owner.pid().to_string()]).status().unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    while folder.exists() || !processes_naming(folder).is_empty() {
        assert!(Instant::now() < deadline, "left: {folder:?}, {:?}", processes_naming(folder));
        thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test: the process that `nothing_is_left_when_the_owner_is_killed` starts and kills.
#[test]
fn owner() {
    if env::var_os(OWNER).is_some() {
        let options = Options { controller_manager: false, ..Options::default() };
        let cluster = Cluster::start(options).unwrap();
        println!("folder={}", cluster.dir().display());
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_start_that_fails_shows_the_log_and_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cluster");
    let options = Options {
        extra_apiserver_args: vec!["--no-such-flag".to_owned()],
        dir: Some(folder.clone()),
        ..Options::default()
    };
    match Cluster::start(options) {
        Err(Error::Ended { process: "kube-apiserver", tail, .. }) => {
            assert!(tail.contains("no-such-flag"), "{tail}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
    assert!(!folder.exists());
    assert_eq!(processes_naming(&folder), [""; 0]);
}

#[test]
fn an_existing_cluster_is_used_and_left_alone() {
    let ours = Cluster::start(Options::default()).unwrap();
    let options = Options { kubeconfig: Some(ours.kubeconfig().to_owned()), ..Options::default() };
    let named = Cluster::connect_or_start(options).unwrap();
    assert!(named.is_external());
    assert_eq!(named.url(), ours.url());
    assert!(matches!(named.stop_apiserver(), Err(Error::External { .. })));
    assert!(matches!(named.kubeconfig_for_user("alice", None), Err(Error::External { .. })));
    let account = named.kubeconfig_for_service_account("default", "default").unwrap();
    kubectl(named.kubectl_as(&account), "auth whoami").unwrap();
    named.stop().unwrap();
    kubectl(ours.kubectl(), "get namespaces").unwrap();
}

#[test]
fn a_folder_that_is_not_empty_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "").unwrap();
    let options = Options { dir: Some(folder.path().to_owned()), ..Options::default() };
    assert!(matches!(Cluster::start(options), Err(Error::NotEmpty { .. })));
    assert!(folder.path().join("precious").exists());
}

/// Runs kubectl with `arguments`, separated by spaces; returns its stdout, or its stderr if it fails.
fn kubectl(mut command: Command, arguments: &str) -> Result<String, String> {
    let output = command.args(arguments.split(' ')).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The command lines that contain `folder`, those of watchdogs included.
fn processes_naming(folder: &Path) -> Vec<String> {
    let output = Command::new("ps").args(["-A", "-o", "command="]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned).collect()
}
