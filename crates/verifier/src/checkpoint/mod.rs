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
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use self::format::{Body, Header, Reader, Unreadable, Writer};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::watermark::Mark;
use tokenward_core::check::NotAnEntry;
use tokenward_core::token::Peppers;
use tokenward_core::tombstone::{TOMBSTONE_BYTES, Tombstone};
use tokenward_runtime::entropy::{NoEntropy, random_bytes};

const FILE: &str = "index.checkpoint";
/// How often a checkpoint is written, if anything has happened since the last one, be it a bookmark.
const INTERVAL: Duration = Duration::from_secs(60);
/// One of so many tokens is written half as often, and so on: a file of 200 MB each minute would wear out a disk.
const TOKENS_OF_AN_INTERVAL: u32 = 100_000;
/// How soon after the first list the first one is written.
const POLL: Duration = Duration::from_millis(200);
/// After each part of a checkpoint, a pause of so many times as long as it took: checks come first.
const PAUSES: u32 = 4;
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// Where the checkpoint is, and from how many tokens on it is used.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    file: PathBuf,
    min_tokens: u64,
}

/// A checkpoint that can be used.
pub(super) struct Opened {
    header: Header,
    segments: Reader<BufReader<File>>,
    snapshot: Arc<Snapshot>,
    is_used: bool,
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
    #[error("the ApiTokens are listed, or something was missed")]
    Uncertain,
    #[error("the verifier ends")]
    Ended,
}

/// What a checkpoint begins with, and what must hold until it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    /// How far each watch of ApiTokens is.
    positions: Vec<u64>,
    /// How many lists each has had.
    lists: Vec<u64>,
}

impl Basis {
    /// `None`: a list is under way, or something was missed.
    fn of(snapshot: &Snapshot) -> Option<Self> {
        let marks = || snapshot.marks.tokens.iter().map(|(_, mark)| mark);
        let lists = marks().map(Mark::lists).collect::<Option<_>>()?;
        let positions: Vec<_> = marks().map(Mark::get).collect();
        (!positions.contains(&0)).then_some(Self { positions, lists })
    }

    /// Whether nothing but events has changed the index since. A list makes another entry of each object, so the versions of one
    /// that was read before it are found no more; and it may bring an earlier state of the cluster.
    fn holds(&self, snapshot: &Snapshot) -> bool {
        Self::of(snapshot).is_some_and(|now| now.lists == self.lists)
    }
}

impl Checkpoint {
    /// That of a folder, which exists. One with fewer than `min_tokens` brings back no tokens, but what was revoked.
    pub(super) fn in_folder(folder: &Path, min_tokens: u64) -> Self {
        Self { file: folder.join(FILE), min_tokens }
    }

    /// Opens it for a snapshot that has nothing yet. `None`: there is none that can be used, so all has to be listed.
    pub(super) async fn open(self, snapshot: Arc<Snapshot>, peppers: Arc<Peppers>) -> Option<Opened> {
        match spawn_blocking(move || self.read(snapshot, peppers)).await.ok()? {
            Ok(opened) => Some(opened),
            Err(Unusable::Unreadable(Unreadable::Io(error))) if error.kind() == io::ErrorKind::NotFound => {
                None
            }
            Err(reason) => {
                tell_unusable(&reason);
                None
            }
        }
    }

    fn read(self, snapshot: Arc<Snapshot>, peppers: Arc<Peppers>) -> Result<Opened, Unusable> {
        // Nobody waits for the other end of a pipe.
        if !std::fs::metadata(&self.file).map_err(Unreadable::Io)?.is_file() {
            return Err(Unreadable::Damaged.into());
        }
        let file = File::open(&self.file).map_err(Unreadable::Io)?;
        let (header, segments) = Reader::open(BufReader::new(file), peppers.clone())?;
        let watched = snapshot.marks.tokens.iter().map(|(namespace, _)| namespace);
        if !watched.eq(header.positions.iter().map(|(namespace, _)| namespace)) {
            return Err(Unusable::OtherNamespaces);
        }
        if !peppers.ids().all(|id| header.peppers.iter().any(|known| known == id.as_str())) {
            return Err(Unusable::NewPepper);
        }
        let is_used = header.tokens >= self.min_tokens;
        Ok(Opened { header, segments, snapshot, is_used })
    }

