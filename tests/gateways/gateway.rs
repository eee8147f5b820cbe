//! The gateways: which program runs which file, and what is replaced in the file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use devcluster::process::Guarded;

use crate::control_plane::{gateway_api, ingress_nginx, istio};
use testkit::{Process, free_port};

/// A gateway that users put in front of their services.
pub struct Gateway {
    pub name: &'static str,
    /// The files in `examples/gateways`: first the one that the program reads, then those that it names.
    files: &'static [&'static str],
    program: fn() -> Result<PathBuf, programs::Error>,
    /// Sets the arguments and variables of the program; it runs in the folder of its files.
    command: fn(&mut Command, &Path, SocketAddr),
    /// Makes the program's file of an example's, for the addresses of verifier, upstream and gateway.
    render: fn(&str, &Path, [SocketAddr; 3]) -> String,
    /// The verifier's address that it sends checks to.
    pub endpoint: fn(&Process) -> SocketAddr,
    /// Whether the client gets the verifier's status and headers with each denial.
    pub passes_denials: bool,
    /// Whether the client gets the verifier's body with a denial.
    pub passes_body: bool,
    /// Whether it can remove headers by a pattern, and not only by name.
    pub drops_by_pattern: bool,
    /// Whether its time limit for the verifier can be configured.
    pub gives_up: bool,
    /// Whether the example lets preflights pass.
    pub passes_preflights: bool,
    /// Whether it speaks HTTP/2 without TLS, as the example configures it.
    pub speaks_http2: bool,
    /// Whether it can keep a body from the service that a preflight has.
    pub drops_preflight_bodies: bool,
    /// The same, for a body in one frame of HTTP/2.
    pub drops_preflight_frames: bool,
    /// Whether the route `/orders/` is `/orders` too.
    pub routes_are_segments: bool,
    /// Whether it rejects paths with `..;`, which some services read as `..`.
    pub rejects_semicolons: bool,
    /// Whether it can keep upgrades to another protocol than WebSocket from the service.
    pub drops_upgrades: bool,
    /// What clients may get while no verifier can be reached.
    pub unavailable: &'static [u16],
    /// Checks that are not run, because of what it can't do.
    pub skips: &'static [&'static str],
    /// Further replacements in the files.
    edits: &'static [(&'static str, &'static str)],
}

/// What most have in common.
const COMMON: Gateway = Gateway {
    name: "",
    files: &[],
    program: programs::envoy,
    command: |_, _, _| {},
    render: replaced,
    endpoint: |verifier| verifier.listen,
    passes_denials: true,
    passes_body: true,
    drops_by_pattern: true,
    gives_up: true,
    passes_preflights: true,
    speaks_http2: true,
    drops_preflight_bodies: true,
    drops_preflight_frames: true,
    routes_are_segments: false,
    rejects_semicolons: true,
    drops_upgrades: true,
    unavailable: &[500, 502, 503, 504],
    skips: &[],
    edits: &[],
};

pub const ALL: [Gateway; 10] = [
    Gateway {
        name: "nginx",
        files: &["nginx.conf"],
        program: programs::nginx,
        command: |command, folder, _| nginx(command, folder, "nginx.conf"),
        speaks_http2: false,
        passes_body: false,
        drops_by_pattern: false,
        ..COMMON
    },
    Gateway {
        name: "haproxy",
        files: &["haproxy.cfg", "haproxy-auth.lua"],
        program: programs::haproxy,
        command: |command, _, _| {
            command.args(["-f", "haproxy.cfg"]);
        },
        ..COMMON
    },
    Gateway {
        name: "caddy",
        files: &["Caddyfile"],
        program: programs::caddy,
        command: |command, folder, _| {
            command.args(["run", "--config", "Caddyfile"]);
            // Isolated from the user's own Caddy: its port, its certificates.
            command.env("CADDY_ADMIN", format!("unix/{}", folder.join("admin").display()));
            command.env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder);
        },
        speaks_http2: false,
        ..COMMON
    },
    Gateway {
        name: "envoy-http",
        files: &["envoy-http.yaml"],
        command: |command, _, _| envoy(command, "envoy-http.yaml"),
        ..COMMON
    },
    Gateway {
        name: "traefik",
        files: &["traefik-dynamic.yaml"],
        program: programs::traefik,
        command: |command, _, listen| {
            command.arg(format!("--entrypoints.web.address={listen}"));
            command.args(["--providers.file.filename=traefik-dynamic.yaml", "--log.level=info"]);
            // Otherwise it checks for new versions.
            command.args(["--global.checknewversion=false", "--global.sendanonymoususage=false"]);
        },
        // After 30 s, which can't be changed.
        gives_up: false,
        ..COMMON
    },
    ENVOY_GRPC,
    Gateway {
        name: "envoy-gateway",
        files: &["envoy-gateway.yaml"],
        command: |command, _, _| envoy(command, "envoy-gateway.yaml"),
        render: |text, _, addresses| gateway_api::render(text, addresses),
        // Envoy's filter `buffer` limits what it has to wait for.
        drops_preflight_frames: false,
        routes_are_segments: true,
        ..COMMON
    },
    Gateway {
        name: "istio",
        files: &["istio.yaml"],
        command: |command, _, _| envoy(command, "istio.yaml"),
        render: |text, _, addresses| istio::render(text, addresses),
        // It has no policy for bodies.
        drops_preflight_bodies: false,
        drops_preflight_frames: false,
        ..COMMON
    },
    Gateway {
        name: "gateway-api",
        files: &["gateway-api.yaml"],
        command: |command, _, _| envoy(command, "gateway-api.yaml"),
        render: |text, _, addresses| gateway_api::render(text, addresses),
        // The Gateway API has no fields for these.
        drops_by_pattern: false,
        drops_preflight_bodies: false,
        drops_preflight_frames: false,
        routes_are_segments: true,
        // Envoy's own default.
        unavailable: &[403],
        ..COMMON
    },
    Gateway {
        name: "ingress-nginx",
        files: &["ingress-nginx.yaml"],
        program: programs::nginx,
        command: |command, folder, _| nginx(command, folder, "ingress-nginx.yaml"),
        render: |text, _, addresses| ingress_nginx::render(text, addresses),
        passes_denials: false,
        passes_body: false,
        drops_by_pattern: false,
        gives_up: false,
        passes_preflights: false,
        speaks_http2: false,
        rejects_semicolons: false,
        drops_upgrades: false,
        // It opens a connection for each check.
        skips: &["connections_are_reused_and_bodies_are_not_sent"],
        ..COMMON
    },
];

