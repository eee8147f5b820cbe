//! The file of a checkpoint: a header, and segments, of which the first authenticates the header and the last the end.
//!
//! `tokenward checkpoint\n`, the length of the header, the header; and for each segment its length, whether it is the last, its
//! body and its MAC. Numbers are big-endian, 32 bits. A body begins with its kind. Nothing is used before its MAC was verified,
//! and no more than one segment is in memory.

use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use tokenward_core::check::FORM;
use tokenward_core::lock::{Facet, facets};
use tokenward_core::token::{Peppers, Segment};

const MAGIC: &[u8] = b"tokenward checkpoint\n";
/// The size from which a segment is written, in bytes.
pub(super) const SEGMENT: usize = 1 << 20;
/// No header or segment is longer: the largest entry has far less than the other half.
const MAX_BYTES: usize = 2 * SEGMENT;
const MAC_BYTES: usize = 32;
const TOKENS: u8 = 0;
const TOMBSTONES: u8 = 1;

/// What a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    build: Build,
    /// Random, so that no segment of another checkpoint fits.
    id: [u8; 16],
    /// The ids of all peppers that there were.
    pub peppers: Vec<String>,
    /// In milliseconds since the epoch.
    pub written_at: i64,
    /// About how many tokens it has.
    pub tokens: u64,
    /// Of each watch, its namespace, or `None` for all, and the resourceVersion up to which everything is in it.
    pub positions: Vec<(Option<String>, u64)>,
}

/// What has to be the same in whoever reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Build {
    version: String,
    form: u32,
    /// The facet of some label: the standard library may hash otherwise one day.
    facet: Option<Facet>,
}

/// Why a checkpoint can't be read.
#[derive(Debug, Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not whole, or was not written under this pepper")]
    Damaged,
    #[error("another version of tokenward has written it")]
    OtherBuild,
}

/// What a segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'b> {
    /// Packed entries, end to end.
    Tokens(&'b [u8]),
    Tombstones(&'b [u8]),
}

impl Header {
    pub(super) fn of(
        id: [u8; 16],
        peppers: &Peppers,
        written_at: i64,
        tokens: u64,
        positions: Vec<(Option<String>, u64)>,
    ) -> Self {
        let peppers = peppers.ids().map(|id| id.as_str().to_owned()).collect();
        Self { build: Build::own(), id, peppers, written_at, tokens, positions }
    }
}

impl Build {
    fn own() -> Self {
        let label = [("checkpoint".to_owned(), "facet".to_owned())].into();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            form: FORM,
            facet: facets(Some(&label), None).first().copied(),
        }
    }
}

pub(super) struct Writer<'p, W> {
    out: W,
    peppers: &'p Peppers,
    header: Vec<u8>,
    number: u64,
}

impl<'p, W: Write> Writer<'p, W> {
    pub(super) fn begin(mut out: W, header: &Header, peppers: &'p Peppers) -> io::Result<Self> {
        let header = postcard::to_stdvec(header).map_err(io::Error::other)?;
        out.write_all(MAGIC)?;
        out.write_all(&length(&header)?)?;
        out.write_all(&header)?;
        let mut writer = Self { out, peppers, header, number: 0 };
        writer.segment(&[], false)?;
        Ok(writer)
    }

    pub(super) fn write(&mut self, body: Body<'_>) -> io::Result<()> {
        let (kind, bytes) = match body {
            Body::Tokens(bytes) => (TOKENS, bytes),
            Body::Tombstones(bytes) => (TOMBSTONES, bytes),
        };
        self.segment(&[&[kind], bytes].concat(), false)
    }

    pub(super) fn end(mut self) -> io::Result<W> {
        self.segment(&[], true)?;
        Ok(self.out)
    }

    fn segment(&mut self, body: &[u8], is_last: bool) -> io::Result<()> {
        let segment = Segment { header: &self.header, number: self.number, is_last, body };
        let mac = segment.mac(self.peppers, &self.peppers.current());
        let mac = mac.ok_or_else(|| io::Error::other("there is no current pepper"))?;
        self.number += 1;
        self.out.write_all(&length(body)?)?;
        self.out.write_all(&[u8::from(is_last)])?;
        self.out.write_all(body)?;
        self.out.write_all(&mac)
    }
}

fn length(bytes: &[u8]) -> io::Result<[u8; 4]> {
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other("a part is too long"));
    }
    Ok(u32::try_from(bytes.len()).map_err(io::Error::other)?.to_be_bytes())
}

pub(super) struct Reader<R> {
    input: R,
    peppers: Arc<Peppers>,
    header: Vec<u8>,
    number: u64,
    body: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub(super) fn open(mut input: R, peppers: Arc<Peppers>) -> Result<(Header, Self), Unreadable> {
        let mut magic = [0; MAGIC.len()];
        read(&mut input, &mut magic)?;
        if magic != MAGIC {
            return Err(Unreadable::Damaged);
        }
        let length = read_length(&mut input)?;
        let mut header = vec![0; length];
        read(&mut input, &mut header)?;
        let mut reader = Self { input, peppers, header, number: 0, body: Vec::new() };
        reader.segment()?;
        let read: Header = postcard::from_bytes(&reader.header).map_err(|_| Unreadable::OtherBuild)?;
        if read.build != Build::own() {
            return Err(Unreadable::OtherBuild);
        }
        Ok((read, reader))
    }

