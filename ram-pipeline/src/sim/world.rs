//! The clock, the links, and whatever driver and workers ask for.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::BytesMut;
use ram_core::id::{Epoch, JobId};
use ram_core::job::Sampling;
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_proto::frame::{Frame, Head, Step, StepResult, Want, Welcome};
use ram_proto::tensor::{Dtype, Shape};

use crate::driver::{self, Driver, End, Request};
use crate::stage::{Input, StageOutput, StageStep};
use crate::worker::{Call, Effect, Event, Replay, Side, Worker, WorkerConfig};

use super::report::{Pass, Report, Tally};
use super::{Batch, Chain, Death, Load};

/// What will happen.
#[derive(Debug)]
enum Due {
    /// Somebody asks.
    Submit(JobId),
    /// A frame comes to the driver.
    ToHead { epoch: Epoch, frame: Frame },
    /// One comes to a worker.
    ToStage { epoch: Epoch, at: usize, from: Side, frame: Frame },
    /// A stage is done.
    Computed { at: usize, life: u32, outputs: Vec<StageOutput>, took: Duration },
    /// A machine dies.
    Dies(usize),
    /// Those beside it know.
    Noticed(usize),
    /// There is another one.
    Rebuilt(usize),
}

/// A machine with its worker.
struct Node {
    worker: Worker,
    is_alive: bool,
    /// How many machines were in this place before: what they began is not heard of.
    life: u32,
}

/// Everything, at a moment.
pub(super) struct World<'a> {
    chain: &'a Chain,
    load: &'a Load,
    now: Duration,
    /// By time, then in the order in which it was brought about.
    agenda: BTreeMap<(Duration, u64), Due>,
    brought: u64,
    epoch: Epoch,
    driver: Driver,
    nodes: Vec<Node>,
    /// By the places of its ends: when a link has sent all that it was given.
    free: BTreeMap<(usize, usize), Duration>,
    tally: Tally,
}

impl<'a> World<'a> {
    /// With everything asked at the beginning.
    pub(super) fn new(chain: &'a Chain, load: &'a Load) -> Self {
        let stages = chain.stages.len();
        let epoch = Epoch::new(1);
        let node = |at| Node { worker: worker(at, stages, load), is_alive: true, life: 0 };
        let mut world = Self {
            chain,
            load,
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            brought: 0,
            epoch,
            driver: Driver::new(epoch, load.piece, Worker::CREDITS),
            nodes: (0..stages).map(node).collect(),
            free: BTreeMap::new(),
            tally: Tally::new(stages),
        };
        for at in 0..stages {
            world.handle(at, Event::Welcomed(WELCOME));
        }
        for session in 0..load.sessions {
            world.bring(Duration::ZERO, Due::Submit(JobId::from_bits(session.into())));
        }
        world
    }

