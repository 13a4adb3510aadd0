//! A report as a person reads it: one line a check, a mark before it, and what to do under it.

use std::fmt::Write;

use super::report::{Check, Outcome, Report};

/// Whether a text may hold colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// For a terminal.
    On,
    /// For a file, a pipe, or somebody who set `NO_COLOR`.
    Off,
}

impl Report {
    /// A table for a terminal.
    #[must_use]
    pub fn to_table(&self, colours: Colours) -> String {
        let mut text =
            format!("ram-provider {} · {} · {}\n\n", self.version, self.home.display(), self.coordinator);
        let mut before = "";
        for check in &self.checks {
            let (subject, what) = check.id.as_str().split_once('.').unwrap_or_default();
            let shown = if subject == before { "" } else { subject };
            before = subject;
            // A String takes all.
            let _ = writeln!(text, "  {shown:<13}{} {what:<13}{}", mark(check, colours), check.finding.says);
            if let Some(next) = &check.finding.next {
                let _ = writeln!(text, "{:<30}→ {next}", "");
            }
        }
        let summary = self.summary;
        let _ = write!(text, "\n  {} passed", summary.passed);
        for (count, word) in
            [(summary.warnings, "to look at"), (summary.failed, "failed"), (summary.skipped, "skipped")]
        {
            if count > 0 {
                let _ = write!(text, " · {count} {word}");
            }
        }
        text.push('\n');
        text
    }
}

fn mark(check: &Check, colours: Colours) -> String {
    let (mark, colour) = match check.finding.outcome {
        Outcome::Pass => ('✓', 32),
        Outcome::Warn => ('!', 33),
        Outcome::Fail => ('✗', 31),
        Outcome::Skipped => ('-', 90),
    };
    match colours {
        Colours::On => format!("\x1b[{colour}m{mark}\x1b[0m"),
        Colours::Off => mark.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::{CheckId, Finding};
    use std::time::Duration;

    fn report() -> Report {
        let check = |id, finding| Check::new(id, finding, Duration::ZERO);
        let exposed = Finding::fail("node_key.bin is open to others", "chmod 600 node_key.bin");
        let checks = vec![
            check(CheckId::IdentityKey, Finding::pass("3f2a")),
            check(CheckId::IdentityPermissions, exposed),
            check(CheckId::NodeRunning, Finding::skip("no node runs here")),
        ];
        Report::new("/h".into(), "ws://c".to_owned(), checks)
    }

    #[test]
    fn a_report_is_a_picture() {
        let expected = format!(
            "ram-provider {} · /h · ws://c

  identity     ✓ key          3f2a
               ✗ permissions  node_key.bin is open to others
                              → chmod 600 node_key.bin
  node         - running      no node runs here

  1 passed · 1 failed · 1 skipped
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(report().to_table(Colours::Off), expected);
    }

    #[test]
    fn colours_are_for_terminals_alone() {
        assert!(report().to_table(Colours::On).contains("\x1b[31m✗\x1b[0m permissions"));
        assert!(!report().to_table(Colours::Off).contains('\x1b'));
    }
}
