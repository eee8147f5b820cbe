//! The verifier's sockets: TLS with third-party clients, and ten thousand hostile connections.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::Shared;
use testkit::{Process, Site, TIMEOUT, client, eventually};

// === TLS ===

/// A certificate authority, and a folder with the files of a verifier's certificate.
pub struct Pki {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let pki = Self { dir: TempDir::new().expect("a folder"), authority };
        fs::write(pki.path("ca.crt"), pki.authority.pem()).expect("a file");
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces the files by those of a new certificate, as in a mounted Secret: by renaming a link to their folder.
    pub fn issue(&self, name: &str) {
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
        self.swap(name, &certificate.pem(), &key.serialize_pem());
    }

    fn swap(&self, name: &str, certificate: &str, key: &str) {
        let folder = self.path(&format!("..{name}"));
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("tls.crt"), certificate).expect("a file");
        fs::write(folder.join("tls.key"), key).expect("a file");
        std::os::unix::fs::symlink(&folder, self.path("..new")).expect("a link");
        fs::rename(self.path("..new"), self.path("..data")).expect("a swap");
    }

    pub fn certificate(&self) -> PathBuf {
        self.path("..data/tls.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.path("..data/tls.key")
    }

    /// Sends a check with curl; returns the HTTP status and version, or curl's error.
    async fn curl(&self, verifier: SocketAddr, token: &str, more: &[&str]) -> Result<String, String> {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--write-out",
            "%{http_code} %{http_version}",
        ]);
        command.args(["--output", "/dev/null", "--cacert"]).arg(self.path("ca.crt"));
        command.arg("--header").arg(format!("Authorization: Bearer {token}"));
        command.args(more).arg(format!("https://localhost:{}/auth", verifier.port()));
        let output = output(command).await;
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

