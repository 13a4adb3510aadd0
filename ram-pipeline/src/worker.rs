//! A shard's part in a pipeline: takes steps from the shard before it, has them computed, sends them on.
//!
//! ```text
//!              up                                        down
//! shard before -- steps --> | queue | -> batch -> stage | outbox | -- steps --> shard behind
//!              <- credit --                                      <- credit --
//!                                          of the last shard:    -- results --> head
//! ```
//!
//! [`Worker`] does no I/O: it takes what happened and says what is to be done. A batch is what is ready when the stage
//! is free: nothing is waited for. Single tokens go first, and one longer piece of a prompt with them. What the shard
//! behind has no credit for stays in the outbox, and while it does nothing new is computed: so a slow shard slows down
//! those before it, and memory stays bounded.
//!
//! What went out stays in a log. When a shard is lost, the group goes on in another epoch over new links: sessions that
//! are held go on from where the head says, and a shard that has none is sent what the log has before anything else. So
//! a lost shard costs what its own layers take, and nothing is computed again by the others.
//!
//! A batch holds no more single tokens than its share: as many as there are sessions for each shard, and one shard more
//! for what is on its way. All that is ready would be too many. Sessions that were computed together would go on
//! together, and while one shard had all of them the others would have nothing to do: where a pass takes longer the
//! more it computes, as with experts, five sessions over four shards came to less than half of what they get so. The
//! simulator ([`sim`](crate::sim)) shows it.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use ram_core::id::{Epoch, JobId};
use ram_core::units::{self, Timestamp, TokenCount};
use ram_proto::frame::{
    Code, Frame, Head, Heartbeat, KvCacheInit, Mark, Of, Refusal, Spent, Step, StepResult, Trim, VERSION,
    Want, Welcome,
};
use ram_proto::tensor::{self, Dtype, Shape};

pub use crate::log::Replay;
use crate::log::{Log, Sent};
use crate::session::Ledger;
use crate::stage::{Input, Opening, StageOutput, StageStep};

/// What a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Positions of sessions that there is memory for.
    pub room: TokenCount,
    /// How wide activations are.
    pub width: u32,
    /// In which type they come and go.
    pub dtype: Dtype,
    /// Whether it holds the embedding: then tokens come, each a row of one number of 32 bits.
    pub is_first: bool,
    /// Whether it holds the head.
    pub is_last: bool,
    /// How long a session may be silent.
    pub idle: Duration,
    /// Shards of the whole chain.
    pub shards: NonZeroU16,
    /// Whether the stage can go back to any position that was computed; else to none but the first.
    pub goes_back: bool,
    /// Bytes of activations that are kept for a shard that takes the place of the one behind.
    pub log: units::Bytes,
    /// How it gets them.
    pub replay: Replay,
}

/// A link of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// To the shard before.
    Up,
    /// To the shard behind.
    Down,
    /// From the last shard to the head.
    Results,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A frame arrived, after the greetings.
    Arrived {
        /// Over which link.
        from: Side,
        /// It.
        frame: Frame,
    },
    /// The shard behind has welcomed this one.
    Welcomed(Welcome),
    /// The group goes on in another epoch, over other links. Sessions wait for the head to say where they go on; of
    /// those that it does not ask for within a few seconds nothing is kept.
    Rebuilt(Epoch),
    /// A link is gone.
    Lost(Side),
    /// The stage has done the batch.
    Computed {
        /// An answer for each step, or why there is none.
        outcome: Result<Vec<StageOutput>, Code>,
        /// How long that took.
        took: Duration,
    },
    /// The stage could not begin a session.
    OpenFailed {
        /// Which.
        session: JobId,
        /// Why.
        code: Code,
    },
    /// Some time has passed; to be told about once a heartbeat.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Send a frame.
    Send {
        /// Over which link.
        to: Side,
        /// It.
        frame: Frame,
    },
    /// Have the stage do something, one after the other.
    Stage(Call),
    /// Close a link: the other end does not keep to the protocol.
    HangUp(Side),
}