    /// Writes it again and again for as long as it is polled.
    pub(super) async fn keep(self, snapshot: Arc<Snapshot>, metrics: Metrics) {
        let mut last = None;
        // Whoever writes stops when this is dropped.
        let wanted = Arc::new(());
        loop {
            let basis = Basis::of(&snapshot)
                .filter(|basis| snapshot.are_tokens_listed() && last.as_ref() != Some(basis));
            let Some(basis) = basis else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            last = Some(basis.clone());
            let (checkpoint, of, is_wanted) = (self.clone(), snapshot.clone(), Arc::downgrade(&wanted));
            let written = spawn_blocking(move || checkpoint.write(&of, basis, &is_wanted));
            match written.await {
                Ok(Ok(())) => {
                    metrics.checkpoint.set(Timestamp::now().as_second());
                }
                Ok(Err(error)) => {
                    warn!(%error, file = %self.file.display(), "the checkpoint can't be written");
                }
                Err(error) => error!(%error, "the task that writes the checkpoint has failed"),
            }
            let tokens = u32::try_from(snapshot.index.len()).unwrap_or(u32::MAX);
            tokio::time::sleep(INTERVAL * (1 + tokens / TOKENS_OF_AN_INTERVAL)).await;
        }
    }

    /// Writes it beside the last one, which it replaces then.
    fn write(&self, snapshot: &Snapshot, basis: Basis, is_wanted: &Weak<()>) -> Result<(), Unwritten> {
        let new = self.file.with_extension("new");
        let written = self.write_to(&new, snapshot, basis, is_wanted);
        if written.is_err() {
            // Where the disk is full, it is in the way. Of two failures the first is told.
            let _ = std::fs::remove_file(&new);
        }
        written.and_then(|()| Ok(std::fs::rename(&new, &self.file)?))
    }

    /// Events go on to be applied meanwhile. So some tokens are later than the resourceVersion from which the checkpoint goes on, which
    /// does no harm: whatever comes after it is brought again, in order, each object as a whole.
    fn write_to(
        &self,
        path: &Path,
        snapshot: &Snapshot,
        basis: Basis,
        is_wanted: &Weak<()>,
    ) -> Result<(), Unwritten> {
        let peppers = snapshot.index_peppers.load_full().ok_or(Unwritten::NoPepper)?;
        let namespaces = snapshot.marks.tokens.iter().map(|(namespace, _)| namespace.clone());
        let header = Header::of(
            *random_bytes()?,
            &peppers,
            Timestamp::now().as_millisecond(),
            u64::try_from(snapshot.index.len()).unwrap_or_default(),
            namespaces.zip(basis.positions.iter().copied()).collect(),
        );
        // What an earlier one has left, be it a link.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut segments = Writer::begin(BufWriter::new(file), &header, &peppers)?;
        // First, as they end what comes after them.
        for tombstones in snapshot.index.tombstones().chunks(format::SEGMENT / TOMBSTONE_BYTES) {
            let digests: Vec<_> = tombstones.iter().map(|tombstone| *tombstone.as_bytes()).collect();
            segments.write(Body::Tombstones(digests.as_flattened()))?;
        }
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
            if is_wanted.strong_count() == 0 {
                return Err(Unwritten::Ended);
            }
            std::thread::sleep((began.elapsed() * PAUSES).min(MAX_PAUSE));
        }
        segments.end()?.flush()?;
        if basis.holds(snapshot) { Ok(()) } else { Err(Unwritten::Uncertain) }
    }
}

impl Opened {
    /// The resourceVersion of each watch up to which everything is known, once it is restored. None, where no tokens are.
    pub(super) fn positions(&self) -> Vec<u64> {
        let positions = self.header.positions.iter().filter(|_| self.is_used);
        positions.map(|(_, at)| *at).collect()
    }