async fn output(mut command: Command) -> std::process::Output {
    let output = spawn_blocking(move || command.stdin(Stdio::null()).output()).await.expect("a thread");
    output.expect("a command that is installed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The subject of the certificate that a verifier presents, by OpenSSL.
async fn presented(verifier: SocketAddr) -> String {
    let mut command = Command::new("sh");
    let script = "openssl s_client -connect \"$0\" -servername localhost | openssl x509 -noout -subject";
    command.args(["-c", script, &verifier.to_string()]).stderr(Stdio::null());
    text(&output(command).await.stdout)
}

/// One connection of `openssl s_client`.
struct Session {
    child: std::process::Child,
}

impl Session {
    fn open(verifier: SocketAddr) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-servername", "localhost", "-connect", &verifier.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self { child: command.spawn().expect("openssl") }
    }

    /// Sends a check; returns the status line.
    fn ask(&mut self, token: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        let request = format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n");
        stdin.write_all(request.as_bytes()).expect("a request");
        let (mut head, mut byte) = (Vec::new(), [0]);
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        while !head.ends_with(b"\r\n\r\n") && stdout.read(&mut byte).expect("an answer") == 1 {
            head.push(byte[0]);
        }
        text(&head).lines().next().unwrap_or_default().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn checks_are_served_over_tls_and_certificates_are_reloaded(shared: &Shared) {
    let space = shared.site.namespace("tls").await;
    let good = space.active("t", json!({"scopes": ["a:b"]})).await;
    let pki = Pki::new();
    pki.issue("first");
    let verifier = shared.site.verifier_with_tls(&pki.certificate(), &pki.key()).ready().await;
    let listen = verifier.listen;
    // A ready verifier may not have seen this token yet, as it was just created.
    eventually("an answer in TLS", async || match pki.curl(listen, &good, &[]).await {
        Ok(answer) if answer == "200 1.1" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for version in ["1.2", "1.3"] {
        let only = [format!("--tlsv{version}"), "--tls-max".to_owned(), version.to_owned()];
        let answer = pki.curl(listen, &good, &only.each_ref().map(String::as_str)).await;
        assert_eq!(answer.as_deref(), Ok("200 1.1"), "TLS {version}");
    }
    assert_eq!(pki.curl(listen, "junk", &[]).await.as_deref(), Ok("401 1.1"));
    let old = pki.curl(listen, &good, &["--tls-max", "1.1"]).await;
    assert!(old.is_err(), "{old:?}");
    certificates_change_under_an_open_connection(&pki, &verifier, &good).await;
    clients_without_tls_are_rejected(&pki, listen, &good).await;
    assert!(!verifier.log().contains("panicked"), "{}", verifier.log());
    assert!(!verifier.log().contains("PRIVATE KEY"), "{}", verifier.log());
}

async fn certificates_change_under_an_open_connection(pki: &Pki, verifier: &Process, good: &str) {
    let listen = verifier.listen;
    let mut session = Session::open(listen);
    assert_eq!(session.ask(good), "HTTP/1.1 200 OK");
    let first = expiry(verifier).await;
    assert!(first > 0);
    assert!(presented(listen).await.contains("first"));

    pki.issue("second");
    eventually("the second certificate", async || match presented(listen).await {
        subject if subject.contains("second") => Ok(()),
        subject => Err(subject),
    })
    .await;
    assert_eq!(session.ask(good), "HTTP/1.1 200 OK", "the connection from before goes on");

    let certificate = fs::read_to_string(pki.path("..first/tls.crt")).expect("a file");
    let key = fs::read_to_string(pki.certificate().with_file_name("tls.key")).expect("a file");
    pki.swap("mismatch", &certificate, &key);
    let warnings = || verifier.log().matches("the new TLS certificate can't be used").count();
    eventually("a warning", async || if warnings() == 1 { Ok(()) } else { Err(verifier.log()) }).await;
    pki.swap("junk", "junk", &key);
    eventually("another warning", async || if warnings() == 2 { Ok(()) } else { Err(verifier.log()) }).await;
    assert!(presented(listen).await.contains("second"), "a broken pair is taken up");
    assert_eq!(session.ask(good), "HTTP/1.1 200 OK");

    pki.issue("third");
    eventually("the third certificate", async || match presented(listen).await {
        subject if subject.contains("third") => Ok(()),
        subject => Err(subject),
    })
    .await;
    assert_eq!(warnings(), 2, "logged once each");
    assert_eq!(pki.curl(listen, good, &[]).await.as_deref(), Ok("200 1.1"));
}

async fn expiry(verifier: &Process) -> i64 {
    metric(verifier, "tokenward_certificate_expiry_timestamp_seconds").await
}

async fn clients_without_tls_are_rejected(pki: &Pki, listen: SocketAddr, good: &str) {
    let hanging: Vec<_> = (0..50).map(|_| TcpStream::connect(listen).expect("a connection")).collect();
    for mut stream in &hanging {
        // An incomplete ClientHello.
        stream.write_all(&[22, 3, 1, 2, 0, 1]).expect("a write");
    }
    let plain =
        client().get(format!("http://{listen}/auth")).bearer_auth(good).send().await.expect("an answer");
    assert_eq!(plain.status(), 400);
    assert!(plain.text().await.expect("a body").contains("https://"));
    for junk in [&b"\0\0\0\0"[..], b"\x16\x03\x01\x00\x05junk!", b"\x16"] {
        let mut stream = TcpStream::connect(listen).expect("a connection");
        stream.write_all(junk).expect("a write");
    }
    assert_eq!(pki.curl(listen, good, &[]).await.as_deref(), Ok("200 1.1"), "beside hanging handshakes");
    let ended = spawn_blocking(move || hanging.into_iter().map(ends).collect::<Vec<_>>());
    assert!(ended.await.expect("a thread").into_iter().all(|ended| ended), "handshakes may hang for ever");
}

/// Whether the verifier closes the connection.
fn ends(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

pub async fn a_verifier_reports_what_its_tls_flags_lack(site: &Site) {
    let pki = Pki::new();
    pki.issue("one");
    let one = [pki.certificate(), pki.key()].map(|path| path.display().to_string());
    let ca = pki.path("ca.crt").display().to_string();
    for (flags, says) in [
        (vec![], "choose how checks are answered"),
        (vec!["--tls-cert", &one[0]], "--tls-cert and --tls-key go together"),
        (vec!["--plain-http", "--tls-cert", &one[0], "--tls-key", &one[1]], "--plain-http excludes"),
        (vec!["--tls-cert", "/nowhere/tls.crt", "--tls-key", &one[1]], "/nowhere/tls.crt can't be read"),
        (vec!["--tls-cert", &one[1], "--tls-key", &one[1]], "tls.key holds no certificate"),
        (vec!["--tls-cert", &one[0], "--tls-key", &one[0]], "tls.crt holds no private key"),
        (vec!["--tls-cert", &ca, "--tls-key", &one[1]], "is not that of the first certificate in"),
    ] {
        let mut verifier = site.verifier_with(&flags);
        assert_eq!(verifier.ended().await, Some(1), "{flags:?}");
        assert!(verifier.log().contains(says), "{flags:?}: {}", verifier.log());
    }
}

// === Load ===

const HOSTILE_CONNECTIONS: usize = 10_000;

/// Continuously sends good checks, each of which must return 200.
struct Checks {
    stop: Arc<AtomicBool>,
    reused: Arc<AtomicU64>,
    new: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Checks {
    fn start(verifier: SocketAddr, token: &str) -> Self {
        let (stop, reused, new) = (Arc::default(), Arc::default(), Arc::default());
        let tasks = vec![
            Self::ask(verifier, token, &patient_client(1), &stop, &reused),
            Self::ask(verifier, token, &patient_client(0), &stop, &new),
        ];
        Self { stop, reused, new, tasks }
    }

    fn ask(
        verifier: SocketAddr,
        token: &str,
        client: &reqwest::Client,
        stop: &Arc<AtomicBool>,
        count: &Arc<AtomicU64>,
    ) -> tokio::task::JoinHandle<()> {
        let request = client.get(format!("http://{verifier}/auth?scope=a:b")).bearer_auth(token);
        let (stop, count) = (stop.clone(), count.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = request.try_clone().expect("a request").send().await.expect("an answer");
                assert_eq!(answer.status(), 200);
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    /// Waits until 50 more of each kind have succeeded; fails if one has not.
    async fn until_more_succeed(&self, what: &str) {
        let counts = || [&self.reused, &self.new].map(|count| count.load(Ordering::Relaxed));
        let before = counts();
        eventually(&format!("good checks {what}"), async || {
            assert!(!self.tasks.iter().any(|task| task.is_finished()), "a good check failed {what}");
            let more = counts().into_iter().zip(before).all(|(now, before)| now >= before + 50);
            if more { Ok(()) } else { Err(format!("{before:?}, now {:?}", counts())) }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("every good check is answered");
        }
    }
}

/// A client that reuses its connection, as a gateway does, or opens one for each request.
///
/// It waits for longer than others: while ten thousand connections are opened the kernel's queue of new ones is full at
/// times, and then it tries again after 1, 3, 7 and 15 s.
fn patient_client(idle_connections: usize) -> reqwest::Client {
    reqwest::Client::builder()
        .pool_max_idle_per_host(idle_connections)
        .timeout(TIMEOUT)
        .build()
        .expect("a client")
}

pub async fn good_checks_succeed_under_hostile_load(shared: &Shared) {
    raise_open_files();
    let space = shared.site.namespace("load").await;
    let good = space.active("t", json!({"scopes": ["a:b"]})).await;
    let most = (HOSTILE_CONNECTIONS * 3 / 4).to_string();
    for flags in [&[][..], &["--max-connections", &most]] {
        let mut verifier = shared.site.verifier(flags).ready().await;
        verifier.answers(&good, "", 200).await;
        let before = Use::of(&verifier);
        let checks = Checks::start(verifier.listen, &good);
        checks.until_more_succeed("at rest").await;
        slow_connections_change_nothing(&verifier, &checks, flags.is_empty()).await;
        large_bodies_change_nothing(&verifier, &checks, &good).await;
        garbage_changes_nothing(&verifier, &checks).await;
        checks.end().await;
        nothing_is_left(&mut verifier, &before).await;
    }
}

async fn slow_connections_change_nothing(verifier: &Process, checks: &Checks, room_for_all: bool) {
    let listen = verifier.listen;
    let hostile =
        spawn_blocking(move || (0..HOSTILE_CONNECTIONS).map(|at| slow(listen, at)).collect::<Vec<_>>());
    checks.until_more_succeed("while connections are opened").await;
    let hostile = hostile.await.expect("connections");
    checks.until_more_succeed("beside ten thousand connections").await;
    let displaced = metric(verifier, "tokenward_connections_displaced_total").await;
    assert!(room_for_all || displaced > 0, "no connection was displaced");
    // Their clients don't close them, so it is the verifier that does.
    eventually("an end of slow connections", async || {
        match metric(verifier, "tokenward_connections").await {
            // A quarter has had a response, and may be idle for longer.
            open if open < 100 + HOSTILE_CONNECTIONS as i64 / 4 => Ok(()),
            open => Err(format!("{open} connections")),
        }
    })
    .await;
    checks.until_more_succeed("after they were ended").await;
    drop(hostile);
}

/// A connection that hangs, by turns: silent, in a head, in a body, idle.
fn slow(listen: SocketAddr, at: usize) -> TcpStream {
    let mut stream = TcpStream::connect(listen).expect("a connection");
    let sent: &[u8] = match at % 4 {
        0 => b"",
        1 => b"GET /auth HTTP/1.1\r\nX-Slow: ",
        2 => b"POST /auth HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n.",
        _ => b"GET /auth HTTP/1.1\r\nHost: t\r\n\r\n",
    };
    // It may have been displaced already.
    let _ = stream.write_all(sent);
    stream
}

async fn large_bodies_change_nothing(verifier: &Process, checks: &Checks, good: &str) {
    let listen = verifier.listen;
    let sending: Vec<_> = ["/auth", "/auth/x", "/nowhere"]
        .into_iter()
        .flat_map(|path| {
            [(path, "Content-Length: 104857600", ""), (path, "Transfer-Encoding: chunked", "6400000\r\n")]
        })
        .map(|(path, framing, before)| {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {good}\r\n{framing}\r\n\r\n{before}"
            );
            spawn_blocking(move || (path, send_large(listen, &head)))
        })
        .collect();
    checks.until_more_succeed("beside bodies of 100 MB").await;
    for sent in sending {
        let (path, answer) = sent.await.expect("a thread");
        let expected = if path == "/nowhere" { "HTTP/1.1 404 " } else { "HTTP/1.1 200 " };
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
}

/// Sends a head and 100 MB, or as much as is read; returns the response.
fn send_large(listen: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(listen).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.write_all(head.as_bytes()).expect("a head");
    let mut writer = stream.try_clone().expect("a second handle");
    let writing = std::thread::spawn(move || {
        let piece = [b'x'; 1 << 16];
        (0..1600).take_while(|_| writer.write_all(&piece).is_ok()).count()
    });
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).expect("a response before all is sent");
    writing.join().expect("a writer");
    text(&answer[..read])
}

async fn garbage_changes_nothing(verifier: &Process, checks: &Checks) {
    const EACH: usize = 5_000;
    let listen = verifier.listen;
    let floods: Vec<_> = (0..4).map(|seed| spawn_blocking(move || flood(listen, seed, EACH))).collect();
    checks.until_more_succeed("in a flood of garbage").await;
    for flood in floods {
        assert_eq!(flood.await.expect("a thread"), EACH, "each is denied");
    }
}

/// Sends garbage tokens as fast as possible; returns how often the response was 401.
fn flood(listen: SocketAddr, seed: usize, times: usize) -> usize {
    let mut stream = TcpStream::connect(listen).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut refused = 0;
    for at in 0..times {
        let garbage = format!("tw_{:078}", at * 7919 + seed);
        let token = &garbage[..1 + at % garbage.len()];
        let request = format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).expect("an answer");
        refused += usize::from(answer[..read].starts_with(b"HTTP/1.1 401 "));
    }
    refused
}

async fn nothing_is_left(verifier: &mut Process, before: &Use) {
    eventually("an end of all connections", async || {
        let (open, now) = (metric(verifier, "tokenward_connections").await, Use::of(verifier));
        // The scrape is a connection too, and there may be another to the API server.
        if open == 0 && now.files <= before.files + 2 { Ok(()) } else { Err(format!("{open} open; {now:?}")) }
    })
    .await;
    let after = Use::of(verifier);
    // Memory for ten thousand connections may stay allocated; that of the 600 MB of bodies may not.
    assert!(
        after.memory_kib < before.memory_kib + HOSTILE_CONNECTIONS as u64 * 32,
        "before {before:?}, after {after:?}"
    );
    assert!(verifier.runs(), "{}", verifier.log());
    assert!(!verifier.log().contains("panicked"), "{}", verifier.log());
}

/// The resources that a process uses.
#[derive(Debug)]
struct Use {
    files: usize,
    memory_kib: u64,
}

impl Use {
    fn of(process: &Process) -> Self {
        let proc = Path::new("/proc").join(process.pid().to_string());
        let status = fs::read_to_string(proc.join("status")).expect("a status");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory");
        let memory_kib = memory.trim().trim_end_matches(" kB").parse().expect("a number");
        Self { files: fs::read_dir(proc.join("fd")).expect("files").count(), memory_kib }
    }
}

/// The value of a metric without labels.
async fn metric(process: &Process, name: &str) -> i64 {
    let metrics = process.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// The test's own side of the connections needs as many files as the verifier's.
pub fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("more open files");
    let room = maximum.is_none_or(|maximum| maximum > HOSTILE_CONNECTIONS as u64 + 1000);
    assert!(room, "this test needs more open files: raise `ulimit -Hn` above {}", HOSTILE_CONNECTIONS + 1000);
}
