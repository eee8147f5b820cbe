//! What a check costs while there are locks: the first one of a token since the locks have changed, which compares it with
//! each of them, and a further one, which remembers what came of that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::api::Api;
use super::report::{Report, median, thousands};
use super::server::free_address;
use super::wrk::Wrk;
use super::{Args, Bench, TIMEOUT, tokens, verifier};

/// So many locks, of which one may match: the last to be compared with.
#[derive(Clone, Copy)]
struct Case {
    locks: usize,
    one_matches: bool,
}

const CASES: [Case; 5] = [
    Case { locks: 0, one_matches: false },
    Case { locks: 1, one_matches: false },
    Case { locks: 1, one_matches: true },
    Case { locks: 100, one_matches: false },
    Case { locks: 100, one_matches: true },
];

impl Case {
    fn matches(self, nth: usize) -> Value {
        let stage =
            if self.one_matches && nth + 1 == self.locks { "live".to_owned() } else { format!("none-{nth}") };
        json!({"selector": {"matchLabels": {"stage": stage}}})
    }

    /// The share of the load that is denied.
    fn denied(self, tokens: u64) -> f64 {
        let all = 1_000.min(tokens);
        let bad = |i: &u64| i % tokens::BAD_EVERY == tokens::BAD_EVERY - 1;
        let is_denied =
            |i: &u64| bad(i) || self.one_matches && tokens::is_live(tokens::nth_of_load(*i, tokens));
        (0..all).filter(is_denied).count() as f64 / all as f64
    }
}

pub fn measure(bench: &Bench, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (tokens, time) = (args.tokens, Duration::from_secs(args.seconds));
    let wrk = Wrk::new(programs::wrk()?, &bench.folder)?;
    eprintln!("starting a verifier with {} tokens", thousands(tokens));
    let api = Api::start(tokens, tokens::three_labels, &bench.folder)?;
    let telemetry = free_address()?;
    let server = verifier::alone(&bench.tokenward, &api, telemetry, &bench.folder)?;
    let runtime = Runtime::new()?;
    let mut is_first = true;
    let mut costs = CASES.map(|_| (Vec::new(), Vec::new()));
    // The first round is a warm-up.
    for round in 0..=args.rounds {
        for (case, (first, repeated)) in CASES.iter().zip(&mut costs) {
            for nth in 0..case.locks {
                api.create_lock(&nth.to_string(), &case.matches(nth));
            }
            runtime.block_on(has_locks(telemetry, case.locks))?;
            let denied = case.denied(tokens);
            // Each run begins with the same tokens: the second meets those again that the first has met, and may get a
            // little further, the third meets none for the first time.
            let of_first = wrk.run(&server, time, denied)?;
            wrk.run(&server, time + Duration::from_secs(1), denied)?;
            let of_repeated = wrk.run(&server, time, denied)?;
            eprintln!(
                "round {round} of {}: {} locks, {}: {:.2} µs, then {:.2} µs",
                args.rounds,
                case.locks,
                matching(*case),
                of_first.cpu,
                of_repeated.cpu
            );
            // Else a token would have been checked twice in it.
            is_first &= of_first.rate * time.as_secs_f64() < tokens as f64;
            if round > 0 {
                first.push(of_first.cpu);
                repeated.push(of_repeated.cpu);
            }
            for nth in 0..case.locks {
                api.delete_lock(&nth.to_string());
            }
            runtime.block_on(has_locks(telemetry, 0))?;
        }
    }
    let none = costs.first().map_or(f64::NAN, |(_, repeated)| median(repeated.clone()));
    let rows: Vec<_> = CASES
        .iter()
        .zip(costs)
        .map(|(case, (first, repeated))| {
            let share = |cpu: f64| format!("{:+.0} %", (cpu / none - 1.0) * 100.0);
            let (first, repeated) = (median(first), median(repeated));
            vec![
                case.locks.to_string(),
                matching(*case).to_owned(),
                format!("{:.0} %", case.denied(tokens) * 100.0),
                format!("{first:.2}"),
                share(first),
                format!("{repeated:.2}"),
                share(repeated),
            ]
        })
        .collect();
    report.section(
        "A check with locks",
        &format!(
            "A verifier with {} tokens, alone on one core; ClusterTokenLocks by a label. The first check of a token since the \
             locks have changed compares it with each of them, of which the one that matches half of the tokens comes last; \
             a further check of the same token comes in a later run. Where a lock matches, more checks are denied, which cost \
             something else than allowed ones. Medians of {} rounds of {} s.",
            thousands(tokens),
            args.rounds,
            args.seconds
        ),
    );
    report.table(
        &[
            "locks",
            "matching",
            "denied",
            "first check, CPU µs",
            "to no lock",
            "further check, CPU µs",
            "to no lock",
        ],
        &rows,
    );
    if !is_first {
        report.note("Some runs were longer than their tokens last, so not each of their checks was the first of its token.");
    }
    Ok(())
}

fn matching(case: Case) -> &'static str {
    if case.one_matches { "one" } else { "none" }
}

/// Waits until the verifier goes by so many locks.
async fn has_locks(telemetry: SocketAddr, count: usize) -> anyhow::Result<()> {
    let (url, start) = (format!("http://{telemetry}/metrics"), Instant::now());
    let line = format!("tokenward_locks {count}");
    while !reqwest::get(&url).await?.text().await?.lines().any(|other| other == line) {
        ensure!(start.elapsed() < TIMEOUT, "the verifier does not go by {count} locks");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
