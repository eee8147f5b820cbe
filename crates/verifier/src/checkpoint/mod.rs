//! The checkpoint: the index in a file, by which a container that is started again is soon ready, without a list of all ApiTokens.
//!
//! It is trusted for nothing but what it saves. Each segment has a MAC under the pepper, which no file contains; and checks are
//! answered only once the API server has brought what has happened since, up to where it was when the process asked. So a
//! revocation that others have confirmed is known here as well, and a checkpoint from long ago is only less useful.

mod format;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use self::format::{Body, Header, Reader, Unreadable, Writer};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use tokenward_core::check::NotAnEntry;
use tokenward_core::token::Peppers;
use tokenward_core::tombstone::{TOMBSTONE_BYTES, Tombstone};
use tokenward_runtime::entropy::{NoEntropy, random_bytes};

const FILE: &str = "index.checkpoint";
/// How often a checkpoint is written, if anything has happened since the last one.
const INTERVAL: Duration = Duration::from_secs(60);
/// One of so many tokens is written half as often, and so on: a file of 200 MB each minute would wear out a disk.
const TOKENS_OF_AN_INTERVAL: u32 = 100_000;
/// How soon after the first list the first one is written.
const POLL: Duration = Duration::from_millis(200);
/// After each part of a checkpoint, a pause of so many times as long as it took: checks come first.
const PAUSES: u32 = 4;

/// Where the checkpoint is.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    file: PathBuf,
}

/// Why a checkpoint is not used.
#[derive(Debug, Error)]
enum Unusable {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("it is of other namespaces")]
    OtherNamespaces,
    #[error("there is a pepper that was not there when it was written")]
    NewPepper,
    #[error(transparent)]
    NotAnEntry(#[from] NotAnEntry),
}

/// Why a checkpoint is not written.
#[derive(Debug, Error)]
enum Unwritten {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    NotAnEntry(#[from] NotAnEntry),
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
    #[error("the pepper is not there")]
    NoPepper,
    #[error("what it began with was replaced meanwhile")]
    Replaced,
}

impl Checkpoint {
    /// That of a folder, which exists.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { file: folder.join(FILE) }
    }

    /// Puts it into the index of a snapshot that has nothing yet. Returns the resourceVersion of each watch up to which
    /// everything is known then. `None`: all has to be listed, which removes whatever was put there.
    pub(super) async fn restore(self, snapshot: Arc<Snapshot>, peppers: Arc<Peppers>) -> Option<Vec<u64>> {
        let began = Instant::now();
        let file = self.file.display().to_string();
        let restored = spawn_blocking(move || self.read(&snapshot, &peppers)).await.ok()?;
        match restored {
            Ok(header) => {
                let (tokens, seconds) = (header.tokens, began.elapsed().as_secs_f64());
                let written_at = Timestamp::from_millisecond(header.written_at).unwrap_or_default();
                info!(tokens, %written_at, seconds, "restored a checkpoint");
                Some(header.positions.into_iter().map(|(_, at)| at).collect())
            }
            Err(Unusable::Unreadable(Unreadable::Io(error))) if error.kind() == io::ErrorKind::NotFound => {
                None
            }
            Err(reason) => {
                warn!(%reason, file, "the checkpoint can't be used, so all is listed");
                None
            }
        }
    }

    fn read(&self, snapshot: &Snapshot, peppers: &Peppers) -> Result<Header, Unusable> {
        let file = File::open(&self.file).map_err(Unreadable::Io)?;
        let (header, mut segments) = Reader::open(BufReader::new(file), peppers)?;
        let watched = snapshot.marks.tokens.iter().map(|(namespace, _)| namespace);
        if !watched.eq(header.positions.iter().map(|(namespace, _)| namespace)) {
            return Err(Unusable::OtherNamespaces);
        }
        if !peppers.ids().all(|id| header.peppers.iter().any(|known| known == id.as_str())) {
            return Err(Unusable::NewPepper);
        }
        snapshot.index.reserve(usize::try_from(header.tokens).unwrap_or_default());
        while let Some(body) = segments.next()? {
            match body {
                Body::Tokens(packed) => snapshot.index.restore(packed)?,
                Body::Tombstones(digests) => {
                    let (digests, _) = digests.as_chunks::<TOMBSTONE_BYTES>();
                    snapshot.index.restore_tombstones(digests.iter().copied().map(Tombstone::from_bytes));
                }
            }
        }
        Ok(header)
    }

