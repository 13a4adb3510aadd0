//! Keeping the machine awake while the node runs, by a tool of the system's own.
//!
//! | [`SleepGuard`] | on | held by | let go, also after `kill -9`, because |
//! |---|---|---|---|
//! | `Caffeinate` | macOS | `caffeinate -i -w PID` | it watches this process |
//! | `SystemdInhibit` | Linux, logind | `systemd-inhibit --what=sleep:idle … cat` | our end of `cat`'s pipe closes |
//! | `Nothing` | others | nothing, and says so | |
//!
//! The display may still go dark, and a lid that is shut still means sleep. Start at [`hold`].

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest wait for the tool to say that it holds.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Longest wait for the complaint of a tool that has ended: it was written before.
const COMPLAINT_WAIT_MAX: Duration = Duration::from_millis(500);
/// Longest line of a tool that is read.
const LINE_BYTES_MAX: u64 = 400;

/// Whether the machine is kept awake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Wakefulness {
    /// Nobody asked for it: the machine sleeps as it likes.
    Off,
    /// It is.
    Held {
        /// The tool that holds it.
        by: String,
    },
    /// It cannot be, here and now.
    NotAvailable {
        /// Why.
        why: String,
    },
}

/// Keeps the machine awake until it is dropped, in a system's own way.
pub trait SleepGuard: fmt::Debug + Send {
    /// Whether it holds still.
    fn state(&mut self) -> Wakefulness;
}

/// Asks this system not to sleep, and waits a moment for its answer: not for an async task.
#[must_use]
pub fn hold() -> Box<dyn SleepGuard> {
    match std::env::consts::OS {
        "macos" => Box::new(Caffeinate::hold()),
        "linux" => Box::new(SystemdInhibit::hold()),
        system => Box::new(Nothing { system }),
    }
}

/// macOS: `caffeinate` holds while the process that it is told of lives.
#[derive(Debug)]
struct Caffeinate(Hold);

impl Caffeinate {
    fn hold() -> Self {
        Self(Hold::by(&Self::tool(std::process::id())))
    }

    fn tool(pid: u32) -> Tool {
        Tool { program: "caffeinate", args: owned(["-i", "-w", &pid.to_string()]), echoes: false }
    }
}

impl SleepGuard for Caffeinate {
    fn state(&mut self) -> Wakefulness {
        self.0.state()
    }
}

/// Linux: `systemd-inhibit` holds while the `cat` that it runs reads our pipe.
#[derive(Debug)]
struct SystemdInhibit(Hold);

impl SystemdInhibit {
    fn hold() -> Self {
        Self(Hold::by(&Self::tool()))
    }

    fn tool() -> Tool {
        let args =
            ["--what=sleep:idle", "--who=ram-provider", "--why=it serves models", "--mode=block", "cat"];
        Tool { program: "systemd-inhibit", args: owned(args), echoes: true }
    }
}

impl SleepGuard for SystemdInhibit {
    fn state(&mut self) -> Wakefulness {
        self.0.state()
    }
}

/// A system that no way to keep awake is known of.
#[derive(Debug)]
struct Nothing {
    system: &'static str,
}

impl SleepGuard for Nothing {
    fn state(&mut self) -> Wakefulness {
        Wakefulness::NotAvailable { why: format!("no way to keep {} awake is known here", self.system) }
    }
}

/// A tool that was started, and whether it holds.
#[derive(Debug)]
struct Hold {
    name: &'static str,
    held: Result<Holding, String>,
}

/// The tool at work.
#[derive(Debug)]
struct Holding {
    child: Child,
    /// What ends the tool when we do.
    pipe: Option<ChildStdin>,
    /// The first line that it says on standard error, or nothing.
    complaint: mpsc::Receiver<String>,
}

/// A program that keeps its system awake while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tool {
    program: &'static str,
    args: Vec<String>,
    /// Whether it runs `cat` once it holds: what we say to it then comes back, and that is the proof.
    echoes: bool,
}

impl Hold {
    fn by(tool: &Tool) -> Self {
        Self { name: tool.program, held: tool.start() }
    }

