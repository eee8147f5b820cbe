//! Apache's mod_auth_openidc, a resource server that asks by Token Introspection, with a verifier that serves TLS: it takes no
//! other endpoint.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use devcluster::process::Guarded;

use crate::stage::Stage;
use testkit::{eventually, free_port};

/// Both methods of RFC 6749 section 2.3.1, of which the first is its default.
pub fn mod_auth_openidc_introspects(stage: &Stage) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("apache-{}", std::process::id()));
    fs::create_dir_all(folder.join("documents")).expect("a folder");
    for document in ["orders", "admin"] {
        fs::write(folder.join("documents").join(document), document).expect("a document");
    }
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let issued =
        rcgen::generate_simple_self_signed([crate::stage::LOOPBACK.to_owned()]).expect("a certificate");
    fs::write(&certificate, issued.cert.pem()).expect("a file");
    fs::write(&key, issued.signing_key.serialize_pem()).expect("a file");
    stage.runtime.block_on(async {
        let verifier = stage.verifier_with_tls(&certificate, &key).ready().await;
        for method in ["client_secret_basic", "client_secret_post"] {
            let listen = free_port();
            let endpoint = format!("https://{}/oauth2/introspect", verifier.listen);
            let settings = [
                ("OIDCOAuthIntrospectionEndpoint", &*endpoint),
                ("OIDCOAuthIntrospectionEndpointAuth", method),
                ("OIDCOAuthClientSecret", &stage.caller),
            ];
            let _apache = start(&folder, &listen.to_string(), &settings);
            let get = |path: &str, token: &str| {
                let mut curl = Command::new("curl");
                curl.args([
                    "-q",
                    "--silent",
                    "--noproxy",
                    "*",
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{http_code}",
                ]);
                curl.args(["--header", &format!("Authorization: Bearer {token}")]);
                let output = curl.arg(format!("http://{listen}{path}")).output().expect("curl");
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            eventually(method, async || match &*get("/orders", &stage.token) {
                "200" => Ok(()),
                other => {
                    Err(format!("{other}: {}", fs::read_to_string(folder.join("log")).unwrap_or_default()))
                }
            })
            .await;
            // It lacks the scope. Apache's answer to that is the status of who presents nothing.
            assert_eq!(get("/admin", &stage.token), "401", "{method}");
            assert_eq!(get("/orders", "tw_never_was"), "401", "{method}");
        }
    });
    fs::remove_dir_all(&folder).expect("a folder");
}

fn start(folder: &Path, listen: &str, settings: &[(&str, &str)]) -> Guarded {
    let apache = programs::mod_auth_openidc().unwrap_or_else(|error| panic!("{error}"));
    let modules = apache.modules.display();
    let here = folder.display();
    let mut config = format!(
        "ServerRoot {here}\nServerName {listen}\nListen {listen}\nPidFile {here}/pid\nDefaultRuntimeDir {here}\nErrorLog {here}/log\n"
    );
    for module in ["mpm_prefork", "authn_core", "authz_core", "authz_user", "auth_openidc"] {
        config.push_str(&format!("LoadModule {module}_module {modules}/mod_{module}.so\n"));
    }
    config.push_str(&format!(
        "DocumentRoot {here}/documents\n\
         OIDCOAuthClientID caller\n\
         OIDCCABundlePath {here}/tls.crt\n\
         # Each request anew: it would cache an answer for a minute.\n\
         OIDCOAuthTokenIntrospectionInterval -1\n\
         <Location />\n  AuthType oauth20\n  Require claim \"scope~(^| )orders:read( |$)\"\n</Location>\n\
         <Location /admin>\n  AuthType oauth20\n  Require claim \"scope~(^| )admin:write( |$)\"\n</Location>\n"
    ));
    for (name, value) in settings {
        config.push_str(&format!("{name} {value}\n"));
    }
    fs::write(folder.join("apache.conf"), config).expect("a file");
    let mut command = Command::new(apache.program);
    command.arg("-X").arg("-f").arg(folder.join("apache.conf"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
    command.stderr(log);
    Guarded::spawn(command).expect("Apache")
}