    /// Writes it again and again for as long as it is polled.
    pub(super) async fn keep(self, snapshot: Arc<Snapshot>, metrics: Metrics) {
        let mut last = Vec::new();
        loop {
            let at = positions(&snapshot);
            if !snapshot.are_tokens_listed() || at.contains(&0) || at == last {
                tokio::time::sleep(POLL).await;
                continue;
            }
            let (checkpoint, of) = (self.clone(), snapshot.clone());
            match spawn_blocking(move || checkpoint.write(&of)).await {
                Ok(Ok(())) => {
                    metrics.checkpoint.set(Timestamp::now().as_second());
                }
                Ok(Err(error)) => {
                    warn!(%error, file = %self.file.display(), "the checkpoint can't be written");
                }
                Err(_) => return,
            }
            last = at;
            let tokens = u32::try_from(snapshot.index.len()).unwrap_or(u32::MAX);
            tokio::time::sleep(INTERVAL * (1 + tokens / TOKENS_OF_AN_INTERVAL)).await;
        }
    }

    /// Writes it beside the last one, which it replaces then.
    fn write(&self, snapshot: &Snapshot) -> Result<(), Unwritten> {
        let new = self.file.with_extension("new");
        let written = self.write_to(&new, snapshot);
        if written.is_err() {
            // Where the disk is full, it is in the way. Of two failures the first is told.
            let _ = std::fs::remove_file(&new);
        }
        written.and_then(|()| Ok(std::fs::rename(&new, &self.file)?))
    }

    /// The feed goes on meanwhile. So some tokens are later than the resourceVersion by which the checkpoint goes on, which does no
    /// harm: whatever comes after it is brought again, in order, each object as a whole.
    fn write_to(&self, path: &Path, snapshot: &Snapshot) -> Result<(), Unwritten> {
        let peppers = snapshot.peppers.load_full().ok_or(Unwritten::NoPepper)?;
        let begin = positions(snapshot);
        let namespaces = snapshot.marks.tokens.iter().map(|(namespace, _)| namespace.clone());
        let header = Header::of(
            *random_bytes()?,
            &peppers,
            Timestamp::now().as_millisecond(),
            u64::try_from(snapshot.index.len()).unwrap_or_default(),
            namespaces.zip(begin.iter().copied()).collect(),
        );
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut segments = Writer::begin(BufWriter::new(file), &header, &peppers)?;
        for part in snapshot.index.parts() {
            let began = Instant::now();
            let mut packed = Vec::new();
            for entry in part {
                packed = entry.pack(&snapshot.index.versions(&entry), packed)?;
                if packed.len() >= format::SEGMENT {
                    segments.write(Body::Tokens(&packed))?;
                    packed.clear();
                }
            }
            segments.write(Body::Tokens(&packed))?;
            std::thread::sleep(began.elapsed() * PAUSES);
        }
        for tombstones in snapshot.index.tombstones().chunks(format::SEGMENT / TOMBSTONE_BYTES) {
            let digests: Vec<_> = tombstones.iter().map(|tombstone| *tombstone.as_bytes()).collect();
            segments.write(Body::Tombstones(digests.as_flattened()))?;
        }
        segments.end()?.flush()?;
        // After an outage, a list may have brought an earlier state of the cluster.
        let is_ahead = positions(snapshot).iter().zip(&begin).all(|(now, then)| now >= then);
        if is_ahead { Ok(()) } else { Err(Unwritten::Replaced) }
    }
}

/// How far each watch of ApiTokens is. 0: nothing is certain.
fn positions(snapshot: &Snapshot) -> Vec<u64> {
    snapshot.marks.tokens.iter().map(|(_, mark)| mark.get()).collect()
}

#[cfg(test)]
mod tests {
    use tokenward_core::check::{Audience, Decision};

    use super::*;
    use crate::endpoints::fixture::{Fixture, plaintext, spec};
    use crate::snapshot::TokenCheck;
    use crate::watermark::{Mark, Marks};

    const PEPPER: u8 = 1;

    fn watching(namespaces: &[&str]) -> Arc<Snapshot> {
        let mark = |namespace: &&str| {
            let mark = Mark::default();
            mark.applied(9);
            (Some((*namespace).to_owned()), mark)
        };
        Arc::new(Snapshot::of(Marks { tokens: namespaces.iter().map(mark).collect(), ..Marks::default() }))
    }

