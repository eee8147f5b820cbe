//! How soon a lock stops all that it matches: from its event until the last of a sample of tokens is refused by each verifier.
//! The baseline is how soon clients that do nothing but watch have read the same event.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::api::Api;
use super::report::{Report, quantile, thousands, time};
use super::server::{Client, Server, free_address};
use super::{Args, Bench, TIMEOUT, bare, tokens, verifier};

const REPLICAS: usize = 3;
/// How many of the tokens that a lock matches are asked for.
const SAMPLE: u64 = 1_000;
/// How many that it does not match.
const OTHERS: u64 = 20;
/// How many tokens the load consists of.
const LOAD: u64 = 10_000;
/// The pause after a check that is still allowed: without it, the verifiers would have no CPU time for the lock.
const CHECK_INTERVAL: Duration = Duration::from_micros(250);
/// The time before a lock in which checks are allowed.
const BEFORE: Duration = Duration::from_millis(20);

/// A lock that is measured.
#[derive(Clone, Copy)]
enum Lock {
    All,
    Half,
}

impl Lock {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Half => "by a label that half of them have",
        }
    }

    fn matches(self) -> Value {
        match self {
            Self::All => json!({"all": true}),
            Self::Half => json!({"selector": {"matchLabels": {"stage": "live"}}}),
        }
    }

    /// Tokens that it stops, spread over all.
    fn stopped(self, tokens: u64) -> Vec<String> {
        let stopped = spread(tokens, if matches!(self, Self::All) { SAMPLE } else { 2 * SAMPLE });
        stopped.filter(|n| matches!(self, Self::All) || tokens::is_live(*n)).map(tokens::good).collect()
    }

    /// Tokens that it does not stop, spread over all.
    fn others(self, tokens: u64) -> Vec<String> {
        let others =
            spread(tokens, 2 * OTHERS).filter(|n| matches!(self, Self::Half) && !tokens::is_live(*n));
        others.map(tokens::good).collect()
    }
}

/// Numbers of tokens spread over all, as many live ones as others.
fn spread(tokens: u64, count: u64) -> impl Iterator<Item = u64> {
    let count = count.min(tokens);
    (0..count)
        .map(move |i| i * tokens / count)
        .map(move |n| n - n % 2)
        .enumerate()
        .map(|(i, n)| n + i as u64 % 2)
}

/// What a round has seen, in microseconds since the event was sent.
struct Seen {
    /// The last of the bare watches has read the event.
    bare: f64,
    /// The last verifier has begun to refuse: no token of the sample was allowed after that.
    refused: f64,
    /// The last verifier has been asked for every token of the sample since, and has refused it.
    all_refused: f64,
}

pub fn measure(bench: &Bench, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for tokens in &args.sizes {
        rows.extend(of_size(*tokens, bench, args)?);
    }
    report.section(
        "A lock",
        &format!(
            "{REPLICAS} verifiers fed by an API on loopback, beside a load at a fixed rate. From when the event of a new \
             ClusterTokenLock is sent: until the last of {REPLICAS} bare watches has read it; until the last verifier \
             refuses, after which none of the sample, up to {SAMPLE} tokens spread over all that it matches, was allowed \
             once more; and until each verifier has refused every one of the sample, which are asked for one after the \
             other, so it is mostly the time of these checks. Each verifier is asked every {} µs until it refuses.",
            CHECK_INTERVAL.as_micros()
        ),
    );
    report.table(
        &[
            "tokens",
            "lock matches",
            "locks",
            "checks/s beside",
            "bare watch, p50 / p99",
            "refused, p50 / p99",
            "p99 to bare",
            "sample, all refused, p50 / p99",
        ],
        &rows,
    );
    Ok(())
}

fn of_size(tokens: u64, bench: &Bench, args: &Args) -> anyhow::Result<Vec<Vec<String>>> {
    eprintln!("starting {REPLICAS} verifiers with {} tokens", thousands(tokens));
    let api = Api::start(tokens, tokens::three_labels, &bench.folder)?;
    // At the same time, as each has to read all tokens.
    let replicas = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..REPLICAS)
            .map(|i| {
                scope.spawn({
                    let api = &api;
                    move || replica(i, api, bench)
                })
            })
            .collect();
        let started = starts.into_iter().map(|start| start.join().map_err(|_| anyhow::anyhow!("a panic"))?);
        started.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let (sender, lines) = channel();
    for _ in 0..REPLICAS {
        bare::watch(api.address(), sender.clone());
    }
    let watches = 2 * REPLICAS;
    until("all watches", || api.lock_watches() == watches)?;
    let (ended, checks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let interval = Duration::from_secs(1) * REPLICAS as u32 / args.rate;
        let loads: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let (ended, checks) = (&ended, &checks);
                scope.spawn(move || load(replica, interval, ended, checks))
            })
            .collect();
        let rows = [Lock::All, Lock::Half].map(|lock| {
            ensure!(api.lock_watches() == watches, "a watch has ended");
            until("a check of the load", || checks.load(Ordering::Relaxed) > 0)?;
            let (start, before) = (Instant::now(), checks.load(Ordering::Relaxed));
            let seen = rounds(lock, &api, &replicas, &lines, args)?;
            let rate = (checks.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
            Ok(row(tokens, lock, &seen, rate))
        });
        ended.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        }
        rows.into_iter().collect()
    })
}

