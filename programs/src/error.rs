//! What can go wrong, and what to do about it.

use std::io;
use std::process::ExitStatus;

/// An error of this crate. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is missing, and can't be installed automatically.
    #[error("`{program}` was not found: install it, for example by `{advice}`{}", because(.reason))]
    Missing {
        program: &'static str,
        /// The command that installs it.
        advice: String,
        /// Why it is needed, if that needs saying.
        reason: Option<String>,
    },

    /// A command that gets a program failed.
    #[error("`{command}` failed ({status}). The end of its output:\n{output}")]
    Failed {
        command: String,
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },

    /// A command that gets a program could not be run.
    #[error("can't run `{command}`, which gets {program}: {source}")]
    Run {
        command: String,
        /// The program that was wanted.
        program: &'static str,
        source: io::Error,
    },

    /// The downloaded package lacks the program.
    #[error("{package} has no {path}: its layout has changed; adapt `programs`")]
    Form {
        package: &'static str,
        /// Where the program should be.
        path: &'static str,
    },

    /// The cache or a build failed.
    #[error(transparent)]
    Devcluster(#[from] devcluster::Error),
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default()
}
