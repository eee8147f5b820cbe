//! How fast many new tokens become ready, beside a plain client that makes the same requests without a controller.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::apiserver::heap;
use super::history::{History, Write};
use super::plain::{EVENTS_AT_A_TIME, Identity, Plain, TOKENS_AT_A_TIME};
use super::report::{Report, thousands};
use super::sides::{Before, Side, table};
use super::world::World;

/// The namespace of the controller's tokens.
const OURS: &str = "applied";
/// That of the plain client's.
const PLAIN: &str = "plain";
/// Tokens that are created before anything is measured: the API server does much at its first requests only.
const WARM_UP: usize = 100;
/// Events in a page of the list.
const PAGE_SIZE: u32 = 500;

/// What the controller has written, by the token's name.
struct Written {
    tokens: HashMap<String, Vec<Write>>,
    events: HashMap<String, Vec<Box<RawValue>>>,
}

pub async fn measure(tokenward: &Path, tokens: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a control plane");
    let mut world = World::start_quietly(tokenward).await?;
    let spec = json!({"scopes": ["a:b"]});
    world.namespace("warm-up").await?;
    world.create("warm-up", WARM_UP).await?;
    world.create_namespace(OURS).await?;
    world.create_namespace(PLAIN).await?;

    let history = History::follow(world.client(), OURS).await?;
    let empty = heap(world.client()).await?;
    let before = Before::begin(&world).await?;
    let ours = ours(&world, tokens, &spec, &history, before).await?;
    let full = heap(world.client()).await?;
    let written = Written { tokens: history.take(), events: events(&world).await? };
    world.stop()?;
    let plain = plain(&world, tokens, &spec, &written).await?;

    report.section(
        "New tokens",
        &format!(
            "{} ApiTokens are created by a client, from its first request until a watch has shown `Ready=True` of each. The \
             baseline comes right after, on the same API server without a controller: the same creations, and for each token \
             the statuses, the Secret and the Events that the controller has written, by as many requests at a time, without \
             the wait between hash and Secret (`--propagation`). Requests and CPU time are those until nothing is written any \
             more.",
            thousands(tokens as u64)
        ),
    );
    table(&ours, &plain, report);
    report.note(&format!(
        "Each token with its Secret and its Events takes {:.1} KiB of the API server's heap: what is in use after a collection, \
         with all of them and without.",
        (full - empty) / tokens as f64 / 1024.0
    ));
    Ok(())
}

async fn ours(
    world: &World,
    tokens: usize,
    spec: &Value,
    history: &History,
    before: Before,
) -> anyhow::Result<Side> {
    let created = world.create_tokens(OURS, tokens, spec, |_| Ok(()));
    let (ready, ()) = futures::try_join!(history.until_ready(tokens), created)?;
    before.end("tokenward", tokens, ready, world).await
}

/// The Events of the controller's tokens.
async fn events(world: &World) -> anyhow::Result<HashMap<String, Vec<Box<RawValue>>>> {
    let api: Api<Event> = Api::namespaced(world.client().clone(), OURS);
    let (mut events, mut params) = (HashMap::<_, Vec<_>>::new(), ListParams::default().limit(PAGE_SIZE));
    loop {
        let page = api.list(&params).await?;
        for event in page.items {
            let about = event.regarding.as_ref().and_then(|regarding| regarding.name.clone());
            events.entry(about.context("an Event about nothing")?).or_default().push(to_raw_value(&event)?);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(events),
        }
    }
}

/// Creates tokens as well, and makes all writes of the controller again.
async fn plain(world: &World, tokens: usize, spec: &Value, written: &Written) -> anyhow::Result<Side> {
    let history = History::follow(world.client(), PLAIN).await?;
    let client = Plain::connect(world.client_with_its_rights().await?, PLAIN, spec).await?;
    let client = &client;
    let before = Before::begin(world).await?;
    let (created, to_write) = unbounded();
    let (done, with_events) = unbounded();
    let create = async move {
        world.create_tokens(PLAIN, tokens, spec, |token| pass(&created, identity(&token)?)).await?;
        // Whoever waits for more is told by the end of the channel.
        drop(created);
        anyhow::Ok(())
    };
    let write = async move {
        to_write
            .map(async |token: Identity| {
                let writes = written.tokens.get(&token.name).context("a token that was never written")?;
                client.repeat(token, writes).await
            })
            .buffer_unordered(TOKENS_AT_A_TIME)
            .try_for_each(|token| std::future::ready(pass(&done, token)))
            .await?;
        drop(done);
        anyhow::Ok(())
    };
    let tell = with_events
        .flat_map(|token: Identity| {
            let events = written.events.get(&token.name).into_iter().flatten();
            futures::stream::iter(events.map(move |event| (event, token.clone())))
        })
        .map(async |(event, token)| client.create_event(event, &token).await)
        .buffer_unordered(EVENTS_AT_A_TIME)
        .try_collect::<()>();
    let (ready, ..) = futures::try_join!(history.until_ready(tokens), create, write, tell)?;
    before.end("plain client", tokens, ready, world).await
}

fn identity(token: &Value) -> anyhow::Result<Identity> {
    Ok(serde_json::from_value(token["metadata"].clone())?)
}

fn pass(to: &UnboundedSender<Identity>, token: Identity) -> anyhow::Result<()> {
    to.unbounded_send(token).context("nobody takes it")
}