fn replica(i: usize, api: &Api, bench: &Bench) -> anyhow::Result<Server> {
    let (command, listen) = verifier::command(&bench.tokenward, api.kubeconfig(), free_address()?)?;
    let log = bench.folder.join(format!("replica-{i}.log"));
    Server::start_anywhere(format!("replica {i}"), listen, "/auth", api.tokens(), command, &log)
}

/// Checks one token after the other at a fixed rate until it is ended. One that is late is followed by the next at once.
fn load(replica: &Server, interval: Duration, ended: &AtomicBool, checks: &AtomicU64) -> anyhow::Result<()> {
    let texts: Vec<_> = spread(replica.tokens, LOAD).map(tokens::good).collect();
    let (mut client, mut due) = (replica.connect()?, Instant::now());
    for text in texts.iter().cycle() {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let status = client.ask(text)?;
        ensure!(matches!(status, 200 | 401), "the load was answered with {status}");
        checks.fetch_add(1, Ordering::Relaxed);
        due += interval;
    }
    Ok(())
}

fn rounds(
    lock: Lock,
    api: &Api,
    replicas: &[Server],
    lines: &Receiver<(String, Instant)>,
    args: &Args,
) -> anyhow::Result<Vec<Seen>> {
    let (sample, others) = (lock.stopped(api.tokens()), lock.others(api.tokens()));
    let mut clients = replicas.iter().map(Server::connect).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut seen, start, mut printed) = (Vec::new(), Instant::now(), Instant::now());
    // The first round is a warm-up.
    for round in 0..=args.locks {
        if round > 1 && start.elapsed() > Duration::from_secs(args.bound) {
            break;
        }
        let of_round = self::round(lock, round, api, &mut clients, &sample, lines)?;
        if round > 0 {
            seen.push(of_round);
        }
        for client in &mut clients {
            for other in &others {
                ensure!(client.ask(other)? == 200, "a token is refused that no lock matches");
            }
        }
        api.delete_lock(&name(round));
        for client in &mut clients {
            until("a token that works again", || client.ask(&sample[0]).is_ok_and(|status| status == 200))?;
        }
        if printed.elapsed() > Duration::from_secs(5) {
            eprintln!("{} tokens, {}: {round} of {} locks", thousands(api.tokens()), lock.name(), args.locks);
            printed = Instant::now();
        }
    }
    Ok(seen)
}

fn name(round: usize) -> String {
    format!("round-{round}")
}

fn round(
    lock: Lock,
    round: usize,
    api: &Api,
    clients: &mut [Client],
    sample: &[String],
    lines: &Receiver<(String, Instant)>,
) -> anyhow::Result<Seen> {
    let name = name(round);
    // What was read of earlier rounds.
    while lines.try_recv().is_ok() {}
    std::thread::scope(|scope| {
        let asks: Vec<_> = clients
            .iter_mut()
            .enumerate()
            // Each begins with another token.
            .map(|(i, client)| {
                scope.spawn(move || ask(client, sample, round * 31 + i * sample.len() / REPLICAS))
            })
            .collect();
        std::thread::sleep(BEFORE);
        let sent = api.create_lock(&name, &lock.matches());
        let since = |at: Instant| at.saturating_duration_since(sent).as_secs_f64() * 1e6;
        let (mut bare, mut missing) = (0.0_f64, REPLICAS);
        while missing > 0 {
            let (line, at) = lines.recv_timeout(TIMEOUT).context("a bare watch has not read the lock")?;
            let event: Value = serde_json::from_str(&line)?;
            if event["type"] == "ADDED" && event["object"]["metadata"]["name"] == *name {
                bare = bare.max(since(at));
                missing -= 1;
            }
        }
        let (mut refused, mut all_refused) = (0.0_f64, 0.0_f64);
        for ask in asks {
            let (first, last) = ask.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            ensure!(first > sent, "a token was refused before there was a lock");
            (refused, all_refused) = (refused.max(since(first)), all_refused.max(since(last)));
        }
        Ok(Seen { bare, refused, all_refused })
    })
}

/// Asks for one token of the sample after the other until each was refused, and none allowed in between. Returns when the first
/// and the last of these were refused.
fn ask(client: &mut Client, sample: &[String], from: usize) -> anyhow::Result<(Instant, Instant)> {
    let (start, mut first, mut refused) = (Instant::now(), None, 0);
    for token in sample.iter().cycle().skip(from % sample.len()) {
        ensure!(start.elapsed() < TIMEOUT, "tokens are allowed in spite of a lock");
        match client.ask(token)? {
            401 => {
                let now = Instant::now();
                let first = *first.get_or_insert(now);
                refused += 1;
                if refused == sample.len() {
                    return Ok((first, now));
                }
            }
            200 => {
                (first, refused) = (None, 0);
                std::thread::sleep(CHECK_INTERVAL);
            }
            status => bail!("a check was answered with {status}"),
        }
    }
    bail!("no sample")
}

fn row(tokens: u64, lock: Lock, seen: &[Seen], rate: f64) -> Vec<String> {
    let at = |of: fn(&Seen) -> f64, share| quantile(seen.iter().map(of).collect(), share);
    let both = |of| format!("{} / {}", time(at(of, 0.5)), time(at(of, 0.99)));
    vec![
        thousands(tokens),
        lock.name().to_owned(),
        seen.len().to_string(),
        format!("{rate:.0}"),
        both(|seen| seen.bare),
        both(|seen| seen.refused),
        format!("{:.2}", at(|seen| seen.refused, 0.99) / at(|seen| seen.bare, 0.99)),
        both(|seen| seen.all_refused),
    ]
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !holds() {
        ensure!(start.elapsed() < TIMEOUT, "no {what} within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
