//! Tables, printed and stored.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

/// What one benchmark reports: printed at once, and collected for the file.
pub struct Report {
    heading: String,
    text: String,
}

impl Report {
    /// Starts a report with the machine, and how it was measured.
    pub fn new(title: &str, how: &str) -> Self {
        let mut report = Self { heading: format!("\n## {title}\n"), text: String::new() };
        report.add(&report.heading.clone());
        report.note(&format!("{}; tokenward {}. {how}", machine(), env!("CARGO_PKG_VERSION")));
        report
    }

    /// Adds a heading and a paragraph.
    pub fn section(&mut self, title: &str, text: &str) {
        self.add(&format!("\n### {title}\n\n{text}\n"));
    }

    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let width = |i: usize| {
            rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).chain([head[i].len()]).max()
        };
        let widths: Vec<usize> = (0..head.len()).map(|i| width(i).unwrap_or(0)).collect();
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths);
            format!(
                "| {} |",
                cells.map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>().join(" | ")
            )
        };
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut text = format!("\n{}\n{}\n", line(&head), line(&rule));
        for row in rows {
            let _ = writeln!(text, "{}", line(row));
        }
        self.add(&text);
    }

    pub fn note(&mut self, text: &str) {
        self.add(&format!("\n{text}\n"));
    }

    /// Writes the report into `benches/RESULTS.md`, in place of this benchmark's previous one.
    pub fn store(&self) -> anyhow::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md");
        let stored = std::fs::read_to_string(&path).unwrap_or_else(|_| "# Measured\n".to_owned());
        let text = match stored.split_once(&self.heading) {
            Some((before, rest)) => {
                let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
                format!("{before}{}{after}", self.text)
            }
            None => format!("{stored}{}", self.text),
        };
        std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
    }

    fn add(&mut self, text: &str) {
        print!("{text}");
        self.text.push_str(text);
    }
}

/// The machine: processor, cores, kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{}, {cores} cores, Linux {}",
        model.map_or("an unknown processor", |(_, model)| model),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Formats a time in microseconds, as µs or ms.
#[allow(dead_code, reason = "each benchmark has figures of its own kind")]
pub fn time(microseconds: f64) -> String {
    if microseconds < 1000.0 {
        format!("{microseconds:.0} µs")
    } else {
        format!("{:.2} ms", microseconds / 1000.0)
    }
}

/// The value that a share of all are below.
#[allow(dead_code, reason = "each benchmark has figures of its own kind")]
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// A number with thousands separators.
#[allow(dead_code, reason = "each benchmark has figures of its own kind")]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}