    /// Puts it into the index. `false`: all has to be listed, which removes whatever was put there.
    pub(super) async fn restore(mut self) -> bool {
        let (began, tokens, is_used) = (Instant::now(), self.header.tokens, self.is_used);
        let written_at = Timestamp::from_millisecond(self.header.written_at).unwrap_or_default();
        match spawn_blocking(move || self.fill()).await {
            Ok(Ok(())) if is_used => {
                info!(tokens, %written_at, seconds = began.elapsed().as_secs_f64(), "restored a checkpoint");
                true
            }
            Ok(Ok(())) => {
                info!(
                    tokens,
                    "the checkpoint has fewer tokens than --checkpoint-min-tokens, so all are listed"
                );
                false
            }
            Err(_) => false,
            Ok(Err(reason)) => {
                tell_unusable(&reason);
                false
            }
        }
    }

    fn fill(&mut self) -> Result<(), Unusable> {
        let index = &self.snapshot.index;
        if self.is_used {
            index.reserve(usize::try_from(self.header.tokens).unwrap_or_default());
        }
        while let Some(body) = self.segments.next()? {
            match body {
                Body::Tokens(packed) if self.is_used => index.restore(packed)?,
                // What was revoked comes before them.
                Body::Tokens(_) => break,
                Body::Tombstones(digests) => {
                    let (digests, _) = digests.as_chunks::<TOMBSTONE_BYTES>();
                    index.restore_tombstones(digests.iter().copied().map(Tombstone::from_bytes));
                }
            }
        }
        Ok(())
    }
}

fn tell_unusable(reason: &Unusable) {
    warn!(%reason, "the checkpoint can't be used, so all is listed");
}

#[cfg(test)]
mod tests {
    use tokenward_core::check::{Audience, Decision};