    fn state(&mut self) -> Wakefulness {
        if let Ok(holding) = &mut self.held
            && let Some(why) = holding.end()
        {
            self.held = Err(format!("{} {why}", self.name));
        }
        match &self.held {
            Ok(_) => Wakefulness::Held { by: self.name.to_owned() },
            Err(why) => Wakefulness::NotAvailable { why: why.clone() },
        }
    }
}

fn owned<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).into()
}

impl Tool {
    fn start(&self) -> Result<Holding, String> {
        let mut command = Command::new(self.program);
        command.args(&self.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0); // an interrupt for us is none for it
        let mut child = command
            .spawn()
            .map_err(|error| format!("{} cannot be started: {}", self.program, error.kind()))?;
        let (pipe, complaint) = (child.stdin.take(), first_line(child.stderr.take()));
        let mut holding = Holding { child, pipe, complaint };
        if self.echoes && !holding.answers() {
            let _ = holding.child.kill(); // it has ended, is about to, or hangs
            let _ = holding.child.wait();
        }
        match holding.end() {
            Some(why) => Err(format!("{} {why}", self.program)),
            None => Ok(holding),
        }
    }
}

impl Holding {
    /// Whether a word that we say comes back in time.
    fn answers(&mut self) -> bool {
        let said = self.pipe.as_mut().is_some_and(|pipe| pipe.write_all(b"awake\n").is_ok());
        let heard = first_line(self.child.stdout.take());
        said && heard.recv_timeout(ANSWER_MAX).is_ok_and(|line| line == "awake")
    }

    /// How the tool has ended, if it has.
    fn end(&mut self) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.kind().to_string(),
        };
        let complaint = self.complaint.recv_timeout(COMPLAINT_WAIT_MAX).unwrap_or_default();
        let says = if complaint.is_empty() { "no reason given" } else { &complaint };
        Some(format!("ended ({status}): {says}"))
    }
}

/// The first line of a child's output, read on a thread of its own: nobody says when, or whether, it comes.
fn first_line(output: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (told, line) = mpsc::channel();
    if let Some(output) = output {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(output.take(LINE_BYTES_MAX)).read_line(&mut text); // no text is no line
            let _ = told.send(text.trim().to_owned()); // nobody may listen any more
        });
    }
    line
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_has_its_own_way() {
        let line = |tool: Tool| format!("{} {}", tool.program, tool.args.join(" "));
        assert_eq!(line(Caffeinate::tool(42)), "caffeinate -i -w 42");
        let linux = line(SystemdInhibit::tool());
        assert!(linux.starts_with("systemd-inhibit --what=sleep:idle --who=ram-provider"), "{linux}");
        let Wakefulness::NotAvailable { why } = (Nothing { system: "plan9" }).state() else { panic!("none") };
        assert!(why.contains("plan9"), "{why}");
    }

    #[cfg(unix)]
    fn hold_by(script: &str, echoes: bool) -> Hold {
        Hold::by(&Tool { program: "sh", args: owned(["-c", script]), echoes })
    }

    #[test]
    #[cfg(unix)]
    fn a_tool_that_answers_holds_until_it_ends() {
        let mut guard = hold_by("exec cat", true);
        assert_eq!(guard.state(), Wakefulness::Held { by: "sh".to_owned() });
        let Ok(holding) = &mut guard.held else { panic!("it holds") };
        holding.child.kill().unwrap();
        holding.child.wait().unwrap();
        assert!(matches!(guard.state(), Wakefulness::NotAvailable { why } if why.contains("ended")));
    }

    #[test]
    #[cfg(unix)]
    fn a_tool_that_refuses_is_quoted() {
        let mut guard = hold_by("echo 'no logind here' >&2; exit 1", true);
        let Wakefulness::NotAvailable { why } = guard.state() else { panic!("it holds") };
        assert!(why.contains("no logind here"), "{why}");
    }

    #[test]
    #[cfg(unix)]
    fn closing_the_pipe_ends_the_tool() {
        let mut guard = hold_by("exec cat", true);
        let Ok(holding) = &mut guard.held else { panic!("it holds") };
        holding.pipe = None; // as when our process is killed
        assert!(holding.child.wait().unwrap().success());
    }
}
