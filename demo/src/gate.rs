//! The verifier as a gateway asks it: `GET /auth` over connections that are reused.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::Client;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::TIMEOUT;
use crate::show::unmet;

/// The characters of a token after its prefix and the underscore, and those of its key id that are shown.
const TAIL: usize = 61;
const SHOWN: usize = 8;

/// How often the old answer must be seen before a change of it is asked for.
const BEFORE: u64 = 20;

/// A presented token. Shown masked, never whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented(Arc<str>);

impl Presented {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key_id = self.0.len().checked_sub(TAIL);
        match key_id.and_then(|start| self.0.get(..start + SHOWN)) {
            Some(shown) => write!(f, "{shown}…"),
            None => f.write_str("(not a token)"),
        }
    }
}

/// What the verifier answered.
pub struct Answer {
    pub status: u16,
    pub id: String,
    pub subject: String,
    pub scopes: String,
    pub took: Duration,
}

/// A client of the verifier.
#[derive(Clone)]
pub struct Gate {
    client: Client,
    url: String,
}

impl Gate {
    pub fn new(url: String) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(10)).build();
        Ok(Self { client: client.context("the HTTP client can't be made")?, url })
    }

    /// Asks once. `query` is what the route needs, such as `scope=orders:read`.
    pub async fn ask(&self, token: &Presented, query: &str) -> anyhow::Result<Answer> {
        let start = Instant::now();
        let request = self.client.get(format!("{}/auth?{query}", self.url)).bearer_auth(&token.0);
        let answer = request.send().await.map_err(|error| {
            unmet("GET /auth", "an answer of the verifier", format!("{:#}", anyhow::Error::from(error)))
        })?;
        let header = |name| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (id, subject) = (header("x-tokenward-id"), header("x-tokenward-subject"));
        let (status, scopes) = (answer.status().as_u16(), header("x-tokenward-scopes"));
        // Read to its end, the connection is used again.
        answer.bytes().await.context("the verifier's answer breaks off")?;
        Ok(Answer { status, id, subject, scopes, took: start.elapsed() })
    }

    /// Asks without a pause until the answer is `wanted`; returns when that was.
    pub async fn until(&self, token: &Presented, query: &str, wanted: u16) -> anyhow::Result<Instant> {
        self.turn(token, query, wanted, &AtomicU64::new(0)).await
    }

    /// The same, counting. Any answer but the first one's and the wanted one is an error.
    async fn turn(
        &self,
        token: &Presented,
        query: &str,
        wanted: u16,
        asked: &AtomicU64,
    ) -> anyhow::Result<Instant> {
        let start = Instant::now();
        let mut before = None;
        loop {
            let status = self.ask(token, query).await?.status;
            if status == wanted {
                return Ok(Instant::now());
            }
            if status != *before.get_or_insert(status) || start.elapsed() > TIMEOUT {
                return Err(unmet(&format!("{token} with {query:?}"), wanted, status));
            }
            asked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks with each token without a pause, lets `act` happen meanwhile, and measures for each how long after
    /// `act` has returned the answer was `wanted` for the first time.
    pub async fn measure(
        &self,
        tokens: &[&Presented],
        query: &str,
        wanted: u16,
        act: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Vec<Lag>> {
        // Dropped, it ends its tasks.
        let mut watches = JoinSet::new();
        let counts: Vec<_> = tokens.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
        for (place, (token, count)) in tokens.iter().zip(&counts).enumerate() {
            let (gate, token, query) = (self.clone(), (*token).clone(), query.to_owned());
            let count = count.clone();
            watches.spawn(async move { Ok((place, gate.turn(&token, &query, wanted, &count).await?)) });
        }
        let warm = async {
            while counts.iter().any(|count| count.load(Ordering::Relaxed) < BEFORE) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            warm = timeout(TIMEOUT, warm) => warm.context("the verifier is too slow to be measured")?,
            // Before anything was done.
            ended = watches.join_next() => {
                let early = match ended {
                    Some(Ok(Err(error))) => return Err(error),
                    _ => wanted,
                };
                return Err(unmet(&format!("{query:?} before the change"), "another answer", early));
            }
        }
        act.await?;
        let answered = Instant::now();
        let mut lags = vec![Lag::default(); tokens.len()];
        while let Some(watch) = watches.join_next().await {
            let (place, at): (usize, Instant) = watch.context("a task has ended")??;
            if let Some(lag) = lags.get_mut(place) {
                *lag = Lag(at.checked_duration_since(answered));
            }
        }
        Ok(lags)
    }
}

/// How long after the API server's answer a change was seen; `None` if it was seen before that answer.
#[derive(Clone, Copy, Default)]
pub struct Lag(Option<Duration>);

impl Lag {
    /// As a duration, which is not negative.
    pub fn duration(self) -> Duration {
        self.0.unwrap_or_default()
    }

    /// Whether the change was seen before the API server's answer.
    pub fn is_before(self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(lag) => f.write_str(&crate::show::duration(lag)),
            None => f.write_str("0 ms (before the API server's answer)"),
        }
    }
}