    use super::*;
    use crate::endpoints::fixture::{Fixture, plaintext, spec};
    use crate::snapshot::TokenCheck;
    use crate::watermark::Marks;

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
        let checkpoint = Checkpoint::in_folder(folder.path(), 0);
        let fixture = Fixture { snapshot: watching(&["ns"]), ..Fixture::unready(&[]) };
        fixture.with(1, spec());
        fixture.with(2, tokenward_core::crd::ApiTokenSpec { revoked: Some(true), ..spec() });
        fixture.snapshot.index_peppers.store(Some(Arc::new(fixture.peppers.clone())));
        write(&checkpoint, &fixture.snapshot).expect("a checkpoint");
        (folder, checkpoint, fixture.peppers)
    }

    fn write(checkpoint: &Checkpoint, snapshot: &Snapshot) -> Result<(), Unwritten> {
        let wanted = Arc::new(());
        let basis = Basis::of(snapshot).ok_or(Unwritten::Uncertain)?;
        checkpoint.write(snapshot, basis, &Arc::downgrade(&wanted))
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
        let opened =
            checkpoint.open(snapshot.clone(), Arc::new(peppers.clone())).await.expect("a checkpoint");
        assert_eq!(opened.positions(), [9]);
        assert!(opened.restore().await);
        assert_eq!((snapshot.index.len(), snapshot.index.tombstones().len()), (2, 1));
        assert!(works(&snapshot, 1, &peppers) && !works(&snapshot, 2, &peppers));
    }

    /// A few tokens are listed sooner than the API server says how far it is. What was revoked is known all the same.
    #[tokio::test]
    async fn a_few_tokens_are_listed() {
        let (folder, _, peppers) = written();
        let snapshot = watching(&["ns"]);
        let checkpoint = Checkpoint::in_folder(folder.path(), 3);
        let opened = checkpoint.open(snapshot.clone(), Arc::new(peppers)).await.expect("a checkpoint");
        assert!(opened.positions().is_empty());
        assert!(!opened.restore().await);
        assert_eq!((snapshot.index.len(), snapshot.index.tombstones().len()), (0, 1));
    }

    /// A file that was damaged behind its header.
    #[tokio::test]
    async fn what_is_not_whole_is_listed() {
        let (_folder, checkpoint, peppers) = written();
        let whole = std::fs::read(&checkpoint.file).expect("a checkpoint");
        std::fs::write(&checkpoint.file, &whole[..whole.len() - 1]).expect("a file");
        let opened = checkpoint.open(watching(&["ns"]), Arc::new(peppers)).await.expect("a header");
        assert!(!opened.restore().await);
    }

    #[tokio::test]
    async fn what_is_of_others_is_not_used() {
        let (_folder, checkpoint, peppers) = written();
        let peppers = Arc::new(peppers);
        let opened = |namespaces: &[&str], peppers: &Arc<Peppers>| {
            checkpoint.clone().open(watching(namespaces), peppers.clone())
        };
        assert!(opened(&["ns"], &peppers).await.is_some());
        assert!(opened(&["ns", "other"], &peppers).await.is_none(), "more namespaces");
        assert!(opened(&["other"], &peppers).await.is_none(), "another namespace");
        let other = Arc::new(Peppers::from_data(&Peppers::new_data(&[PEPPER + 1; 32])).expect("peppers"));
        assert!(opened(&["ns"], &other).await.is_none(), "another pepper");
        std::fs::write(&checkpoint.file, b"tokenward checkpoint\n").expect("a file");
        assert!(opened(&["ns"], &peppers).await.is_none(), "damaged");
        std::fs::remove_file(&checkpoint.file).expect("no file");
        assert!(opened(&["ns"], &peppers).await.is_none(), "none");
    }

    /// Versions may have been left out for want of it.
    #[tokio::test]
    async fn a_pepper_that_is_new_needs_a_list() {
        let (_folder, checkpoint, _) = written();
        let mut data = Peppers::new_data(&[PEPPER; 32]);
        data.insert("p9".to_owned(), vec![9; 32]);
        let peppers = Arc::new(Peppers::from_data(&data).expect("peppers"));
        assert!(checkpoint.open(watching(&["ns"]), peppers).await.is_none());
    }

    /// What can't be written leaves nothing.
    #[test]
    fn a_checkpoint_is_whole_or_not_there() {
        let (folder, checkpoint, peppers) = written();
        let before = std::fs::read(&checkpoint.file).expect("a checkpoint");
        let snapshot = watching(&["ns"]);
        assert!(matches!(write(&checkpoint, &snapshot), Err(Unwritten::NoPepper)));
        snapshot.index_peppers.store(Some(Arc::new(peppers)));
        let basis = || Basis::of(&snapshot).expect("a basis");
        assert!(matches!(checkpoint.write(&snapshot, basis(), &Weak::new()), Err(Unwritten::Ended)));
        let elsewhere = Checkpoint::in_folder(&folder.path().join("none"), 0);
        assert!(matches!(write(&elsewhere, &snapshot), Err(Unwritten::Io(_))));
        // A list that went by makes nothing of it certain.
        let (old, mark) = (basis(), &mut snapshot.marks.tokens[0].1.clone());
        mark.list_begins();
        mark.list_ends(9);
        let wanted = Arc::new(());
        let written = checkpoint.write(&snapshot, old, &Arc::downgrade(&wanted));
        assert!(matches!(written, Err(Unwritten::Uncertain)));
        assert_eq!(std::fs::read(&checkpoint.file).expect("a checkpoint"), before);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
        write(&checkpoint, &snapshot).expect("a checkpoint");
    }

    #[test]
    fn what_is_not_certain_is_no_basis() {
        let snapshot = watching(&["ns", "other"]);
        let mut mark = snapshot.marks.tokens[1].1.clone();
        let basis = Basis::of(&snapshot).expect("a basis");
        mark.applied(12);
        assert!(basis.holds(&snapshot), "an event is brought again");
        mark.list_begins();
        assert!(!basis.holds(&snapshot) && Basis::of(&snapshot).is_none(), "a list is under way");
        mark.list_ends(12);
        assert!(!basis.holds(&snapshot), "a list went by");
        let basis = Basis::of(&snapshot).expect("a basis");
        mark.has_gap();
        assert!(!basis.holds(&snapshot) && Basis::of(&snapshot).is_none(), "something was missed");
    }

    /// It may be a pipe, which nobody may ever write to.
    #[tokio::test]
    async fn what_is_no_file_is_not_read() {
        let (_folder, checkpoint, peppers) = written();
        std::fs::remove_file(&checkpoint.file).expect("no file");
        std::fs::create_dir(&checkpoint.file).expect("a folder");
        assert!(checkpoint.open(watching(&["ns"]), Arc::new(peppers)).await.is_none());
    }
}
