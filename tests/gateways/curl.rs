//! The client: curl, as a process, with nothing of the user's configuration.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::upstream::Seen;

/// A request that is being made up.
pub struct Curl(Command);

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: BTreeMap<String, Vec<String>>,
    pub body: String,
}

/// What curl writes about an answer.
#[derive(Deserialize)]
struct Written {
    /// Three digits: 000 is none.
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

    /// A header, spelt as given.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.0.arg("--header").arg(format!("{name}: {value}"));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn method(mut self, method: &str) -> Self {
        // HEAD is an option of its own, as its answer has no body to wait for.
        let args: &[&str] = if method == "HEAD" { &["--head"] } else { &["--request", method] };
        self.0.args(args);
        self
    }

    /// A body.
    pub fn body(mut self, body: &str) -> Self {
        self.0.args(["--data-binary", body]);
        // Without a wait for a consent that not every gateway gives.
        self.header("Expect", "")
    }

    /// Gives up after some seconds.
    pub fn max_time(mut self, seconds: u32) -> Self {
        self.0.arg("--max-time").arg(seconds.to_string());
        self
    }

    /// From another of this machine's addresses.
    pub fn from(mut self, address: &str) -> Self {
        self.0.args(["--interface", address]);
        self
    }

    /// Sends it. No answer at all has the status 0.
    pub fn send(mut self) -> Reply {
        let output = self.0.stdin(Stdio::null()).output().expect("curl, which this test needs: install it");
        let written: Written = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let body = String::from_utf8_lossy(&output.stdout).into_owned();
        Reply { status: written.status.parse().expect("a status"), headers: written.headers, body }
    }
}

impl Reply {
    /// The one value of a header. `None`: there is no such header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.headers.get(name)?;
        assert_eq!(values.len(), 1, "{self:?}");
        values.first().map(String::as_str)
    }

    /// What the upstream saw of the request, which must have passed.
    pub fn seen(&self) -> Seen {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