    /// Plays until nothing is left to happen.
    pub(super) fn play(mut self, death: Option<Death>) -> Report {
        if let Some(Death { stage, at, noticed, rebuilt }) = death {
            self.bring(at, Due::Dies(stage));
            self.bring(noticed, Due::Noticed(stage));
            self.bring(rebuilt, Due::Rebuilt(stage));
        }
        while let Some(((at, _), due)) = self.agenda.pop_first() {
            self.now = at;
            self.happens(due);
        }
        self.tally.report()
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Submit(session) => self.drive(driver::Event::Submit(self.request(session))),
            Due::ToHead { epoch, frame } if epoch == self.epoch => {
                self.drive(driver::Event::Arrived(frame));
            }
            Due::ToStage { epoch, at, from, frame } if epoch == self.epoch => {
                self.handle(at, Event::Arrived { from, frame });
            }
            // Of links that are gone.
            Due::ToHead { .. } | Due::ToStage { .. } => {}
            Due::Computed { at, life, outputs, took } => {
                if life == self.nodes[at].life {
                    self.handle(at, Event::Computed { outcome: Ok(outputs), took });
                }
            }
            Due::Dies(at) => self.nodes[at].is_alive = false,
            Due::Noticed(at) => {
                self.handle(at - 1, Event::Lost(Side::Down));
                if at + 1 < self.nodes.len() {
                    self.handle(at + 1, Event::Lost(Side::Up));
                }
            }
            Due::Rebuilt(at) => self.rebuild(at),
        }
    }

    fn request(&self, session: JobId) -> Request {
        let Load { prompt, tokens, .. } = *self.load;
        let prompt = vec![TOKEN; usize::try_from(prompt.get()).unwrap_or(usize::MAX)];
        let deadline = Timestamp::from_millis(u64::MAX);
        Request { session, prompt, tokens_max: tokens, sampling: Sampling::default(), deadline }
    }

    /// Another machine takes the place, and all links are made anew.
    fn rebuild(&mut self, at: usize) {
        let life = self.nodes[at].life + 1;
        self.nodes[at] = Node { worker: worker(at, self.nodes.len(), self.load), is_alive: true, life };
        self.epoch = self.epoch.next();
        for at in 0..self.nodes.len() {
            self.handle(at, Event::Rebuilt(self.epoch));
        }
        for at in 1..self.nodes.len() {
            let welcome = self.nodes[at].worker.welcome();
            self.handle(at - 1, Event::Welcomed(welcome));
        }
        self.tally.begins_anew();
        self.drive(driver::Event::Rebuilt { epoch: self.epoch, credits: Worker::CREDITS });
    }

    /// The driver hears of something.
    fn drive(&mut self, event: driver::Event) {
        let mut effects = Vec::new();
        self.driver.handle(event, self.millis(), &mut effects);
        for effect in effects {
            match effect {
                // On the head's own machine.
                driver::Effect::Send(frame) => self.deliver(self.now, 0, Side::Up, frame),
                driver::Effect::Token { session, .. } => self.tally.token(session, self.now),
                driver::Effect::Ended { session, end } => {
                    self.tally.ended(session, end == End::Length, self.now);
                }
            }
        }
    }

    /// A worker hears of something.
    fn handle(&mut self, at: usize, event: Event) {
        if !self.nodes[at].is_alive {
            return;
        }
        let mut effects = Vec::new();
        let now = self.millis();
        self.nodes[at].worker.handle(event, now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { to: Side::Down, frame } => {
                    let arrives = self.send(at, at + 1, &frame);
                    self.deliver(arrives, at + 1, Side::Up, frame);
                }
                Effect::Send { to: Side::Up, frame } if at > 0 => {
                    let arrives = self.send(at, at - 1, &frame);
                    self.deliver(arrives, at - 1, Side::Down, frame);
                }
                Effect::Send { frame, .. } => {
                    let arrives = self.send(at, 0, &frame);
                    self.bring(arrives, Due::ToHead { epoch: self.epoch, frame });
                }
                Effect::Stage(Call::Forward(steps)) => self.compute(at, &steps),
                // The stage of a simulation keeps nothing.
                Effect::Stage(_) => {}
                Effect::HangUp(side) => panic!("worker {at} hangs up on {side:?}, and both are ours"),
            }
        }
    }

    /// A stage begins with a batch.
    fn compute(&mut self, at: usize, steps: &[StageStep]) {
        let is_last = at + 1 == self.nodes.len();
        let rows = |step: &StageStep| match &step.input {
            Input::Tokens(tokens) => tokens.len(),
            Input::Hidden(numbers) => numbers.len(),
        };
        let (mut batch, mut outputs) = (Batch::default(), Vec::with_capacity(steps.len()));
        for step in steps {
            let tokens = TokenCount::new(rows(step) as u64);
            batch.tokens += tokens;
            batch.positions += tokens + TokenCount::new(step.position.into());
            outputs.push(match step.want {
                _ if !is_last => StageOutput::Hidden(vec![0.0; rows(step)]),
                Want::Token => StageOutput::Token { token: TOKEN, logprob: None },
                Want::Nothing | Want::Logits => StageOutput::Nothing,
            });
        }
        let (_, cost) = self.chain.stages[at];
        let took = cost.time(batch);
        let (from, until) = (self.now, self.now.saturating_add(took));
        let sessions = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        self.tally.stages[at].passes.push(Pass { from, until, sessions, tokens: batch.tokens });
        let life = self.nodes[at].life;
        self.bring(until, Due::Computed { at, life, outputs, took });
    }

    /// Gives a link a frame; says when it is there.
    fn send(&mut self, from: usize, to: usize, frame: &Frame) -> Duration {
        if from == to {
            return self.now;
        }
        if let Head::ForwardPass(Step { of, .. }) | Head::Result(StepResult { of, .. }) = &frame.head {
            self.tally.delayed(of.session);
        }
        let link = self.chain.links.between(self.chain.stages[from].0, self.chain.stages[to].0);
        let bytes = wire_bytes(frame, self.chain.width);
        let free = self.free.entry((from, to)).or_default();
        let begins = self.now.max(*free);
        *free = begins.saturating_add(link.rate.time_for(bytes));
        let (sent, is_down) = ((begins, *free), (from + 1) % self.nodes.len() == to);
        if is_down {
            let (hop, times) = &mut self.tally.hops[from];
            hop.bytes += bytes;
            times.push(sent);
            let has_one_token = match &frame.head {
                Head::ForwardPass(step) => step.shape.rows == 1,
                Head::Result(result) => result.token.is_some(),
                _ => false,
            };
            if has_one_token {
                hop.token_frames += 1;
                hop.token_bytes += bytes;
            }
        }
        sent.1.saturating_add(link.delay)
    }

    fn deliver(&mut self, arrives: Duration, at: usize, from: Side, frame: Frame) {
        self.bring(arrives, Due::ToStage { epoch: self.epoch, at, from, frame });
    }

    /// Has something happen.
    fn bring(&mut self, at: Duration, due: Due) {
        self.agenda.insert((at, self.brought), due);
        self.brought += 1;
    }

    /// The time as the machines are told it.
    fn millis(&self) -> Timestamp {
        Timestamp::from_millis(u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX))
    }
}

/// An empty worker with room for all that is asked.
fn worker(at: usize, stages: usize, load: &Load) -> Worker {
    let session = load.prompt.saturating_add(load.tokens);
    Worker::new(WorkerConfig {
        room: session.saturating_mul(load.sessions.into()),
        width: 1,
        dtype: Dtype::Bf16,
        is_first: at == 0,
        is_last: at + 1 == stages,
        idle: Duration::MAX,
        shards: u16::try_from(stages).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX),
        goes_back: true,
        log: Bytes::from_gib(1),
        replay: Replay::Exact,
    })
}

/// What a frame has on a link: its lengths, its head, and activations of full width.
fn wire_bytes(frame: &Frame, width: u32) -> Bytes {
    let (mut bytes, mut head) = (BytesMut::new(), frame.head.clone());
    let mut payload = frame.payload.len() as u64;
    if let Head::ForwardPass(step) | Head::Replay(step) = &mut head {
        step.shape = Shape { cols: width, ..step.shape };
        payload = payload.saturating_mul(width.into());
    }
    Frame::from(head).put_prelude(&mut bytes).expect("a head of ours is short");
    Bytes::new(payload.saturating_add(bytes.len() as u64))
}

const WELCOME: Welcome =
    Welcome { version: 1, credits: Worker::CREDITS, kv_free: TokenCount::ZERO, sessions: 0 };
/// What everybody says: one of a large vocabulary, so that it is as long in a result as most are.
const TOKEN: u32 = 100_000;