const ENVOY_GRPC: Gateway = Gateway {
    name: "envoy-grpc",
    files: &["envoy-grpc.yaml"],
    command: |command, _, _| envoy(command, "envoy-grpc.yaml"),
    endpoint: |verifier| verifier.grpc,
    ..COMMON
};

/// Envoy over gRPC, with another filter behind ext_authz that sends its dynamic metadata to the client.
pub const ENVOY_WITH_A_FILTER: Gateway = Gateway {
    name: "envoy-grpc with a filter",
    edits: &[(
        "                  - name: envoy.filters.http.router\n",
        r#"                  - name: envoy.filters.http.lua
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
                      default_source_code:
                        inline_string: |
                          function envoy_on_response(handle)
                            local token = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.ext_authz")
                            if token then
                              for _, key in ipairs({"id", "subject", "namespace", "name", "key_id"}) do
                                handle:headers():add("seen-" .. key, token[key])
                              end
                              handle:headers():add("seen-scopes", table.concat(token["scopes"], " "))
                            end
                          end
                  - name: envoy.filters.http.router
"#,
    )],
    ..ENVOY_GRPC
};

fn envoy(command: &mut Command, file: &str) {
    command.args(["--disable-hot-restart", "--concurrency", "2", "-c", file]);
}

fn nginx(command: &mut Command, folder: &Path, file: &str) {
    let globals = format!("daemon off; pid {};", folder.join("pid").display());
    command.args(["-e", "stderr", "-g", &globals, "-c"]).arg(folder.join(file));
}

pub struct Running {
    pub address: SocketAddr,
    guarded: Guarded,
    folder: PathBuf,
}

impl Gateway {
    /// The same gateway, with replacements in its files.
    pub fn edited(&self, edits: &'static [(&'static str, &'static str)]) -> Self {
        Self { edits, ..*self }
    }

    /// Starts it between a verifier and an upstream.
    pub fn start(&self, verifier: SocketAddr, upstream: SocketAddr) -> Running {
        let program = (self.program)().unwrap_or_else(|error| panic!("{error}"));
        let address = free_port();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{}", self.name, address.port()));
        fs::create_dir_all(&folder).expect("a folder");
        let mut texts: Vec<String> = self
            .files
            .iter()
            .map(|file| (self.render)(&example(file), &folder, [verifier, upstream, address]))
            .collect();
        for (written, here) in self.edits {
            assert!(texts.iter().any(|text| text.contains(written)), "{} lacks {written:?}", self.name);
            texts.iter_mut().for_each(|text| *text = text.replace(written, here));
        }
        for (file, text) in self.files.iter().zip(texts) {
            fs::write(folder.join(file), text).expect("a config file");
        }
        let mut command = Command::new(program);
        (self.command)(&mut command, &folder, address);
        let log = fs::File::create(folder.join("log")).expect("a log file");
        command.current_dir(&folder).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        Running { address, guarded: Guarded::spawn(command).expect("a gateway"), folder }
    }
}

impl Running {
    /// All of its output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.guarded.try_wait().expect("a status").is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Killed, as its requests are over.
        let _ = self.guarded.kill();
    }
}

fn example(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateways").join(file);
    fs::read_to_string(path).expect("an example")
}

/// The text of an example with the addresses of this test, and otherwise as users copy it.
fn replaced(text: &str, folder: &Path, [verifier, upstream, gateway]: [SocketAddr; 3]) -> String {
    let mut text = text.to_owned();
    let yaml = |host: &str, port: u16| format!("{{address: {host}, port_value: {port}}}");
    let address = |of: SocketAddr| yaml(&of.ip().to_string(), of.port());
    // The name of an abstract socket is unique on the machine.
    let socket = format!("abns@tokenward-{}", gateway.port());
    let folder = format!("{}/", folder.display());
    for (written, here) in [
        ("tokenward-verifier:8080", verifier.to_string()),
        ("api:8080", upstream.to_string()),
        ("listen 8000;", format!("listen {gateway};")),
        ("bind :8000", format!("bind {gateway}")),
        ("\n:8000 {", format!("\nhttp://{gateway} {{")),
        (&yaml("tokenward-verifier", 8080), address(verifier)),
        (&yaml("tokenward-verifier", 8081), address(verifier)),
        (&yaml("api", 8080), address(upstream)),
        (&yaml("0.0.0.0", 8000), address(gateway)),
        ("abns@tokenward", socket),
        ("/etc/haproxy/", folder),
    ] {
        text = text.replace(written, &here);
    }
    text
}
