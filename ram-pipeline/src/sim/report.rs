//! What came of a simulation: how many tokens when, and who was busy.

use std::collections::BTreeMap;
use std::time::Duration;

use ram_core::id::JobId;
use ram_core::units::{Bytes, Permille, TokenCount, TokenRate};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// From the beginning to the last token.
    pub took: Duration,
    /// Tokens of all answers.
    pub tokens: TokenCount,
    /// Answers that did not come to their end.
    pub failed: u32,
    /// When the first session had its first token, and when the last one had.
    pub first_token: (Duration, Duration),
    /// While every session was at its answer: since when, until when.
    pub steady: (Duration, Duration),
    /// Tokens in that time.
    pub steady_tokens: TokenCount,
    /// One-way delays from a token of an answer to the next: the fewest and the most that were counted. Zero when no
    /// answer had two tokens.
    pub delays: (u32, u32),
    /// The longest time between two tokens of an answer.
    pub longest_gap: Duration,
    /// By place in the chain.
    pub stages: Vec<Stage>,
    /// From each stage to the next; the last one leads back to the head. None where there is one stage.
    pub hops: Vec<Hop>,
}

/// What a stage did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// All that it computed, in order.
    pub passes: Vec<Pass>,
    /// The share of the steady time in which it computed.
    pub busy: Permille,
}

/// Something that took a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Since when.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
    /// Sessions that took part.
    pub sessions: u32,
    /// Their tokens.
    pub tokens: TokenCount,
}

/// What went over a link in the direction of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Bytes of all frames.
    pub bytes: Bytes,
    /// Frames with one token: a step on its way down, or a result.
    pub token_frames: u64,
    /// Bytes of these.
    pub token_bytes: Bytes,
    /// The share of the steady time in which something was sent.
    pub busy: Permille,
}

/// What is counted while it goes on.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sessions: BTreeMap<JobId, Counted>,
    pub(super) stages: Vec<Stage>,
    pub(super) hops: Vec<(Hop, Vec<(Duration, Duration)>)>,
    arrivals: Vec<Duration>,
    failed: u32,
    delays: Option<(u32, u32)>,
    longest_gap: Duration,
}

/// Of a session.
#[derive(Debug, Default)]
struct Counted {
    first: Option<Duration>,
    last: Duration,
    ended: Option<Duration>,
    /// Since the last token; none while a prompt is on its way, which may be in many pieces.
    delays: Option<u32>,
}

impl Report {
    /// Tokens a second of all sessions together, while every one was at its answer.
    #[must_use]
    pub fn rate(&self) -> TokenRate {
        TokenRate::of(self.steady_tokens, self.steady.1.saturating_sub(self.steady.0))
    }
}

impl Tally {
    pub(super) fn new(stages: usize) -> Self {
        let hops = if stages > 1 { stages } else { 0 };
        Self {
            stages: vec![Stage::default(); stages],
            hops: vec![Default::default(); hops],
            ..Self::default()
        }
    }

    /// A frame of a session's step has come over a link.
    pub(super) fn delayed(&mut self, session: JobId) {
        if let Some(delays) = &mut self.sessions.entry(session).or_default().delays {
            *delays += 1;
        }
    }

    /// Every session sends all its tokens again.
    pub(super) fn begins_anew(&mut self) {
        self.sessions.values_mut().for_each(|counted| counted.delays = None);
    }

    /// A token has come.
    pub(super) fn token(&mut self, session: JobId, now: Duration) {
        let counted = self.sessions.entry(session).or_default();
        if let Some(delays) = counted.delays.replace(0) {
            let (least, most) = self.delays.unwrap_or((delays, delays));
            self.delays = Some((least.min(delays), most.max(delays)));
        }
        if counted.first.is_some() {
            self.longest_gap = self.longest_gap.max(now.saturating_sub(counted.last));
        }
        counted.first.get_or_insert(now);
        counted.last = now;
        self.arrivals.push(now);
    }

    /// An answer has ended, as it should or not.
    pub(super) fn ended(&mut self, session: JobId, is_whole: bool, now: Duration) {
        self.sessions.entry(session).or_default().ended = Some(now);
        self.failed += u32::from(!is_whole);
    }

    /// What there is to say.
    pub(super) fn report(self) -> Report {
        let firsts = || self.sessions.values().filter_map(|counted| counted.first);
        let first_token = (firsts().min().unwrap_or_default(), firsts().max().unwrap_or_default());
        let soonest = self.sessions.values().filter_map(|counted| counted.ended).min();
        let steady = (first_token.1, soonest.unwrap_or_default().max(first_token.1));
        let is_steady = |at: &&Duration| steady.0 < **at && **at <= steady.1;
        let count = |count: usize| TokenCount::new(count as u64);
        let stage = |stage: Stage| {
            let busy = share(stage.passes.iter().map(|pass| (pass.from, pass.until)), steady);
            Stage { busy, ..stage }
        };
        let hop = |(hop, sent): (Hop, Vec<_>)| Hop { busy: share(sent.into_iter(), steady), ..hop };
        Report {
            took: self.arrivals.last().copied().unwrap_or_default(),
            tokens: count(self.arrivals.len()),
            failed: self.failed,
            first_token,
            steady,
            steady_tokens: count(self.arrivals.iter().filter(is_steady).count()),
            delays: self.delays.unwrap_or_default(),
            longest_gap: self.longest_gap,
            stages: self.stages.into_iter().map(stage).collect(),
            hops: self.hops.into_iter().map(hop).collect(),
        }
    }
}

/// The share of a time that these take, which do not overlap.
fn share(times: impl Iterator<Item = (Duration, Duration)>, (from, until): (Duration, Duration)) -> Permille {
    let within = |(start, end): (Duration, Duration)| end.min(until).saturating_sub(start.max(from));
    let (busy, whole) = (times.map(within).sum::<Duration>(), until.saturating_sub(from));
    let thousandths = (busy.as_nanos() * 1000).checked_div(whole.as_nanos()).unwrap_or(0);
    Permille::new(u32::try_from(thousandths).unwrap_or(u32::MAX))
}
