//! What labels cost: bytes a token in the index, with them and without.

use super::api::Api;
use super::report::{Report, thousands};
use super::server::free_address;
use super::tokens::{self, Labels};
use super::{Bench, verifier};

pub fn measure(bench: &Bench, tokens: u64, report: &mut Report) -> anyhow::Result<()> {
    let kinds: [(&str, Labels); 2] =
        [("none", tokens::no_labels), ("three, two of them shared by all", tokens::three_labels)];
    let mut rows = Vec::new();
    for (labels, of_token) in kinds {
        let memory = memory(tokens, of_token, bench)?.saturating_sub(memory(1, of_token, bench)?);
        rows.push(vec![
            labels.to_owned(),
            format!("{:.0}", memory as f64 / tokens as f64),
            format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
        ]);
    }
    report.section(
        "Labels",
        &format!(
            "Resident memory of a verifier with {} tokens right after its start, beyond that of one with one token. Each token \
             has `spec.owner.team`, which locks compare too.",
            thousands(tokens)
        ),
    );
    report.table(&["labels", "bytes a token", "memory"], &rows);
    Ok(())
}

fn memory(tokens: u64, labels: Labels, bench: &Bench) -> anyhow::Result<u64> {
    eprintln!("starting a verifier with {} tokens", thousands(tokens));
    let api = Api::start(tokens, labels, &bench.folder)?;
    verifier::alone(&bench.tokenward, &api, free_address()?, &bench.folder)?.memory()
}
