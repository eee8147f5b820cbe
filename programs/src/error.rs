//! What can go wrong, and what to do about it.

use std::io;
use std::process::ExitStatus;

/// An error of this crate. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is not there, and can't be installed from here.
    #[error("`{program}` was not found: install it, for example by `{advice}`{}", because(.reason))]
    Missing {
        /// The program.
        program: &'static str,
        /// A command that installs it.
        advice: String,
        /// Why it was not done here, if that is not plain.
        reason: Option<String>,
    },

    /// A command that gets a program failed.
    #[error("`{command}` failed ({status}). The end of what it said:\n{output}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },

    /// A command that gets a program could not be run.
    #[error("can't run `{command}`, which gets {program}: {source}")]
    Run {
        /// The command.
        command: String,
        /// The program that was wanted.
        program: &'static str,
        /// Why.
        source: io::Error,
    },

    /// What was downloaded lacks the program.
    #[error("{package} holds no {path}: the package has changed its form, look into it and adapt `programs`")]
    Form {
        /// The package.
        package: &'static str,
        /// Where the program should be.
        path: &'static str,
    },

    /// The cache, or a build.
    #[error(transparent)]
    Devcluster(#[from] devcluster::Error),
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default()
}
