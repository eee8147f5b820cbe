//! Container images from files, without an engine and without a registry.
//!
//! The format is docker-archive, as `docker save` writes it: a layer (a tar of files), a config, and a manifest that
//! names both. Docker, Podman, containerd and skopeo read it. It is specified by Docker's image specification v1.2:
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md>.
//! The same files make the same bytes: owners are root, times are zero, the order is that of the calls.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::Error;
use crate::packages::{self, Need};

const BUSYBOX: Need = Need { any_of: &["busybox"], package: "busybox-static", service: None };
/// The tools that get a link: those that pods are likely to use.
const APPLETS: [&str; 24] = [
    "sh", "cat", "date", "echo", "env", "grep", "head", "httpd", "id", "ls", "mkdir", "nc", "nslookup", "ps",
    "sed", "sleep", "tail", "test", "timeout", "touch", "tr", "true", "wc", "wget",
];

#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    entries: Vec<Entry>,
    entrypoint: Vec<String>,
    user: String,
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Program(PathBuf),
    Folder,
    Link(String),
}

impl Image {
    /// An empty image with this name, such as `example.test/pause:1`.
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            entries: Vec::new(),
            entrypoint: Vec::new(),
            user: "65532".to_owned(),
        }
    }

    /// An image with a shell and the usual small tools, of Debian's package `busybox-static`, to try things in
    /// a pod. Root installs the package if it is missing.
    pub fn busybox(reference: &str) -> Result<Self, Error> {
        packages::provide(&[BUSYBOX])?;
        let program = BUSYBOX.find().unwrap_or_default();
        let bytes = fs::read(&program).map_err(Error::file("read", &program))?;
        if needs_libraries(&bytes) {
            let reason = " (the busybox that is there needs libraries)".to_owned();
            return Err(Error::Packages { packages: BUSYBOX.package.to_owned(), reason });
        }
        let image = Self::new(reference).program("/bin/busybox", &program).shared_folder("/tmp");
        Ok(APPLETS.iter().fold(image, |image, name| image.link(&format!("/bin/{name}"), "busybox")))
    }

    /// Adds an executable file (mode 755).
    #[must_use]
    pub fn program(self, path: &str, source: &Path) -> Self {
        self.entry(path, Content::Program(source.to_owned()))
    }

    /// Adds a world-writable folder with the sticky bit, such as `/tmp`.
    #[must_use]
    pub fn shared_folder(self, path: &str) -> Self {
        self.entry(path, Content::Folder)
    }

    #[must_use]
    pub fn link(self, path: &str, to: &str) -> Self {
        self.entry(path, Content::Link(to.to_owned()))
    }

    /// The command of a container, unless its pod overrides it.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The user of a container, as `uid` or `uid:gid`. Default: 65532, the usual "nonroot".
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    pub fn write(&self, archive: &Path) -> Result<(), Error> {
        let layer = self.layer()?;
        let config = self.config(&layer);
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": [self.reference], "Layers": ["layer.tar"] }]);
        let file = File::create(archive).map_err(Error::file("create", archive))?;
        let mut tar = Builder::new(file);
        let parts = [
            ("layer.tar", layer),
            ("config.json", config),
            ("manifest.json", manifest.to_string().into_bytes()),
        ];
        let written = parts.iter().try_for_each(|(name, content)| {
            tar.append_data(
                &mut header(EntryType::Regular, 0o644, content.len() as u64),
                name,
                content.as_slice(),
            )
        });
        written.and_then(|()| tar.finish()).map_err(Error::file("write", archive))
    }

    fn entry(mut self, path: &str, content: Content) -> Self {
        self.entries.push(Entry { path: path.trim_start_matches('/').to_owned(), content });
        self
    }

    fn layer(&self) -> Result<Vec<u8>, Error> {
        let mut tar = Builder::new(Vec::new());
        for Entry { path, content } in &self.entries {
            let failed = || Error::file("put into an image", path);
            match content {
                Content::Program(source) => {
                    let bytes = fs::read(source).map_err(Error::file("read", source))?;
                    let mut header = header(EntryType::Regular, 0o755, bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice()).map_err(failed())?;
                }
                Content::Folder => {
                    let mut header = header(EntryType::Directory, 0o1777, 0);
                    tar.append_data(&mut header, path, io::empty()).map_err(failed())?;
                }
                Content::Link(to) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, to).map_err(failed())?;
                }
            }
        }
        tar.into_inner().map_err(Error::file("put together", &self.reference))
    }

    fn config(&self, layer: &[u8]) -> Vec<u8> {
        let digest: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        config.to_string().into_bytes()
    }
}

/// Whether an ELF program names a dynamic loader; the name is near its beginning.
fn needs_libraries(program: &[u8]) -> bool {
    let start = program.get(..4096).unwrap_or(program);
    start.windows(4).any(|word| word == b"/ld-")
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// This machine's architecture, by the name that Go and images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;
    use std::io::Read;

    fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn an_archive_names_a_layer_that_has_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "#!/bin/sh").unwrap();
        let image = Image::new("example.test/it:1")
            .program("/bin/it", &program)
            .link("/bin/that", "it")
            .shared_folder("/tmp")
            .entrypoint(&["/bin/it"]);
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        image.write(&one).unwrap();
        image.write(&two).unwrap();
        let bytes = fs::read(&one).unwrap();
        assert_eq!(bytes, fs::read(&two).unwrap());

        let parts = entries(&bytes);
        let part = |name: &str| parts.iter().find(|(found, _)| found == name).unwrap().1.clone();
        let config: serde_json::Value = serde_json::from_slice(&part("config.json")).unwrap();
        let digest: String =
            Sha256::digest(part("layer.tar")).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{digest}"));
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/it");
        let layer = entries(&part("layer.tar"));
        let names: Vec<_> = layer.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["bin/it", "bin/that", "tmp"]);
        let manifest: serde_json::Value = serde_json::from_slice(&part("manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example.test/it:1");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::new("x:1").program("/x", &folder.path().join("absent"));
        assert!(image.write(&folder.path().join("x.tar")).unwrap_err().to_string().contains("absent"));
    }
}
