//! Starts real nodes, and tests what end-to-end tests rely on: pods that run and reach what they should, nodes that
//! don't interfere, and nothing left on the machine, however the owner ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "the harness shows it with --nocapture")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use devcluster::process::Guarded;
use devcluster::{Cluster, Error, Image, Options, Version};

/// Set in the process that is to be killed.
const OWNER: &str = "DEVCLUSTER_TEST_OWNER";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: swordfish}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: devcluster.test/busybox:1
          command: [httpd, -f, -v, -p, "8080", -h, /srv]
          volumeMounts: [{name: word, mountPath: /srv}]
      volumes: [{name: word, secret: {secretName: word}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers:
    - name: client
      image: devcluster.test/busybox:1
      command: [sh, -c, "cat /word/word && echo && touch /tmp/printed && sleep 3600"]
      readinessProbe: {exec: {command: [test, -e, /tmp/printed]}, periodSeconds: 1}
      volumeMounts: [{name: word, mountPath: /word}]
  volumes: [{name: word, secret: {secretName: word}}]
"#;

#[test]
fn pods_run_and_nothing_is_left() {
    let settings = settings();
    let start = Instant::now();
    let cluster = start_node();
    println!("started in {:?}", start.elapsed());
    let name = kubectl(&cluster, "get nodes --output jsonpath={.items[0].metadata.name}");
    let folder = cluster.dir().to_owned();
    runs_pods(&cluster);
    pods_reach_what_they_should(&cluster);

    // Another one beside it has its own names and addresses.
    let other = start_node();
    let other_name = kubectl(&other, "get nodes --output jsonpath={.items[0].metadata.name}");
    assert_ne!(name, other_name);
    other.stop().unwrap();
    assert_eq!(traces(&other_name), [""; 0]);
    assert_eq!(kubectl(&cluster, "exec client -- wget -q -O- http://web/word"), "swordfish");

    let stop = Instant::now();
    cluster.stop().unwrap();
    println!("stopped in {:?}", stop.elapsed());
    assert!(!folder.exists());
    assert_eq!(processes_naming(&folder), [""; 0]);
    assert_eq!(traces(&name), [""; 0]);
    assert_eq!(settings, self::settings());
}

fn start_node() -> Cluster {
    Cluster::start(Options { node: true, ..Options::default() }).unwrap()
}

fn runs_pods(cluster: &Cluster) {
    let archive = cluster.dir().join("busybox.tar");
    Image::busybox("devcluster.test/busybox:1").unwrap().write(&archive).unwrap();
    cluster.load_image(&archive).unwrap();
    let objects = cluster.dir().join("objects.yaml");
    fs::write(&objects, OBJECTS).unwrap();
    kubectl(cluster, &format!("create --filename {}", objects.display()));
    kubectl(cluster, "rollout status deployment/web --timeout=60s");
    kubectl(cluster, "wait --for=condition=Ready pod/client --timeout=60s");
    assert_eq!(kubectl(cluster, "logs client"), "swordfish");
    assert_eq!(kubectl(cluster, "exec client -- cat /word/word"), "swordfish");
    // The image's own user, without privileges, can read a Secret.
    assert!(kubectl(cluster, "exec client -- id").contains("uid=65532"));
}

fn pods_reach_what_they_should(cluster: &Cluster) {
    // The Service's pods respond by each form of its name.
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        let answer = kubectl(cluster, &format!("exec client -- wget -q -O- http://{name}/word"));
        assert_eq!(answer, "swordfish", "{name}");
    }
    // nc runs the program once it has a connection, and fails without one.
    kubectl(cluster, "exec client -- nc -w 5 kubernetes.default.svc 443 -e /bin/date");
    // This machine, and so the API server, by the Service's address.
    let address = kubectl(cluster, "get service/web -o jsonpath={.spec.clusterIP}:80");
    assert!(get(&address, "/word").ends_with("swordfish"));
    assert_eq!(
        kubectl(cluster, "get --raw /api/v1/namespaces/default/services/web:80/proxy/word"),
        "swordfish"
    );
    // A server sees the pod's address, not the node's.
    let client = kubectl(cluster, "get pod/client -o jsonpath={.status.podIP}");
    let logs = kubectl(cluster, "logs --selector app=web");
    assert!(logs.contains(&client), "{client}: {logs}");
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
    let line = lines.find_map(|line| Some(line.unwrap().split_once("node=")?.1.to_owned())).unwrap();
    let (name, folder) = line.split_once(' ').unwrap();
    let folder = Path::new(folder);
    assert!(!traces(name).is_empty());

    // The owner alone, by SIGKILL: none of its destructors runs.
    Command::new("kill").args(["-KILL", &owner.pid().to_string()]).status().unwrap();

    let deadline = Instant::now() + Duration::from_secs(20);
    while folder.exists() || !processes_naming(folder).is_empty() || !traces(name).is_empty() {
        let left = (processes_naming(folder), traces(name));
        assert!(Instant::now() < deadline, "left: {folder:?}, {left:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Not a test: the process that `nothing_is_left_when_the_owner_is_killed` starts and kills, with a pod.
#[test]
fn owner() {
    if env::var_os(OWNER).is_some() {
        let cluster = start_node();
        runs_pods(&cluster);
        let name = kubectl(&cluster, "get nodes --output jsonpath={.items[0].metadata.name}");
        println!("node={name} {}", cluster.dir().display());
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_node_that_can_t_run_is_an_error_before_anything_starts() {
    let target = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_devcluster"))
        .args(["up", "--node", "--kubernetes", "1.33"])
        .env("CARGO_TARGET_DIR", target.path())
        .output()
        .unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("Kubernetes 1.36 only"));
    assert!(!target.path().join("devcluster/run").exists());

    // An unprivileged user, who can run a copy of the program in a folder of the test's own.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = folder.path().join("program");
    // Copied by another process: here, a child that another thread starts meanwhile would inherit the open file.
    Command::new("cp").arg(env!("CARGO_BIN_EXE_devcluster")).arg(&program).status().unwrap();
    let output = Command::new(&program)
        .args(["up", "--node"])
        .env("CARGO_TARGET_DIR", folder.path())
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("needs root"), "{message}");

    let options = Options { node: true, version: Some(Version::V1_33), ..Options::default() };
    assert!(matches!(Cluster::start(options), Err(Error::NodeVersion { .. })));
}

/// Runs kubectl with all rights and `arguments`, separated by spaces; returns what it prints.
fn kubectl(cluster: &Cluster, arguments: &str) -> String {
    let output = cluster.kubectl().args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Sends an HTTP request by hand; the point is whether packets arrive.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What a node with this name has on this machine: its interface, routes through it, its control groups.
fn traces(name: &str) -> Vec<String> {
    let text = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let links = text("ip", &["-oneline", "link"]);
    let routes = text("ip", &["route"]);
    let groups = text("find", &["/sys/fs/cgroup", "-type", "d", "-name", name]);
    let lines = [links, routes, groups];
    let lines = lines.iter().flat_map(|text| text.lines());
    lines.filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// The settings that a kubelet, CNI and kube-proxy would change for the whole machine, and the mounts.
fn settings() -> Vec<String> {
    let names = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
    let more = ["kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward"];
    let paths = names.iter().chain(&more).map(|name| format!("/proc/sys/{name}"));
    let paths = paths.chain(["/proc/self/mountinfo".to_owned()]);
    paths.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The command lines that contain `folder`, those of watchdogs included.
fn processes_naming(folder: &Path) -> Vec<String> {
    let output = Command::new("ps").args(["-A", "-o", "command="]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned).collect()
}
