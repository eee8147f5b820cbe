//! The baseline of kube-apiserver: a TokenReview of a static token, over HTTPS.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use kube::config::Kubeconfig;

use super::report::{self, median};
use super::wrk::Outcome;
use super::{Bench, cluster, process};

/// wrk's script: always the same review, by a user with all rights.
const SCRIPT: &str = r#"
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer bench-admin"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"bench-user"}}'
"#;

/// Returns a row for the table of rates.
pub fn measure(bench: &Bench) -> anyhow::Result<Vec<String>> {
    eprintln!("starting a control plane for TokenReview");
    let tokens = bench.folder.join("static-tokens.csv");
    std::fs::write(&tokens, "bench-admin,admin,1,system:masters\nbench-user,user,2\n")?;
    let cluster = cluster::start(vec![
        format!("--token-auth-file={}", tokens.display()),
        "--max-requests-inflight=10000".to_owned(),
        "--max-mutating-requests-inflight=10000".to_owned(),
    ])?;
    let pid = apiserver()?;
    let status = Command::new("taskset").args(["-apc", "0", &pid.to_string()]).output()?.status;
    ensure!(status.success(), "taskset failed");
    let config = Kubeconfig::read_from(cluster.kubeconfig())?;
    let server = config.clusters.into_iter().find_map(|named| named.cluster?.server).context("no server")?;
    let url = format!("{}/apis/authentication.k8s.io/v1/tokenreviews", server.trim_end_matches('/'));
    let script = bench.folder.join("review.lua");
    std::fs::write(&script, format!("{SCRIPT}{}", super::wrk::REPORT_RESULT))?;
    let mut runs = Vec::new();
    for round in 0..=bench.rounds {
        let before = process::cpu(pid)?;
        let outcome = bench.wrk.load(&script, &url, bench.time, None)?;
        let cpu = (process::cpu(pid)? - before).as_secs_f64() * 1e6 / outcome.requests;
        ensure!(outcome.refused == 0.0, "{} reviews were rejected", outcome.refused);
        eprintln!("round {round}: kube-apiserver: {:.0} requests/s, {cpu:.0} µs", outcome.rate());
        if round > 0 {
            runs.push((outcome, cpu));
        }
    }
    let of = |figure: fn(&(Outcome, f64)) -> f64| median(runs.iter().map(figure).collect());
    Ok(vec![
        "kube-apiserver TokenReview".to_owned(),
        "HTTPS and JSON; one static token, its result cached".to_owned(),
        report::thousands(of(|run| run.0.rate()) as u64),
        format!("{:.0}", of(|run| run.1)),
        "-".to_owned(),
        report::time(of(|run| run.0.latency[1])),
        "-".to_owned(),
        format!("{:.0} MiB", process::memory(pid, "VmRSS")? as f64 / f64::from(1 << 20)),
    ])
}

/// The kube-apiserver that this process has started.
fn apiserver() -> anyhow::Result<u32> {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        if is_apiserver_of(&path, &own) {
            let pid = path.file_name().and_then(|name| name.to_str()).context("no process id")?;
            return Ok(pid.parse()?);
        }
    }
    anyhow::bail!("no kube-apiserver of this process runs")
}

fn is_apiserver_of(process: &Path, parent: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(process.join("stat")) else { return false };
    let Some((name, rest)) = stat.rsplit_once(')') else { return false };
    // The kernel truncates names to 15 characters.
    name.contains("(kube-apiserver") && rest.split_whitespace().nth(1) == Some(parent)
}
