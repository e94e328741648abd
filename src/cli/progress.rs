//! A line of progress with time left, on stderr, and only where somebody looks.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    start: Instant,
    last: Option<Instant>,
    terminal: bool,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { start: Instant::now(), last: None, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows `done` of `all`; at most ten times a second on a terminal, every ten seconds elsewhere.
    pub fn show(&mut self, done: usize, all: usize, what: &str) {
        let pause = if self.terminal { Duration::from_millis(100) } else { Duration::from_secs(10) };
        let due = self.last.unwrap_or(self.start).elapsed() >= pause;
        if !due && done < all {
            return;
        }
        self.last = Some(Instant::now());
        let spent = self.start.elapsed().as_secs_f64();
        let left = if done > 0 { spent / done as f64 * (all - done.min(all)) as f64 } else { 0.0 };
        let line = format!("{done}/{all}  {spent:.0} s, about {left:.0} s left  {what}");
        let mut stderr = std::io::stderr();
        // A closed stderr is no reason to stop working.
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[K{line}{}", if done >= all { "\n" } else { "" })
        } else {
            writeln!(stderr, "{line}")
        };
        let _ = stderr.flush();
    }
}
