//! What happened, in words: always as one number, and as lines where somebody wants to read them.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use ram_core::units::Timestamp;
use ram_proto::control::{ToCoordinator, ToProvider};

/// Lines kept of a trace: the last minutes before something broke.
const LINES_MAX: usize = 400;

/// A run's story. Two runs with one hash went the same way, step by step.
#[derive(Debug)]
pub struct Trace {
    hash: Fnv,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    /// A trace that remembers its last lines and prints them when a promise is broken, or only its hash.
    pub fn new(is_loud: bool) -> Self {
        Self { hash: Fnv(0xCBF2_9CE4_8422_2325), lines: is_loud.then(VecDeque::new) }
    }

    pub fn note(&mut self, now: Timestamp, words: fmt::Arguments<'_>) {
        let millis = now.as_millis();
        writeln!(self.hash, "{millis} {words}").expect("hashing does not fail");
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:>6}.{:03}  {words}", millis / 1000, millis % 1000));
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash.0
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let (true, Some(lines)) = (std::thread::panicking(), &self.lines) {
            lines.iter().for_each(|line| println!("{line}"));
        }
    }
}

/// FNV-1a (Fowler, Noll, Vo): small, and the same on every machine.
#[derive(Debug)]
struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 =
            text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
        Ok(())
    }
}

/// A message in a few words.
pub struct Up<'a>(pub &'a ToCoordinator);

impl fmt::Display for Up<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ToCoordinator::Register(_) => f.write_str("register"),
            ToCoordinator::Heartbeat { load, .. } => write!(f, "heartbeat, {} running", load.running),
            ToCoordinator::Accepted { job, attempt, .. } => {
                write!(f, "accepted job {} try {}", job.bits(), attempt.get())
            }
            ToCoordinator::Chunk(chunk) => {
                let (job, attempt) = (chunk.job.bits(), chunk.attempt.get());
                write!(f, "chunk {} of job {job} try {attempt}, {} tokens", chunk.seq, chunk.tokens)
            }
            ToCoordinator::SealedChunk(chunk) => {
                let (job, attempt) = (chunk.job.bits(), chunk.attempt.get());
                write!(f, "box {} of job {job} try {attempt}, {} tokens", chunk.seq, chunk.tokens)
            }
            ToCoordinator::Finished { job, attempt, outcome } => {
                write!(f, "finished job {} try {}: {outcome:?}", job.bits(), attempt.get())
            }
            ToCoordinator::Draining => f.write_str("draining"),
            ToCoordinator::ShardReady(_)
            | ToCoordinator::ShardFailed(_)
            | ToCoordinator::ShardLinked(_)
            | ToCoordinator::ShardLost(_)
            | ToCoordinator::ShardReport(_) => f.write_str("of a shard"),
            ToCoordinator::Unsupported { of } => write!(f, "unsupported {of}"),
        }
    }
}

/// A message in a few words.
pub struct Down<'a>(pub &'a ToProvider);

impl fmt::Display for Down<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ToProvider::Challenge { .. } => f.write_str("challenge"),
            ToProvider::Registered { epoch, .. } => write!(f, "registered, session {}", epoch.get()),
            ToProvider::Rejected { reason, .. } => write!(f, "rejected: {reason:?}"),
            ToProvider::Run { attempt, job, .. } => {
                write!(f, "run job {} try {}", job.id.bits(), attempt.get())
            }
            ToProvider::RunSealed { attempt, job, .. } => {
                write!(f, "run sealed job {} try {}", job.id.bits(), attempt.get())
            }
            ToProvider::Cancel { job, attempt } => {
                write!(f, "cancel job {} try {}", job.bits(), attempt.get())
            }
            ToProvider::Drain => f.write_str("drain"),
            ToProvider::LoadShard(_) | ToProvider::LinkShard(_) | ToProvider::UnloadShard(_) => {
                f.write_str("about a shard")
            }
            ToProvider::Unsupported { of } => write!(f, "unsupported {of}"),
        }
    }
}
