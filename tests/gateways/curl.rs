//! The client: curl, as a process, without the user's configuration.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::upstream::Seen;

pub struct Curl(Command);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Whether the gateway has rejected the request by a reset of its stream, as HTTP/2 can.
    pub is_reset: bool,
    headers: BTreeMap<String, Vec<String>>,
    pub body: String,
}

/// What curl reports about a response.
#[derive(Deserialize)]
struct Written {
    /// Three digits; 000 for none.
    status: String,
    headers: BTreeMap<String, Vec<String>>,
}

impl Curl {
    pub fn new(url: &str) -> Self {
        let mut command = Command::new("curl");
        command.args(["-q", "--silent", "--noproxy", "*", "--globoff", "--path-as-is"]);
        command.args(["--write-out", r#"%{stderr}{"status":"%{response_code}","headers":%{header_json}}"#]);
        command.arg(url);
        Self(command).max_time(20)
    }

    /// Adds a header, with its spelling unchanged.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.0.arg("--header").arg(format!("{name}: {value}"));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn method(mut self, method: &str) -> Self {
        // With `--request HEAD`, curl would wait for a body.
        let args: &[&str] = if method == "HEAD" { &["--head"] } else { &["--request", method] };
        self.0.args(args);
        self
    }

    pub fn body(mut self, body: &str) -> Self {
        self.0.args(["--data-binary", body]);
        // Without `Expect: 100-continue`, which not every gateway supports.
        self.header("Expect", "")
    }

    /// Over HTTP/2 from the first byte on, without TLS. curl leaves out headers that HTTP/2 does not have, such as `Connection`.
    pub fn http2(mut self) -> Self {
        self.0.arg("--http2-prior-knowledge");
        self
    }

    pub fn max_time(mut self, seconds: u32) -> Self {
        self.0.arg("--max-time").arg(seconds.to_string());
        self
    }

    /// Sends from another of this machine's addresses.
    pub fn from(mut self, address: &str) -> Self {
        self.0.args(["--interface", address]);
        self
    }

    /// Sends the request. Without a response, the status is 0.
    pub fn send(mut self) -> Reply {
        let output = self.0.stdin(Stdio::null()).output().expect("curl, which this test needs: install it");
        let written: Written = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let body = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = written.status.parse().expect("a status");
        // CURLE_HTTP2_STREAM
        let is_reset = output.status.code() == Some(92);
        Reply { status, is_reset, headers: written.headers, body }
    }
}

impl Reply {
    /// The value of a header, which must be the only one. `None`: there is no such header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.headers.get(name)?;
        assert_eq!(values.len(), 1, "{self:?}");
        values.first().map(String::as_str)
    }

    /// The request as the upstream received it; the gateway must have let it pass.
    pub fn seen(&self) -> Seen {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