    /// The next body. `None`: this is the end, and nothing is missing.
    pub(super) fn next(&mut self) -> Result<Option<Body<'_>>, Unreadable> {
        if self.segment()? {
            return Ok(None);
        }
        match self.body.split_first() {
            Some((&TOKENS, bytes)) => Ok(Some(Body::Tokens(bytes))),
            Some((&TOMBSTONES, bytes)) => Ok(Some(Body::Tombstones(bytes))),
            _ => Err(Unreadable::OtherBuild),
        }
    }

    /// Reads a segment. Returns whether it is the last.
    fn segment(&mut self) -> Result<bool, Unreadable> {
        let length = read_length(&mut self.input)?;
        let mut is_last = [0];
        read(&mut self.input, &mut is_last)?;
        self.body.resize(length, 0);
        read(&mut self.input, &mut self.body)?;
        let mut mac = [0; MAC_BYTES];
        read(&mut self.input, &mut mac)?;
        let is_last = match is_last {
            [0] => false,
            [1] => true,
            _ => return Err(Unreadable::Damaged),
        };
        let segment = Segment { header: &self.header, number: self.number, is_last, body: &self.body };
        if !segment.verify(&self.peppers, &mac) {
            return Err(Unreadable::Damaged);
        }
        self.number += 1;
        Ok(is_last)
    }
}

fn read_length(input: &mut impl Read) -> Result<usize, Unreadable> {
    let mut bytes = [0; 4];
    read(input, &mut bytes)?;
    let length = usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX);
    if length > MAX_BYTES { Err(Unreadable::Damaged) } else { Ok(length) }
}

/// Fills the whole buffer. A file that ends before is not whole.
fn read(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), Unreadable> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Unreadable::Damaged,
        _ => Unreadable::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    fn header(id: u8) -> Header {
        Header::of([id; 16], &peppers(1), 7, 2, vec![(None, 9)])
    }

    fn written(id: u8) -> Vec<u8> {
        let peppers = peppers(1);
        let mut writer = Writer::begin(Vec::new(), &header(id), &peppers).expect("a header");
        writer.write(Body::Tokens(b"some tokens")).expect("a segment");
        writer.write(Body::Tombstones(b"and what was revoked")).expect("a segment");
        writer.end().expect("the end")
    }

    /// The header, and what each segment has.
    fn read_all(file: &[u8], peppers: &Peppers) -> Result<(Header, Vec<Vec<u8>>), Unreadable> {
        let (header, mut reader) = Reader::open(file, Arc::new(peppers.clone()))?;
        let mut bodies = Vec::new();
        while let Some(Body::Tokens(bytes) | Body::Tombstones(bytes)) = reader.next()? {
            bodies.push(bytes.to_vec());
        }
        Ok((header, bodies))
    }

    #[test]
    fn what_was_written_is_read() {
        let (read, bodies) = read_all(&written(1), &peppers(1)).expect("a checkpoint");
        assert_eq!(read, header(1));
        assert_eq!(bodies, [&b"some tokens"[..], b"and what was revoked"]);
    }

    #[test]
    fn whatever_is_changed_or_missing_is_noticed() {
        let whole = written(1);
        for at in 0..whole.len() {
            assert!(read_all(&whole[..at], &peppers(1)).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                assert!(read_all(&changed, &peppers(1)).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(matches!(read_all(&whole, &peppers(2)), Err(Unreadable::Damaged)));
    }

    /// The same bytes at another place, or in another file, prove nothing.
    #[test]
    fn segments_belong_to_their_place() {
        let (one, other) = (written(1), written(2));
        assert_eq!(one.len(), other.len());
        let first = MAGIC.len() + 4 + postcard::to_stdvec(&header(1)).expect("a header").len();
        let [empty, tokens, end] = [0, 1 + b"some tokens".len(), 0].map(|body| 4 + 1 + body + MAC_BYTES);
        let (of_one, of_other) = (&one[first + empty..], &other[first + empty..]);
        let mixed = [&one[..first + empty], of_other].concat();
        assert!(matches!(read_all(&mixed, &peppers(1)), Err(Unreadable::Damaged)));
        let without_tokens = [&one[..first + empty], &of_one[tokens..]].concat();
        assert!(matches!(read_all(&without_tokens, &peppers(1)), Err(Unreadable::Damaged)));
        let only_the_end = [&one[..first + empty], &of_one[of_one.len() - end..]].concat();
        assert!(matches!(read_all(&only_the_end, &peppers(1)), Err(Unreadable::Damaged)));
    }

    #[test]
    fn another_build_does_not_read_it() {
        let (peppers, mut other) = (peppers(1), header(1));
        other.build.form += 1;
        let file = Writer::begin(Vec::new(), &other, &peppers).and_then(Writer::end).expect("a file");
        assert!(matches!(read_all(&file, &peppers), Err(Unreadable::OtherBuild)));
    }
}
