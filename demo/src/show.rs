//! What the user sees: steps, lines with a check mark, the table of figures, and what went wrong.

use std::env;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The columns of a line: what was checked, and what was seen.
const WHAT: usize = 78;
const SEEN: usize = 6;
const TOOK: usize = 10;

/// A failed expectation.
#[derive(Debug, thiserror::Error)]
#[error("{what}\n    expected: {expected}\n    seen:     {seen}")]
pub struct Unmet {
    what: String,
    expected: String,
    seen: String,
}

/// An error unless what was seen is what was expected.
pub fn expect<T: PartialEq + ToString>(what: &str, expected: T, seen: T) -> anyhow::Result<()> {
    if expected == seen { Ok(()) } else { Err(unmet(what, expected, seen)) }
}

/// The error of an expectation that is not met.
pub fn unmet(what: &str, expected: impl ToString, seen: impl ToString) -> anyhow::Error {
    Unmet { what: what.to_owned(), expected: expected.to_string(), seen: seen.to_string() }.into()
}

/// The printer, which remembers the figures for the end.
pub struct Show {
    start: Instant,
    colors: bool,
    steps: u32,
    step: String,
    figures: Vec<(String, String)>,
    complete: bool,
}

impl Show {
    pub fn new() -> Self {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            start: Instant::now(),
            colors: io::stdout().is_terminal() && !plain,
            steps: 0,
            step: "Starting".to_owned(),
            figures: Vec::new(),
            complete: false,
        }
    }

    /// Begins a step.
    pub fn step(&mut self, title: &str) {
        self.steps += 1;
        title.clone_into(&mut self.step);
        println!("\n{}", self.paint("1", &format!("{:>2}. {title}", self.steps)));
    }

    /// A check passed.
    pub fn ok(&self, what: &str, seen: impl ToString, took: Option<Duration>) {
        let mark = self.paint("32", "✓");
        let took = took.map(duration).unwrap_or_default();
        let line = format!("{what:<WHAT$} {:>SEEN$} {took:>TOOK$}", seen.to_string());
        println!("    {mark} {}", line.trim_end());
    }

    /// A word more about the line above.
    pub fn note(&self, text: &str) {
        println!("      {}", self.paint("2", text));
    }

    /// What a program printed.
    pub fn quote(&self, command: &str, text: &str) {
        println!("    {}", self.paint("36", &format!("$ {command}")));
        for line in text.lines() {
            println!("    {line}");
        }
    }

    /// Adds a figure to the table.
    pub fn figure(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.figures.push((name.into(), value.into()));
    }

    /// Prints the table, after the last step.
    pub fn summary(&mut self) {
        self.complete = true;
        self.figure("the whole demo", duration(self.start.elapsed()));
        println!("\n{}", self.paint("1", "What was measured"));
        let length = |text: &str| text.chars().count();
        let name = self.figures.iter().map(|(name, _)| length(name)).max().unwrap_or_default();
        let value = self.figures.iter().map(|(_, value)| length(value)).max().unwrap_or_default();
        for (figure, measured) in &self.figures {
            println!("    {figure:<name$}  {measured:>value$}");
        }
        if cfg!(debug_assertions) {
            println!(
                "    {}",
                self.paint("2", "An unoptimized build; for more `cargo build --release --bin demo --bin tokenward` and run `target/release/demo`.")
            );
        }
        println!();
    }

    /// Whether all steps have passed.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Says which step failed and how, and what the processes logged last.
    pub fn failure(&self, error: &anyhow::Error, logs: &[(String, String)]) {
        for (name, tail) in logs {
            eprintln!("\n{}", self.paint("1", &format!("The end of the log of tokenward {name}:")));
            eprintln!("{}", if tail.is_empty() { "(nothing)" } else { tail });
        }
        eprintln!("\n{} step {} ({}): {error:#}\n", self.paint("31;1", "✗ failed:"), self.steps, self.step);
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A duration as people say it.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 10.0 { format!("{seconds:.1} s") } else { format!("{:.1} ms", seconds * 1000.0) }
}