    /// A folder with the checkpoint of a snapshot with tokens 1 and 2, of which the second is revoked.
    fn written() -> (tempfile::TempDir, Checkpoint, Peppers) {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = Checkpoint::in_folder(folder.path());
        let fixture = Fixture { snapshot: watching(&["ns"]), ..Fixture::unready(&[]) };
        fixture.with(1, spec());
        fixture.with(2, tokenward_core::crd::ApiTokenSpec { revoked: Some(true), ..spec() });
        fixture.snapshot.peppers.store(Some(Arc::new(fixture.peppers.clone())));
        checkpoint.write(&fixture.snapshot).expect("a checkpoint");
        (folder, checkpoint, fixture.peppers)
    }

    /// Whether a token works by a snapshot.
    fn works(snapshot: &Snapshot, number: u8, peppers: &Peppers) -> bool {
        snapshot.peppers.store(Some(Arc::new(peppers.clone())));
        snapshot.set_tokens_listed(true);
        snapshot.set_locks_listed(true);
        let text = plaintext(number);
        let check = TokenCheck {
            presented: text.expose().as_bytes(),
            scopes: &["audit:read"],
            audience: Audience::LeftToCaller,
            client: None,
        };
        snapshot.decide(&check, |decision| matches!(decision, Decision::Allow(_))).expect("a decision")
    }

    #[tokio::test]
    async fn what_was_written_is_restored() {
        let (_folder, checkpoint, peppers) = written();
        let snapshot = watching(&["ns"]);
        let known = checkpoint.restore(snapshot.clone(), Arc::new(peppers.clone())).await;
        assert_eq!(known.as_deref(), Some(&[9][..]));
        assert_eq!((snapshot.index.len(), snapshot.index.tombstones().len()), (2, 1));
        assert!(works(&snapshot, 1, &peppers) && !works(&snapshot, 2, &peppers));
    }

    #[tokio::test]
    async fn what_is_of_others_is_not_used() {
        let (_folder, checkpoint, peppers) = written();
        let peppers = Arc::new(peppers);
        let restored = |namespaces: &[&str], peppers: &Arc<Peppers>| {
            checkpoint.clone().restore(watching(namespaces), peppers.clone())
        };
        assert!(restored(&["ns"], &peppers).await.is_some());
        assert!(restored(&["ns", "other"], &peppers).await.is_none(), "more namespaces");
        assert!(restored(&["other"], &peppers).await.is_none(), "another namespace");
        let other = Arc::new(Peppers::from_data(&Peppers::new_data(&[PEPPER + 1; 32])).expect("peppers"));
        assert!(restored(&["ns"], &other).await.is_none(), "another pepper");
        std::fs::write(&checkpoint.file, b"tokenward checkpoint\n").expect("a file");
        assert!(restored(&["ns"], &peppers).await.is_none(), "damaged");
        std::fs::remove_file(&checkpoint.file).expect("no file");
        assert!(restored(&["ns"], &peppers).await.is_none(), "none");
    }

    /// Versions may have been left out for want of it.
    #[tokio::test]
    async fn a_pepper_that_is_new_needs_a_list() {
        let (_folder, checkpoint, _) = written();
        let mut data = Peppers::new_data(&[PEPPER; 32]);
        data.insert("p9".to_owned(), vec![9; 32]);
        let peppers = Arc::new(Peppers::from_data(&data).expect("peppers"));
        assert!(checkpoint.restore(watching(&["ns"]), peppers).await.is_none());
    }

    /// What is not certain is not written, and what can't be written leaves nothing.
    #[test]
    fn a_checkpoint_is_whole_or_not_there() {
        let (folder, checkpoint, _) = written();
        let before = std::fs::read(&checkpoint.file).expect("a checkpoint");
        assert!(matches!(checkpoint.write(&watching(&["ns"])), Err(Unwritten::NoPepper)));
        assert_eq!(std::fs::read(&checkpoint.file).expect("a checkpoint"), before);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
        let elsewhere = Checkpoint::in_folder(&folder.path().join("none"));
        let fixture = Fixture::new();
        fixture.snapshot.peppers.store(Some(Arc::new(fixture.peppers.clone())));
        assert!(matches!(elsewhere.write(&fixture.snapshot), Err(Unwritten::Io(_))));
    }
}
