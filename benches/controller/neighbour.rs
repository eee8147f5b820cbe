//! How long a new token takes beside another namespace, whose tokens rotate as often as the CRD allows.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::report::{self, Report};
use super::world::World;

/// How many tokens are made one after the other, for each figure.
const SAMPLES: usize = 30;
/// The namespace whose tokens rotate.
const BUSY: &str = "rotating";
/// The namespace of the tokens that are measured.
const OTHER: &str = "neighbour";

/// The times of new tokens, and what the controller wrote meanwhile.
struct Measured {
    what: String,
    times: Vec<Duration>,
    writes_a_second: f64,
}

pub async fn measure(world: &World, tokens: usize, report: &mut Report) -> anyhow::Result<()> {
    world.namespace(BUSY).await?;
    world.namespace(OTHER).await?;
    let alone = samples(world, "nothing else", "alone").await?;
    world.create_rotating(BUSY, tokens).await?;
    let beside = samples(world, &format!("{tokens} tokens that rotate every 10 s"), "beside").await?;
    world.delete_tokens(BUSY).await?;
    world.quiet().await?;
    report.section(
        "A neighbour's rotations",
        &format!(
            "From the request that creates an ApiToken until its condition Active: {SAMPLES} of a namespace, one after the other, alone and beside another namespace whose tokens have `rotation: {{interval: 10s, overlap: 0s}}`. One second of each is the wait between hash and Secret (`--propagation`)."
        ),
    );
    let rows = [&alone, &beside].map(|measured| {
        let mut times: Vec<f64> = measured.times.iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        let longest = times.last().copied().unwrap_or(f64::NAN);
        vec![
            measured.what.clone(),
            format!("{:.2} s", report::median(times)),
            format!("{longest:.2} s"),
            format!("{:.0}", measured.writes_a_second),
        ]
    });
    report.table(&["beside", "p50", "longest", "status writes a second"], &rows);
    Ok(())
}

async fn samples(world: &World, what: &str, prefix: &str) -> anyhow::Result<Measured> {
    let (start, before) = (Instant::now(), world.counts().await?.statuses);
    let mut times = Vec::with_capacity(SAMPLES);
    for n in 0..SAMPLES {
        let took = world.create_one(OTHER, &format!("{prefix}-{n}")).await;
        times.push(took.with_context(|| format!("token {n} beside {what}"))?);
    }
    let writes = world.counts().await?.statuses - before;
    let writes_a_second = writes as f64 / start.elapsed().as_secs_f64();
    Ok(Measured { what: what.to_owned(), times, writes_a_second })
}
