//! Shows on stderr the progress of something long, such as a build. On a terminal it is one line that changes;
//! elsewhere (a log of CI) a line at the start and the end of each step, and one every 15 s in between.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::process::Guarded;

/// The interval between lines in a log during a step.
const HEARTBEAT: Duration = Duration::from_secs(15);

static LINES_ONLY: AtomicBool = AtomicBool::new(false);

/// Shows steps by whole lines on a terminal too, from now on: for use beside another program that draws there.
pub fn lines_only() {
    LINES_ONLY.store(true, Ordering::Relaxed);
}

/// One step, shown from its start to its end.
#[derive(Debug)]
pub struct Step {
    /// Such as "building kube-apiserver (1 of 4)".
    label: String,
    /// How long the step usually takes.
    usual: Duration,
    start: Instant,
    last_line: Instant,
    terminal: bool,
    /// Whether one line is overwritten, instead of adding lines.
    redraws: bool,
}

impl Step {
    /// Shows the start of a step. `usual` is how long it usually takes.
    pub fn start(label: String, usual: Duration) -> Self {
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        let redraws = terminal && !LINES_ONLY.load(Ordering::Relaxed);
        let step = Self { label, usual, start: now, last_line: now, terminal, redraws };
        step.show(&step.line(Duration::ZERO));
        step
    }

    /// Shows that the step goes on. Call it about once a second.
    pub fn tick(&mut self) {
        if self.redraws || self.last_line.elapsed() >= HEARTBEAT {
            self.last_line = Instant::now();
            self.show(&self.line(self.start.elapsed()));
        }
    }

    /// Runs a command as this step, under guard, its output in `log`.
    pub fn run(&mut self, mut command: Command, log: &Path) -> io::Result<ExitStatus> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        let mut process = Guarded::spawn(command)?;
        loop {
            if let Some(status) = process.wait_timeout(Duration::from_secs(1))? {
                return Ok(status);
            }
            self.tick();
        }
    }

    /// Shows the end of the step; `how` is a word such as "done".
    pub fn end(self, how: &str) {
        self.show(&format!("{}: {how} after {} s", self.label, self.start.elapsed().as_secs()));
        if self.redraws {
            let _ = writeln!(io::stderr());
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        format!("{}: {} s, usually {}", self.label, elapsed.as_secs(), rough(self.usual))
    }

    fn show(&self, line: &str) {
        // Back to the first column, and clear the line.
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let end = if self.redraws { "" } else { "\n" };
        let mut stderr = io::stderr().lock();
        // A closed stderr is no reason to fail a build.
        let _ = write!(stderr, "{clear}{line}{end}").and_then(|()| stderr.flush());
    }
}

/// A rounded duration, such as "20 s" or "3 min".
fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded() {
        assert_eq!(rough(Duration::from_secs(7)), "7 s");
        assert_eq!(rough(Duration::from_secs(89)), "89 s");
        assert_eq!(rough(Duration::from_secs(90)), "2 min");
        assert_eq!(rough(Duration::from_secs(175)), "3 min");
    }
}