/// What a stage is asked for.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// To begin a session.
    Open {
        /// Which.
        session: JobId,
        /// How.
        opening: Opening,
    },
    /// To compute; the outcome is to be told.
    Forward(Vec<StageStep>),
    /// To forget the end of a session.
    Trim {
        /// Which.
        session: JobId,
        /// What stays.
        position: u32,
    },
    /// To end a session.
    Close(JobId),
}

/// The machine.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    ledger: Ledger,
    /// Steps that were accepted, in the order in which they came.
    queue: VecDeque<Queued>,
    /// Steps that the stage computes.
    batch: Vec<Queued>,
    /// What the shard behind has no credit for yet.
    outbox: VecDeque<Frame>,
    credit: u32,
    log: Log,
    /// Whether the shard before replays sessions here, and this one to the shard behind.
    is_replayed: bool,
    replays: bool,
    /// Of the links that there are, and since when.
    epoch: Option<(Epoch, Timestamp)>,
    /// Microseconds that a single token took lately.
    step_us: u32,
}

/// A step that was accepted.
#[derive(Debug)]
struct Queued {
    step: Step,
    payload: Bytes,
    arrived: Timestamp,
    /// Whether nothing is sent on.
    is_replay: bool,
    /// Whether its session went another way while it was computed. One that begins anew in the same epoch could have a
    /// step that looks the same.
    is_void: bool,
}

impl Worker {
    /// A shard without sessions.
    #[must_use]
    pub const fn new(config: WorkerConfig) -> Self {
        Self {
            ledger: Ledger::new(config.room, config.idle),
            config,
            queue: VecDeque::new(),
            batch: Vec::new(),
            outbox: VecDeque::new(),
            credit: 0,
            log: Log::new(config.log),
            is_replayed: false,
            replays: false,
            epoch: None,
            step_us: 0,
        }
    }

    /// The answer to the shard before, when it has made a link. What it sends again depends on it, so each link's
    /// answer is to be asked for.
    pub fn welcome(&mut self) -> Welcome {
        let sessions = u32::try_from(self.ledger.len()).unwrap_or(u32::MAX);
        // Nobody is before the first one: a session that it does not hold begins anew.
        self.is_replayed = sessions == 0 && !self.config.is_first;
        Welcome { version: VERSION, credits: Self::CREDITS, kv_free: self.ledger.free(), sessions }
    }

    /// Steps that the shard before may send before it hears of any that was taken up.
    pub const CREDITS: u32 = 64;

