//! Takes the client's body out of a large `CheckRequest` while it arrives.
//!
//! With `with_request_body`, Envoy sends as much of the body as its operator says, often megabytes. No check reads it, so it
//! needs no memory here: only what is beside it is bounded.
//!
//! A gRPC message is a flag, its length, and the protobuf (gRPC over HTTP/2, "Length-Prefixed-Message"). Source of the field
//! numbers: `envoy/service/auth/v3/external_auth.proto` and `attribute_context.proto`.

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Buf, Bytes};
use tonic::Status;

/// The length of what precedes the protobuf.
const PREFIX_BYTES: u64 = 5;
/// `CheckRequest.attributes`, `AttributeContext.request`, `Request.http`: the messages around the body.
const AROUND_THE_BODY: [u64; 3] = [1, 4, 2];
/// `HttpRequest.body` and `raw_body`.
const BODY_FIELDS: [u64; 2] = [11, 12];
/// Wire types (Protocol Buffers, "Encoding").
const VARINT: u64 = 0;
const I64: u64 = 1;
const LEN: u64 = 2;
const I32: u64 = 5;

/// Reads the message of a call, without the client's body if it is longer than `limit`. Then what is left must not be.
///
/// # Errors
///
/// The message is incomplete or no protobuf, or too large even so.
pub(super) async fn read<B>(body: B, limit: usize) -> Result<Full<Bytes>, Status>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin,
{
    let mut reader = Reader { body, chunk: Bytes::new(), room: limit };
    let mut prefix = [0; PREFIX_BYTES as usize];
    reader.read(&mut prefix).await?;
    let [compressed, length @ ..] = prefix;
    let length = u32::from_be_bytes(length);
    // What is compressed is left to the codec, which denies it.
    let message = if length as usize <= limit || compressed != 0 {
        [&prefix[..], &reader.take(length.into()).await?].concat()
    } else {
        let kept = reader.copy(length.into(), &AROUND_THE_BODY).await?;
        let length = u32::try_from(kept.len()).map_err(|_| too_large())?;
        [&[0][..], &length.to_be_bytes(), &kept].concat()
    };
    reader.end().await?;
    Ok(Full::new(message.into()))
}

/// Reads a body from its front.
struct Reader<B> {
    body: B,
    /// What has arrived and was not read yet.
    chunk: Bytes,
    /// How many more bytes may be kept.
    room: usize,
}

impl<B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin> Reader<B> {
    /// Copies the fields of a protobuf of this length. `around` are the numbers of the fields that lead to the HTTP request,
    /// whose body is skipped.
    fn copy<'r>(&'r mut self, length: u64, around: &'r [u64]) -> BoxFuture<'r, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            let (mut left, mut kept) = (length, Vec::new());
            let fits = |left: u64, read: u64| left.checked_sub(read).ok_or_else(malformed);
            while left > 0 {
                let (key, read) = self.varint().await?;
                left = fits(left, read)?;
                let (field, wire_type) = (key >> 3, key & 7);
                if wire_type == VARINT {
                    let (value, read) = self.varint().await?;
                    left = fits(left, read)?;
                    write_varint(&mut kept, key);
                    write_varint(&mut kept, value);
                    continue;
                }
                let size = match wire_type {
                    I64 => 8,
                    I32 => 4,
                    LEN => {
                        let (size, read) = self.varint().await?;
                        left = fits(left, read)?;
                        size
                    }
                    _ => return Err(malformed()),
                };
                left = fits(left, size)?;
                let value = match around {
                    [] if BODY_FIELDS.contains(&field) && wire_type == LEN => {
                        self.skip(size).await?;
                        continue;
                    }
                    [next, inner @ ..] if *next == field && wire_type == LEN => {
                        self.copy(size, inner).await?
                    }
                    _ => self.take(size).await?,
                };
                write_varint(&mut kept, key);
                if wire_type == LEN {
                    write_varint(&mut kept, value.len() as u64);
                }
                kept.extend_from_slice(&value);
            }
            Ok(kept)
        })
    }

    /// A number of variable length, and its length.
    async fn varint(&mut self) -> Result<(u64, u64), Status> {
        let mut value = 0;
        for index in 0..10 {
            let mut byte = [0];
            self.read(&mut byte).await?;
            value |= u64::from(byte[0] & 0x7f) << (7 * index);
            if byte[0] < 0x80 {
                self.keep(index + 1)?;
                return Ok((value, index as u64 + 1));
            }
        }
        Err(malformed())
    }

    /// Reads bytes that are kept, if there is room for them.
    async fn take(&mut self, size: u64) -> Result<Vec<u8>, Status> {
        let size = usize::try_from(size).map_err(|_| too_large())?;
        self.keep(size)?;
        let mut bytes = vec![0; size];
        self.read(&mut bytes).await?;
        Ok(bytes)
    }

    fn keep(&mut self, size: usize) -> Result<(), Status> {
        self.room = self.room.checked_sub(size).ok_or_else(too_large)?;
        Ok(())
    }

    async fn skip(&mut self, mut size: u64) -> Result<(), Status> {
        while size > 0 {
            let arrived = self.arrived().await?;
            let part = arrived.len().min(usize::try_from(size).unwrap_or(usize::MAX));
            arrived.advance(part);
            size -= part as u64;
        }
        Ok(())
    }

    async fn read(&mut self, mut into: &mut [u8]) -> Result<(), Status> {
        while !into.is_empty() {
            let arrived = self.arrived().await?;
            let part = arrived.len().min(into.len());
            let (now, later) = into.split_at_mut(part);
            arrived.copy_to_slice(now);
            into = later;
        }
        Ok(())
    }

    /// What has arrived, which is not empty.
    async fn arrived(&mut self) -> Result<&mut Bytes, Status> {
        while self.chunk.is_empty() {
            self.chunk = self.next().await?.ok_or_else(malformed)?;
        }
        Ok(&mut self.chunk)
    }

    /// Makes sure that nothing follows.
    async fn end(&mut self) -> Result<(), Status> {
        loop {
            if !self.chunk.is_empty() {
                return Err(malformed());
            }
            match self.next().await? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(()),
            }
        }
    }

    /// The next bytes of the body; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Status::internal(format!("the request broke off: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn malformed() -> Status {
    Status::internal("the message is no CheckRequest")
}

