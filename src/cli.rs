//! The subcommands. What each takes is in the `config` module of its crate.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tokenward_controller::config::ControllerArgs;
use tokenward_controller::remove_finalizers::RemoveFinalizersArgs;
use tokenward_verifier::config::VerifierArgs;

/// API tokens as Kubernetes objects: minted, delivered, checked, rotated and revoked.
#[derive(Debug, Parser)]
#[command(name = "tokenward", version, about, propagate_version = true)]
pub struct Cli {
    /// The role of this process.
    #[command(subcommand)]
    pub role: Role,
}

/// The roles, one a process.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Mints, delivers, rotates and revokes: reconciles ApiTokens. The only role that reads or writes the Secrets of tokens
    // Of a flag that is given twice the last counts, so that flags can be appended, as the chart does.
    #[command(args_override_self = true)]
    Controller(ControllerArgs),
    /// Checks presented tokens, from memory. Any number of replicas
    #[command(args_override_self = true)]
    Verifier(VerifierArgs),
    /// Removes the controller's finalizer from all ApiTokens, which could not be deleted after an uninstall
    RemoveFinalizers(RemoveFinalizersArgs),
    /// Prints the CustomResourceDefinitions
    Crds(CrdsArgs),
    /// Prints the OpenAPI document of the verifier's HTTP endpoints
    Openapi,
}

/// The flags of `crds`.
#[derive(Clone, Debug, Args)]
pub struct CrdsArgs {
    /// Write one file a kind into this directory, instead of printing all
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use tokenward_runtime::tls::files::Files;
    use tokenward_verifier::config::TransportError;

    use super::*;

    #[test]
    fn the_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_as_documented() {
        let Role::Verifier(verifier) = Cli::parse_from(["tokenward", "verifier"]).role else {
            panic!("verifier")
        };
        assert_eq!(verifier.listen.to_string(), "[::]:8080");
        assert_eq!(verifier.common.telemetry_listen.to_string(), "[::]:9090");
        assert_eq!(verifier.grpc_listen, None);
        assert_eq!(verifier.common.namespaces(), None);
        assert_eq!(verifier.max_connections, None);
    }

    #[test]
    fn the_transport_of_tokens_is_chosen() {
        let transport = |flags: &[&str]| {
            let Role::Verifier(args) = Cli::parse_from([&["tokenward", "verifier"], flags].concat()).role
            else {
                panic!("verifier")
            };
            args.transport.tls()
        };
        let files = Files { certificate: "c".into(), key: "k".into() };
        assert_eq!(transport(&["--tls-cert", "c", "--tls-key", "k"]), Ok(Some(files)));
        assert_eq!(transport(&["--plain-http"]), Ok(None));
        assert_eq!(transport(&[]), Err(TransportError::None));
        assert_eq!(transport(&["--tls-cert", "c"]), Err(TransportError::Half));
        assert_eq!(transport(&["--tls-key", "k"]), Err(TransportError::Half));
        assert_eq!(transport(&["--tls-cert", "c", "--plain-http"]), Err(TransportError::Both));
    }

    #[test]
    fn a_duration_without_a_unit_is_an_error_with_advice() {
        let error = Cli::try_parse_from(["tokenward", "controller", "--propagation", "30"])
            .expect_err("no unit")
            .to_string();
        assert!(error.contains("unit h, m or s"), "{error}");
    }
}
