//! A status as a person reads it.

use std::fmt::{self, Write};
use std::time::Duration;

use ram_core::provider::Speed;
use ram_core::units::{Timestamp, TokenRate};

use super::{Found, HeldShard, ModelStatus, NodeStatus, Standing};
use crate::power::Wakefulness;
use crate::worker::Residence;

impl Found {
    /// A table for a terminal.
    #[must_use]
    pub fn to_table(&self, now: Timestamp) -> String {
        match self {
            Self::Running(status) => status.to_table(now),
            Self::Silent(status) => format!(
                "the node (process {}) has been silent for {}: it hangs, or this machine slept\n\n{}",
                status.pid,
                Span(now.since(status.written_at)),
                status.to_table(now)
            ),
            Self::Starting => "a node is starting here; ask again in a moment\n".to_owned(),
            Self::NotRunning(None) => {
                "no node runs here, and none ever has: start one with `ram-provider run`\n".to_owned()
            }
            Self::NotRunning(Some(status)) => {
                let ago = Span(now.since(status.written_at));
                let mut text = match status.standing {
                    Standing::Stopped => format!("no node runs here; `{}` stopped {ago} ago\n", status.name),
                    _ => format!(
                        "no node runs here; `{}` was last seen {ago} ago and did not end cleanly\n",
                        status.name
                    ),
                };
                if let Some(error) = &status.last_error {
                    let _ = writeln!(text, "its last error: {}", error.what); // a String takes all
                }
                text + "start it with `ram-provider run`\n"
            }
        }
    }
}

impl NodeStatus {
    fn to_table(&self, now: Timestamp) -> String {
        let mut text = format!(
            "{} · {} · up {} · process {} · ram-provider {}\n\n",
            self.name,
            self.standing_at(now),
            Span(now.since(self.since)),
            self.pid,
            self.version
        );
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<13}{value}"); // a String takes all
        };
        row("coordinator", self.coordinator.clone());
        row("provider", self.provider.to_string());
        let jobs = self.jobs;
        row(
            "jobs",
            format!(
                "{} running, {} queued, {} slots · {} done, {} failed, {} cancelled",
                self.running, self.queued, self.slots, jobs.done, jobs.failed, jobs.cancelled
            ),
        );
        row("tokens", format!("{} read, {} written", jobs.tokens_read, jobs.tokens_written));
        row("memory", format!("{} free of {}", self.memory.free, self.memory.cap));
        row(
            "sleep",
            match &self.sleep {
                Wakefulness::Off => "allowed".to_owned(),
                Wakefulness::Held { by } => format!("held off by {by}"),
                Wakefulness::NotAvailable { why } => format!("NOT held off: {why}"),
            },
        );
        if let Some(error) = &self.last_error {
            row("last error", format!("{} ({} ago)", error.what, Span(now.since(error.at))));
        }
        text.push('\n');
        text + &models(&self.models) + &shards(&self.shards)
    }

    fn standing_at(&self, now: Timestamp) -> String {
        match &self.standing {
            Standing::Starting => "starting".to_owned(),
            Standing::Connecting => "connecting".to_owned(),
            Standing::Disconnected { retry_at } => {
                format!("not connected, next try in {}", Span(retry_at.since(now)))
            }
            Standing::Refused { reason, retry_at } => {
                format!("refused ({reason}), next try in {}", Span(retry_at.since(now)))
            }
            Standing::Registered { epoch, since } => {
                format!("registered for {}, session {}", Span(now.since(*since)), epoch.get())
            }
            Standing::Draining { leaves: true } => "draining, then it stops".to_owned(),
            Standing::Draining { leaves: false } => "the coordinator gives it no new jobs".to_owned(),
            Standing::Stopped => "stopped".to_owned(),
        }
    }
}