fn too_large() -> Status {
    Status::out_of_range("the message is too large, even without the client's body")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
    use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
    use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;
    use tonic_prost::prost::Message;

    use super::*;

    fn request(body: String, raw_body: Vec<u8>, header: &str) -> CheckRequest {
        let http = HttpRequest {
            headers: [("authorization".to_owned(), header.to_owned())].into(),
            size: 7,
            body,
            raw_body,
            path: "/orders".to_owned(),
            ..Default::default()
        };
        let request = Request { http: Some(http), ..Default::default() };
        let context_extensions = [("scope".to_owned(), "a:b".to_owned())].into();
        let attributes =
            AttributeContext { request: Some(request), context_extensions, ..Default::default() };
        CheckRequest { attributes: Some(attributes) }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    }

    /// What is read of bytes that arrive in chunks of this size.
    async fn read_in(chunk: usize, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Status> {
        let frames =
            bytes.chunks(chunk).map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk))));
        let frames: Vec<_> = frames.collect();
        let read = read(StreamBody::new(stream::iter(frames)), limit).await?;
        Ok(read.collect().await.unwrap().to_bytes().to_vec())
    }

    proptest! {
        /// Whatever the sizes, all but the body arrives, and no more than the limit is kept.
        #[test]
        fn a_large_message_loses_its_body_alone(
            body in 0usize..400, raw in 0usize..400, header in "[a-z ]{0,80}", chunk in 1usize..300,
        ) {
            const LIMIT: usize = 200;
            let whole = request("b".repeat(body), vec![b'r'; raw], &header).encode_to_vec();
            let read = futures::executor::block_on(read_in(chunk, &framed(&whole), LIMIT)).unwrap();
            prop_assert!(read.len() <= LIMIT + PREFIX_BYTES as usize);
            let decoded = CheckRequest::decode(&read[PREFIX_BYTES as usize..]).unwrap();
            let expected = if whole.len() <= LIMIT {
                request("b".repeat(body), vec![b'r'; raw], &header)
            } else {
                request(String::new(), Vec::new(), &header)
            };
            prop_assert_eq!(decoded, expected);
        }

        #[test]
        fn nothing_that_arrives_is_a_panic(bytes: Vec<u8>, chunk in 1usize..20, limit in 0usize..40) {
            let _ = futures::executor::block_on(read_in(chunk, &bytes, limit));
            let _ = futures::executor::block_on(read_in(chunk, &framed(&bytes), limit));
        }
    }

    #[tokio::test]
    async fn what_can_not_be_a_message_is_an_error() {
        let whole = framed(&request("b".repeat(500), Vec::new(), "Bearer x").encode_to_vec());
        let code =
            async |bytes: &[u8]| read_in(64, bytes, 200).await.map(|_| ()).map_err(|status| status.code());
        assert_eq!(code(&whole).await, Ok(()));
        assert_eq!(code(&whole[..whole.len() - 1]).await, Err(tonic::Code::Internal), "incomplete");
        assert_eq!(code(&[&whole[..], b"x"].concat()).await, Err(tonic::Code::Internal), "two");
        assert_eq!(code(b"").await, Err(tonic::Code::Internal));
        let large = framed(&request("b".repeat(500), Vec::new(), &"x".repeat(300)).encode_to_vec());
        assert_eq!(code(&large).await, Err(tonic::Code::OutOfRange));
        // A length beyond the message that contains it.
        assert_eq!(
            code(&framed(&[&[0x0a, 0xff, 0xff, 0x7f][..], &[0; 300]].concat())).await,
            Err(tonic::Code::Internal)
        );
        // A number without an end.
        assert_eq!(code(&framed(&[0xff; 300])).await, Err(tonic::Code::Internal));
    }
}
