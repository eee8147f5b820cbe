//! Images for a node, from files. There is no registry, so pods need `imagePullPolicy: Never` or `IfNotPresent`.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Namespaces;
use super::config::CONTAINERD_SOCKET;
use crate::Error;
use crate::process::Guarded;

/// Talks to a node's containerd. Serializable, so that another process can load images too.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Loader {
    pub(crate) namespaces: Namespaces,
    pub(crate) ctr: PathBuf,
}

impl Loader {
    /// Loads the images of a docker-archive or of an OCI layout, each a tar file.
    pub(crate) fn load(&self, archive: &Path) -> Result<(), Error> {
        // Opened here and passed as stdin: the node may not see its path.
        let file = File::open(archive).map_err(Error::file("open", archive))?;
        // `--local`: the import by the server instead needs to be given platforms.
        let words = ["images", "import", "--local", "--snapshotter=native", "-"];
        let failed = |message| Error::Load { path: archive.to_owned(), message };
        self.run(&words, file.into()).map_err(failed)
    }

    /// Fails unless containerd responds.
    pub(crate) fn probe(&self) -> Result<(), String> {
        self.run(&["version"], Stdio::null())
    }

    fn run(&self, words: &[&str], input: Stdio) -> Result<(), String> {
        let mut flags: Vec<OsString> =
            ["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"].map(OsString::from).into();
        flags.extend(words.iter().map(OsString::from));
        let mut command = Command::new("nsenter");
        command.args(self.namespaces.enter(&self.ctr, &flags));
        let output = Guarded::output_of(command, input).map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