    /// The sessions.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes what happened; appends what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrived { from: Side::Up, frame } => self.hear_above(frame, now, effects),
            Event::Arrived { from: Side::Down, frame } => self.hear_below(frame, effects),
            Event::Arrived { from: Side::Results, frame } => match frame.head {
                Head::Heartbeat(_) => {}
                _ => effects.push(Effect::HangUp(Side::Results)),
            },
            Event::Welcomed(welcome) => {
                self.credit = welcome.credits;
                self.replays = welcome.sessions == 0;
                self.flush(effects);
            }
            Event::Rebuilt(epoch) => self.rebuilt(epoch, now),
            // The head will come again in another epoch, or its sessions expire.
            Event::Lost(Side::Up) => self.queue.clear(),
            Event::Lost(Side::Down | Side::Results) => {
                self.outbox.clear();
                self.credit = 0;
                refuse(None, Code::LinkLost, effects);
            }
            Event::Computed { outcome, took } => self.computed(outcome, took, now, effects),
            Event::OpenFailed { session, code } => self.open_failed(session, code, effects),
            Event::Tick => self.tick(now, effects),
        }
        self.start(now, effects);
    }

    fn hear_above(&mut self, frame: Frame, now: Timestamp, effects: &mut Vec<Effect>) {
        match frame.head {
            Head::ForwardPass(step) => self.step(step, frame.payload, false, now, effects),
            Head::Replay(step) => self.step(step, frame.payload, true, now, effects),
            Head::KvCacheInit(ref init) => {
                let (of, resume) = (init.of, init.resume);
                let opened = self.open(init, &frame.payload, now, effects);
                match opened.and_then(|()| self.again(of, resume)) {
                    Ok(again) => {
                        self.pass_down(frame, effects);
                        self.outbox.extend(again);
                        self.flush(effects);
                    }
                    Err(code) => refuse(Some(of), code, effects),
                }
            }
            Head::Trim(trim) => match self.trim(&trim, now, effects) {
                Ok(()) => self.pass_down(frame, effects),
                Err(code) => refuse(Some(trim.of), code, effects),
            },
            Head::Cancel(of) => match self.ledger.cancel(of, now) {
                Ok(()) => {
                    self.drop_steps(of.session, effects);
                    self.pass_down(frame, effects);
                }
                Err(code) => refuse(Some(of), code, effects),
            },
            Head::Close(of) => {
                self.close(of, effects);
                self.pass_down(frame, effects);
            }
            Head::Heartbeat(_) | Head::Goaway | Head::Error(_) => {}
            Head::Hello(_)
            | Head::Welcome(_)
            | Head::Result(_)
            | Head::Credit { .. }
            | Head::Fetch(_)
            | Head::Piece(_) => {
                effects.push(Effect::HangUp(Side::Up));
            }
        }
    }

    fn hear_below(&mut self, frame: Frame, effects: &mut Vec<Effect>) {
        match frame.head {
            Head::Credit { steps } => {
                self.credit = self.credit.saturating_add(steps).min(CREDIT_MAX);
                self.flush(effects);
            }
            Head::Error(_) => effects.push(Effect::Send { to: Side::Up, frame }),
            Head::Heartbeat(_) | Head::Goaway => {}
            _ => effects.push(Effect::HangUp(Side::Down)),
        }
    }

    fn open(
        &mut self,
        init: &KvCacheInit,
        payload: &Bytes,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Code> {
        if !payload.len().is_multiple_of(size_of::<u32>()) {
            return Err(Code::WrongShape);
        }
        let session = init.of.session;
        if let Some(mark) = init.resume {
            if self.goes_on(init.of, mark, now, effects) {
                return Ok(());
            }
            if !self.is_replayed {
                return Err(Code::UnknownSession);
            }
        }
        self.ledger.open(init, now)?;
        self.drop_steps(session, effects);
        self.log.close(session);
        // Only who samples needs to know the words.
        let seen = if self.config.is_last { words(payload) } else { Vec::new() };
        let (positions, sampling, picks) = (init.positions, init.sampling.clone(), init.picks);
        let opening = Opening { positions, sampling, seen, picks };
        effects.push(Effect::Stage(Call::Open { session, opening }));
        Ok(())
    }

    /// Takes a session that is held on to another epoch, back to a mark if need be; says whether it can.
    fn goes_on(&mut self, of: Of, mark: Mark, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
        let here = self.ledger.computed(of.session);
        if !self.config.goes_back && here != Some(mark) {
            return false;
        }
        let trim = Trim { of, position: mark.position, prefix: mark.prefix };
        self.trim(&trim, now, effects).is_ok()
    }

    /// What the shard behind needs of a session that goes on, if it takes a lost one's place. Where this one does, too,
    /// that comes of what is on its way here.
    fn again(&self, of: Of, resume: Option<Mark>) -> Result<Vec<Frame>, Code> {
        let replays = self.replays && !self.is_replayed && !self.config.is_last;
        let Some(mark) = resume.filter(|_| replays) else { return Ok(Vec::new()) };
        let sent = self.log.until(of.session, mark, self.config.replay).ok_or(Code::UnknownSession)?;
        let replay = |Sent { step, payload }| {
            let (want, deadline_ms, spent) = (Want::Nothing, u32::MAX, Spent::default());
            Frame { head: Head::Replay(Step { of, want, deadline_ms, spent, ..step }), payload }
        };
        Ok(sent.into_iter().map(replay).collect())
    }

    fn step(
        &mut self,
        step: Step,
        payload: Bytes,
        is_replay: bool,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let WorkerConfig { width, dtype, is_first, .. } = self.config;
        let (cols, dtype) = if is_first { (1, Dtype::F32) } else { (width, dtype) };
        let bytes = step.shape.elements().saturating_mul(dtype.bytes() as u64);
        let shaped = step.shape.cols == cols && step.dtype == dtype && bytes == payload.len() as u64;
        let accepted = match shaped {
            true if self.queue.len() >= CREDIT_MAX as usize => Err(Code::Protocol),
            true => self.ledger.accept(&step, now),
            false => Err(Code::WrongShape),
        };
        match accepted {
            Ok(()) => self.queue.push_back(Queued { step, payload, arrived: now, is_replay, is_void: false }),
            Err(code) => {
                give_credit(1, effects);
                refuse(Some(step.of), code, effects);
            }
        }
    }

    fn trim(&mut self, trim: &Trim, now: Timestamp, effects: &mut Vec<Effect>) -> Result<(), Code> {
        self.ledger.trim(trim, now)?;
        let Trim { of: Of { session, .. }, position, prefix } = *trim;
        self.drop_steps(session, effects);
        self.log.trim(session, Mark { position, prefix });
        effects.push(Effect::Stage(Call::Trim { session, position }));
        Ok(())
    }

    /// Ends a session, unless it has gone on to another epoch.
    fn close(&mut self, Of { session, epoch }: Of, effects: &mut Vec<Effect>) {
        if self.ledger.epoch(session) == Some(epoch) {
            self.drop_steps(session, effects);
            self.forget(session, effects);
        }
    }

    /// Keeps nothing of a session any more.
    fn forget(&mut self, session: JobId, effects: &mut Vec<Effect>) {
        self.ledger.close(session);
        self.log.close(session);
        effects.push(Effect::Stage(Call::Close(session)));
    }

    fn rebuilt(&mut self, epoch: Epoch, now: Timestamp) {
        self.epoch = Some((epoch, now));
        self.ledger.cancel_all();
        // Credit was of the links of before.
        self.queue.clear();
        self.outbox.clear();
        (self.credit, self.replays) = (0, false);
    }

    fn open_failed(&mut self, session: JobId, code: Code, effects: &mut Vec<Effect>) {
        if let Some(epoch) = self.ledger.epoch(session) {
            self.ledger.close(session);
            self.log.close(session);
            self.drop_steps(session, effects);
            refuse(Some(Of { session, epoch }), code, effects);
        }
    }

    /// Drops what waits of a session.
    fn drop_steps(&mut self, session: JobId, effects: &mut Vec<Effect>) {
        let of_session = |queued: &&mut Queued| queued.step.of.session == session;
        self.batch.iter_mut().filter(of_session).for_each(|queued| queued.is_void = true);
        let before = self.queue.len();
        self.queue.retain(|queued| queued.step.of.session != session);
        give_credit(before - self.queue.len(), effects);
        let is_other = |frame: &Frame| match &frame.head {
            Head::ForwardPass(step) | Head::Replay(step) => step.of.session != session,
            _ => true,
        };
        self.outbox.retain(is_other);
    }

    /// Has the stage compute what is ready, if it is free.
    fn start(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if !self.batch.is_empty() || !self.outbox.is_empty() {
            return;
        }
        self.give_up_late(now, effects);
        let (mut waiting, mut tokens, mut long, mut short) = (VecDeque::new(), 0, false, 0);
        let share = self.share();
        for queued in self.queue.drain(..) {
            let Step { shape, .. } = queued.step;
            // Of a session that is the one behind what is computed, so no two of a session are in a batch.
            let is_next = self.ledger.wants(&queued.step);
            let is_long = shape.rows > SHORT_ROWS;
            let fits = self.batch.is_empty() || tokens + shape.rows <= BATCH_TOKENS_MAX;
            let has_its_turn = if is_long { !long } else { short < share };
            if is_next && fits && has_its_turn {
                tokens += shape.rows;
                long |= is_long;
                short += usize::from(!is_long);
                self.batch.push(queued);
            } else {
                waiting.push_back(queued);
            }
        }
        self.queue = waiting;
        if self.batch.is_empty() {
            return;
        }
        give_credit(self.batch.len(), effects);
        self.batch.sort_by_key(|queued| queued.step.shape.rows > SHORT_ROWS);
        let steps = self.batch.iter().map(|Queued { step, payload, .. }| {
            let input = if self.config.is_first {
                Input::Tokens(words(payload))
            } else {
                let numbers = tensor::decode(step.dtype, step.shape, payload);
                Input::Hidden(numbers.expect("a step was only accepted with as many bytes as its shape says"))
            };
            let Step { of, position, want, .. } = *step;
            StageStep { session: of.session, position, input, want }
        });
        effects.push(Effect::Stage(Call::Forward(steps.collect())));
    }

    /// Single tokens of a batch at most, so that every shard has something to do.
    fn share(&self) -> usize {
        let groups = match self.config.shards.get() {
            1 => 1,
            shards => usize::from(shards) + 1,
        };
        self.ledger.len().div_ceil(groups)
    }

    /// Gives up the sessions whose steps nobody waits for any more.
    fn give_up_late(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_late = |queued: &&Queued| {
            now.since(queued.arrived) >= Duration::from_millis(u64::from(queued.step.deadline_ms))
        };
        let late: Vec<Of> = self.queue.iter().filter(is_late).map(|queued| queued.step.of).collect();
        for of in late {
            if self.ledger.cancel(of, now).is_ok() {
                self.drop_steps(of.session, effects);
                refuse(Some(of), Code::DeadlineExceeded, effects);
            }
        }
    }

    fn computed(
        &mut self,
        outcome: Result<Vec<StageOutput>, Code>,
        took: Duration,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let batch = std::mem::take(&mut self.batch);
        let outputs = match outcome {
            Ok(outputs) if outputs.len() == batch.len() => outputs,
            Ok(_) => return self.failed(batch, Code::Internal, now, effects),
            Err(code) => return self.failed(batch, code, now, effects),
        };
        let compute_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if batch.iter().all(|queued| queued.step.shape.rows == 1) {
            self.step_us = compute_us;
        }
        for (queued, output) in batch.into_iter().zip(outputs) {
            let Queued { step, arrived, is_replay, is_void, .. } = queued;
            if is_void || !self.ledger.wants(&step) {
                continue;
            }
            self.ledger.complete(&step, now);
            if is_replay {
                self.put_out_again(&step, output, effects);
                continue;
            }
            let waited = now.since(arrived);
            let queue = u32::try_from(waited.saturating_sub(took).as_micros()).unwrap_or(u32::MAX);
            let spent = Spent {
                compute_us: step.spent.compute_us.saturating_add(compute_us),
                queue_us: step.spent.queue_us.saturating_add(queue),
            };
            let waited_ms = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
            let step = Step { deadline_ms: step.deadline_ms.saturating_sub(waited_ms), spent, ..step };
            self.put_out(&step, output, effects);
        }
        self.flush(effects);
    }

    /// Sends on what came out of a step.
    fn put_out(&mut self, step: &Step, output: StageOutput, effects: &mut Vec<Effect>) {
        let Step { of, position, shape, spent, want, .. } = *step;
        let result = |token, logprob, logits| {
            let position = position + shape.rows;
            Head::Result(StepResult { of, position, token, logprob, logits, spent })
        };
        let frame = match output {
            StageOutput::Hidden(numbers) if !self.config.is_last => {
                let (step, payload) = self.logged(step, &numbers);
                self.outbox.push_back(Frame { head: Head::ForwardPass(step), payload });
                return;
            }
            StageOutput::Token { token, logprob } => result(Some(token), logprob, None).into(),
            StageOutput::Nothing if want == Want::Nothing => result(None, None, None).into(),
            StageOutput::Logits(numbers) => {
                let cols = numbers.len() / shape.rows as usize;
                let cols = u32::try_from(cols).unwrap_or(u32::MAX);
                let head = result(None, None, Some(Shape { rows: shape.rows, cols }));
                Frame { head, payload: tensor::encode(Dtype::F32, &numbers).freeze() }
            }
            StageOutput::Hidden(_) | StageOutput::Nothing => {
                return refuse(Some(of), Code::Internal, effects);
            }
        };
        effects.push(Effect::Send { to: Side::Results, frame });
    }

    /// Keeps what came out of a step that was made again; the shard behind gets it if it was lost, too.
    fn put_out_again(&mut self, step: &Step, output: StageOutput, effects: &mut Vec<Effect>) {
        match output {
            StageOutput::Hidden(numbers) if !self.config.is_last => {
                let (step, payload) = self.logged(step, &numbers);
                if self.replays {
                    self.outbox.push_back(Frame { head: Head::Replay(step), payload });
                }
            }
            StageOutput::Nothing if self.config.is_last => {}
            _ => refuse(Some(step.of), Code::Internal, effects),
        }
    }

    /// A step for the shard behind, of which the log now knows.
    fn logged(&mut self, step: &Step, numbers: &[f32]) -> (Step, Bytes) {
        let WorkerConfig { width: cols, dtype, .. } = self.config;
        let step = Step { dtype, shape: Shape { cols, ..step.shape }, ..step.clone() };
        let payload = tensor::encode(dtype, numbers).freeze();
        self.log.push(step.clone(), payload.clone());
        (step, payload)
    }

    /// A pass failed: its sessions stay where they were, and the head is told.
    fn failed(&mut self, batch: Vec<Queued>, code: Code, now: Timestamp, effects: &mut Vec<Effect>) {
        for Queued { step, is_void, .. } in batch {
            if !is_void && self.ledger.wants(&step) && self.ledger.cancel(step.of, now).is_ok() {
                self.drop_steps(step.of.session, effects);
                refuse(Some(step.of), code, effects);
            }
        }
    }

    /// Sends from the outbox what there is credit for.
    fn flush(&mut self, effects: &mut Vec<Effect>) {
        while self.credit > 0
            && let Some(frame) = self.outbox.pop_front()
        {
            self.credit -= 1;
            effects.push(Effect::Send { to: Side::Down, frame });
        }
    }

    fn pass_down(&self, frame: Frame, effects: &mut Vec<Effect>) {
        if !self.config.is_last {
            effects.push(Effect::Send { to: Side::Down, frame });
        }
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for session in self.ledger.expire(now) {
            self.forget(session, effects);
        }
        if let Some((epoch, since)) = self.epoch
            && now.since(since) >= RESUME
        {
            self.ledger.before(epoch).into_iter().for_each(|session| self.forget(session, effects));
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let heartbeat = Heartbeat {
            clock: None, // That is the link's.
            sessions: count(self.ledger.len()),
            queued: count(self.queue.len()),
            kv_free: self.ledger.free(),
            step_us: self.step_us,
        };
        let other = if self.config.is_last { Side::Results } else { Side::Down };
        for to in [Side::Up, other] {
            effects.push(Effect::Send { to, frame: Head::Heartbeat(heartbeat).into() });
        }
    }
}

/// Tokens of bytes.
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// Tells the shard before that steps were taken up.
fn give_credit(steps: usize, effects: &mut Vec<Effect>) {
    if let Some(steps) = u32::try_from(steps).ok().filter(|steps| *steps > 0) {
        effects.push(Effect::Send { to: Side::Up, frame: Head::Credit { steps }.into() });
    }
}

/// Tells the shard before, and through it the head, that something is not done.
fn refuse(of: Option<Of>, code: Code, effects: &mut Vec<Effect>) {
    let refusal = Refusal { of, code, retry_after_ms: None };
    effects.push(Effect::Send { to: Side::Up, frame: Head::Error(refusal).into() });
}

/// How long a session waits for the head to go on with it in another epoch: the head says so as soon as it is there.
const RESUME: Duration = Duration::from_secs(10);
/// Tokens of a step that is a guess or an answer, and no piece of a prompt.
const SHORT_ROWS: u32 = 16;
/// Tokens of a batch, unless a single step has more.
const BATCH_TOKENS_MAX: u32 = 1024;
/// Steps that may wait here or at the shard behind, whatever credit was given: each holds its activations.
const CREDIT_MAX: u32 = 1024;

#[cfg(test)]
mod tests;