fn models(models: &[ModelStatus]) -> String {
    let width = models.iter().map(|model| model.model.as_str().len()).max().unwrap_or_default().max(5);
    let mut text = format!("  {:<width$}  STATE     NEEDS       READ/S   WRITE/S\n", "MODEL");
    for ModelStatus { model, state, needs, speed, fault } in models {
        let needs = needs.map_or_else(|| "-".to_owned(), |needs| needs.to_string());
        let rate =
            |part: fn(&Speed) -> TokenRate| speed.as_ref().map(part).map_or_else(|| "-".to_owned(), tenths);
        let (read, write) = (rate(|speed| speed.prefill), rate(|speed| speed.decode));
        let name = model.as_str();
        // A String takes all.
        let _ = writeln!(text, "  {name:<width$}  {:<8}  {needs:<10}  {read:>6}  {write:>8}", word(*state));
        if let Some(fault) = fault {
            let _ = writeln!(text, "  {:<width$}  {fault}", "");
        }
    }
    text
}

/// Nothing where there are none: most nodes hold whole models alone.
fn shards(shards: &[HeldShard]) -> String {
    if shards.is_empty() {
        return String::new();
    }
    let width = shards.iter().map(|shard| shard.model.as_str().len()).max().unwrap_or_default().max(8);
    let mut text = format!("\n  {:<width$}  LAYERS    LINKS       SESSIONS  GROUP\n", "PARTS OF");
    for HeldShard { model, group, layers, linked, sessions } in shards {
        let (name, layers) = (model.as_str(), layers.to_string());
        let links = if linked.is_some() { "linked" } else { "not linked" };
        // A String takes all.
        let _ = writeln!(text, "  {name:<width$}  {layers:<8}  {links:<10}  {sessions:>8}  {group}");
    }
    text
}

const fn word(state: Residence) -> &'static str {
    match state {
        Residence::Loaded => "loaded",
        Residence::Loading => "loading",
        Residence::OnDisk => "on disk",
        Residence::Failed => "failed",
        Residence::Refused => "refused",
    }
}

/// Tokens a second with one decimal.
fn tenths(rate: TokenRate) -> String {
    format!("{}.{}", rate.get() / 1000, rate.get() % 1000 / 100)
}

/// A span as people say it: its two largest units.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {} s", seconds % 60),
            (0, ..) => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::PastError;
    use crate::status::tests::status;

    const NOW: Timestamp = Timestamp::from_millis(12_003_000);

    fn check(found: &Found, parts: &[&str]) {
        let table = found.to_table(NOW);
        for part in parts {
            assert!(table.contains(part), "{table}\nlacks {part:?}");
        }
    }

    #[test]
    fn a_running_node_is_shown_whole() {
        let found = Found::Running(Box::new(status()));
        check(
            &found,
            &[
                "studio · registered for 3 h 3 min, session 3 · up 3 h 3 min · process 4711",
                "1 running, 0 queued, 4 slots · 12 done",
                "10.0 GiB free of 24.0 GiB",
                "ram-aggregator/ram-demo-4bit  loaded    160.0 MiB    420.0      38.2",
                "it has no `tokenizer.json`",
                "own/large  8..24     linked             3  00000000000000000000000000000007",
            ],
        );
    }

    #[test]
    fn what_is_wrong_stands_first() {
        let mut status = status();
        let retry_at = Timestamp::from_millis(12_010_000);
        status.standing = Standing::Refused { reason: "the coordinator is full".to_owned(), retry_at };
        status.last_error = Some(PastError { at: NOW, what: "it broke".to_owned() });
        status.sleep = Wakefulness::NotAvailable { why: "no logind".to_owned() };
        let boxed = Box::new(status);
        let running = Found::Running(boxed.clone());
        check(
            &running,
            &["refused (the coordinator is full), next try in 7 s", "it broke (0 s ago)", "no logind"],
        );
        check(&Found::Silent(boxed.clone()), &["silent for 3 s", "process 4711"]);
        check(&Found::NotRunning(Some(boxed)), &["did not end cleanly", "it broke", "ram-provider run"]);
        check(&Found::NotRunning(None), &["ram-provider run"]);
    }

    #[test]
    fn a_span_is_told_by_its_two_largest_units() {
        let spans = [(5, "5 s"), (65, "1 min 5 s"), (3_700, "1 h 1 min"), (90_000, "1 d 1 h")];
        for (seconds, told) in spans {
            assert_eq!(Span(Duration::from_secs(seconds)).to_string(), told);
        }
    }
}
