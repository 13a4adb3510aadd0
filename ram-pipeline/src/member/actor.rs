//! The task of a member: it hears, has the machines think, and does what they say.

use std::collections::{HashMap, VecDeque};
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc as threads;
use std::time::Duration;

use ram_core::id::{Epoch, JobId};
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::frame::{Carries, Code, Frame, HEARTBEAT_MS, Head, Heartbeat, Hello, VERSION, Welcome};
use ram_proto::tensor::Dtype;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::links::{self, Ends};
use super::{Chain, Dialer, MemberConfig, Report, Said, Word};
use crate::driver::{self, Driver, Request};
use crate::link::Link;
use crate::link::alive::Pulse;
use crate::link::greet::{self, Caller, Open};
use crate::stage::Stage;
use crate::worker::{self, Call, Side, Worker};

/// Everything that a member has.
pub(super) struct Actor {
    config: MemberConfig,
    worker: Worker,
    /// On the head.
    driver: Option<Driver>,
    calls: threads::Sender<Call>,
    dialer: Dialer,
    clock: Box<dyn Fn() -> Timestamp + Send>,
    reports: mpsc::UnboundedSender<Report>,
    said: mpsc::WeakUnboundedSender<Said>,
    /// What comes over all links, each frame with its link's number.
    frames: mpsc::Sender<(u64, Frame)>,
    arrivals: mpsc::Receiver<(u64, Frame)>,
    status: watch::Sender<Heartbeat>,
    /// How far the next shard is away; from the last one, the head.
    hop: watch::Sender<Option<Duration>>,
    /// Of the present epoch.
    chain: Option<Chain>,
    /// The latest one that was heard of; an older one is not heard.
    last: Option<Epoch>,
    links: HashMap<Side, Line>,
    /// Who has called too early.
    waiting: VecDeque<Caller<Box<dyn Link>>>,
    is_linked: bool,
    numbers: u64,
    /// Of the links of this epoch; they end with it.
    tasks: JoinSet<()>,
    /// Who gets the words of which answer.
    answers: HashMap<JobId, mpsc::UnboundedSender<Word>>,
}

/// A link, from here.
struct Line {
    number: u64,
    outbox: mpsc::Sender<Frame>,
}

/// Something for one of the machines.
enum Happens {
    Worker(worker::Event),
    Driver(driver::Event),
}

impl Actor {
    pub(super) fn new(
        config: MemberConfig,
        stage: impl Stage + Send + 'static,
        dialer: Dialer,
        clock: Box<dyn Fn() -> Timestamp + Send>,
        said: mpsc::WeakUnboundedSender<Said>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let (calls, heard) = threads::channel();
        let (told, (frames, arrivals)) = (said.clone(), mpsc::channel(FRAMES_MAX));
        std::thread::spawn(move || compute(stage, &heard, &told));
        // Nothing is sent before there is a chain.
        let driver = config.worker.is_first.then(|| Driver::new(Epoch::new(0), config.piece, 0));
        Self {
            worker: Worker::new(config.worker),
            config,
            driver,
            calls,
            dialer,
            clock,
            reports,
            said,
            frames,
            arrivals,
            status: watch::Sender::new(Heartbeat::default()),
            hop: watch::Sender::new(None),
            chain: None,
            last: None,
            links: HashMap::new(),
            waiting: VecDeque::new(),
            is_linked: false,
            numbers: 0,
            tasks: JoinSet::new(),
            answers: HashMap::new(),
        }
    }

    /// How busy the worker is, from beat to beat.
    pub(super) fn status(&self) -> watch::Receiver<Heartbeat> {
        self.status.subscribe()
    }

    /// How far the next shard is away.
    pub(super) fn hop(&self) -> watch::Receiver<Option<Duration>> {
        self.hop.subscribe()
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Said>) {
        let mut pulse = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = inbox.recv() => match said {
                    Some(said) => self.hear(said),
                    None => return,
                },
                Some((link, frame)) = self.arrivals.recv() => self.arrived(link, frame),
                _ = pulse.tick() => {
                    self.think(Happens::Worker(worker::Event::Tick));
                    self.think(Happens::Driver(driver::Event::Tick));
                }
            }
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Join(chain) => self.join(chain),
            Said::Leave => self.leave(),
            Said::Called(caller) => self.called(*caller),
            Said::Dialled { epoch, side, outcome } => {
                if self.epoch() == Some(epoch) {
                    match outcome {
                        Ok(open) => self.dialled(side, *open),
                        Err(_) => self.lost(side),
                    }
                }
            }
            Said::Closed { link } => {
                if let Some(side) = self.side_of(link) {
                    self.lost(side);
                }
            }
            Said::Computed { outcome, took } => {
                self.think(Happens::Worker(worker::Event::Computed { outcome, took }));
            }
            Said::OpenFailed { session, code } => {
                self.think(Happens::Worker(worker::Event::OpenFailed { session, code }));
            }
            Said::Submit { request, words } => self.submit(request, words),
            Said::Enough(session) => self.think(Happens::Driver(driver::Event::Enough(session))),
            Said::Hopeless(code) => self.think(Happens::Driver(driver::Event::Hopeless(code))),
        }
    }

    fn submit(&mut self, request: Request, words: mpsc::UnboundedSender<Word>) {
        // One that is being answered goes on to its first asker.
        if self.driver.is_some() && !self.answers.contains_key(&request.session) {
            self.answers.insert(request.session, words);
            self.think(Happens::Driver(driver::Event::Submit(request)));
        }
    }

    /// Leaves the links of before, and makes those of another epoch.
    fn join(&mut self, chain: Chain) {
        if self.last.is_some_and(|last| chain.epoch <= last) || chain.place >= chain.peers.len() {
            return;
        }
        self.tasks.abort_all();
        self.links.clear();
        self.is_linked = false;
        let (epoch, last) = (chain.epoch, chain.peers.len() - 1);
        self.hop.send_replace(None); // Another one may be next.
        self.last = Some(epoch);
        self.think(Happens::Worker(worker::Event::Rebuilt(epoch)));
        if chain.place < last {
            self.dial(&chain, chain.place + 1, Side::Down);
        } else if last > 0 {
            self.dial(&chain, 0, Side::Results);
        }
        self.chain = Some(chain);
        for caller in std::mem::take(&mut self.waiting) {
            self.called(caller);
        }
        self.look();
    }

    /// Leaves the links, without a word of it.
    fn leave(&mut self) {
        self.chain = None;
        self.tasks.abort_all();
        self.waiting.clear();
        self.is_linked = false;
        for side in std::mem::take(&mut self.links).into_keys() {
            self.think(Happens::Worker(worker::Event::Lost(self.side_of_worker(side))));
        }
    }

    fn dial(&mut self, chain: &Chain, to: usize, side: Side) {
        let peer = chain.peers[to].clone();
        let carries = if side == Side::Results { Carries::Results } else { Carries::Steps };
        let hello = self.hello(chain, to, carries);
        let (dialer, said) = (self.dialer.clone(), self.said.clone());
        self.spawn(links::dial(dialer, (peer, hello, chain.epoch, side), said));
    }

    /// What is said to a member, or by one, of a link to it.
    fn hello(&self, chain: &Chain, to: usize, carries: Carries) -> Hello {
        let MemberConfig { model, worker, .. } = self.config;
        let (layers, epoch) = (chain.peers[to].layers, chain.epoch);
        let (dtype, width): (Dtype, u32) = (worker.dtype, worker.width);
        Hello { version: VERSION, model, layers, epoch, carries, dtype, width }
    }

    fn dialled(&mut self, side: Side, open: Open<Box<dyn Link>>) {
        let welcome = open.welcome.clone();
        let ends = self.line(side);
        self.spawn(links::carry(open, ends));
        if side == Side::Down {
            self.think(Happens::Worker(worker::Event::Welcomed(welcome)));
        }
        self.look();
    }

    /// Welcomes who has called, or refuses, or lets it wait.
    fn called(&mut self, caller: Caller<Box<dyn Link>>) {
        let carries = caller.hello().carries;
        let is_head = self.config.worker.is_first;
        let is_ours = (carries == Carries::Results) == is_head;
        let Some(chain) = self.chain.as_ref().filter(|chain| caller.hello().epoch <= chain.epoch) else {
            return self.wait(caller); // It has heard of an epoch before us.
        };
        let from = if is_head { chain.peers.len() - 1 } else { chain.place - 1 };
        let is_known = caller.peer().is_none_or(|key| key == chain.peers[from].node);
        let expected = self.hello(chain, chain.place, carries);
        match greet::check(caller.hello(), &expected) {
            Err(code) => self.refuse(caller, code),
            Ok(()) if !is_ours || !is_known => self.refuse(caller, Code::Protocol),
            Ok(()) if is_head => self.welcome(Side::Results, caller),
            Ok(()) if self.is_linked_behind() => self.welcome(Side::Up, caller),
            Ok(()) => self.wait(caller),
        }
    }

    fn wait(&mut self, caller: Caller<Box<dyn Link>>) {
        if self.waiting.len() >= WAITING_MAX
            && let Some(first) = self.waiting.pop_front()
        {
            self.refuse(first, Code::Busy);
        }
        self.waiting.push_back(caller);
    }

    fn refuse(&mut self, caller: Caller<Box<dyn Link>>, code: Code) {
        self.spawn(async move {
            caller.refuse(code, None).await;
        });
    }

    fn welcome(&mut self, side: Side, caller: Caller<Box<dyn Link>>) {
        if self.links.contains_key(&side) {
            return self.refuse(caller, Code::Busy);
        }
        let welcome = match side {
            Side::Up => self.worker.welcome(),
            _ => Welcome { version: VERSION, credits: 0, kv_free: TokenCount::ZERO, sessions: 0 },
        };
        let ends = self.line(side);
        self.spawn(links::welcome(caller, welcome, ends));
        self.look();
    }

    fn line(&mut self, side: Side) -> Ends {
        self.numbers += 1;
        let number = self.numbers;
        let (sender, outbox) = mpsc::channel(FRAMES_MAX);
        self.links.insert(side, Line { number, outbox: sender });
        let (inbox, said) = (self.frames.clone(), self.said.clone());
        let is_next = side == Side::Down || (side == Side::Results && self.driver.is_none());
        let hop = if is_next { self.hop.clone() } else { watch::Sender::new(None) };
        Ends { number, outbox, inbox, pulse: Pulse { says: self.status.subscribe(), hop }, said }
    }

    /// Whether all is there behind this member.
    fn is_linked_behind(&self) -> bool {
        let alone = self.chain.as_ref().is_some_and(|chain| chain.peers.len() == 1);
        alone || self.links.contains_key(&Side::Down) || self.links.contains_key(&Side::Results)
    }

    /// Sees whether there is something to be said of the links.
    fn look(&mut self) {
        let Some(Chain { epoch, peers, .. }) = &self.chain else { return };
        let (epoch, alone) = (*epoch, peers.len() == 1);
        let has = |side| self.links.contains_key(&side);
        let is_head = self.config.worker.is_first;
        if !is_head && self.is_linked_behind() && !has(Side::Up) {
            for caller in std::mem::take(&mut self.waiting) {
                self.called(caller);
            }
            return;
        }
        let is_linked = match is_head {
            true => alone || (has(Side::Down) && has(Side::Results)),
            false => self.is_linked_behind() && has(Side::Up),
        };
        if is_linked && !self.is_linked {
            self.is_linked = true;
            self.think(Happens::Driver(driver::Event::Rebuilt { epoch, credits: Worker::CREDITS }));
            self.report(Report::Linked(epoch));
        }
    }

    fn lost(&mut self, side: Side) {
        self.links.remove(&side);
        self.is_linked = false;
        self.think(Happens::Worker(worker::Event::Lost(self.side_of_worker(side))));
        if let Some(epoch) = self.epoch() {
            self.report(Report::Lost(epoch, side));
        }
    }

    /// What the worker calls a side: to the head the way back is as good as the way there.
    const fn side_of_worker(&self, side: Side) -> Side {
        if self.driver.is_some() { Side::Down } else { side }
    }

    fn arrived(&mut self, link: u64, frame: Frame) {
        let Some(from) = self.side_of(link) else { return };
        // What the last shard says to the head is for the driver.
        if from == Side::Results && self.driver.is_some() {
            self.think(Happens::Driver(driver::Event::Arrived(frame)));
        } else {
            self.think(Happens::Worker(worker::Event::Arrived { from, frame }));
        }
    }

    /// Has a machine think, and does what it says, and what comes of that.
    fn think(&mut self, first: Happens) {
        let (mut agenda, mut lost) = (VecDeque::from([first]), Vec::new());
        while let Some(happens) = agenda.pop_front() {
            let now = (self.clock)();
            match happens {
                Happens::Worker(event) => {
                    let mut effects = Vec::new();
                    self.worker.handle(event, now, &mut effects);
                    effects.into_iter().for_each(|effect| self.of_worker(effect, &mut agenda, &mut lost));
                }
                Happens::Driver(event) => {
                    let Some(driver) = &mut self.driver else { continue };
                    let mut effects = Vec::new();
                    driver.handle(event, now, &mut effects);
                    effects.into_iter().for_each(|effect| self.of_driver(effect, &mut agenda));
                }
            }
        }
        lost.into_iter().for_each(|side| self.lost(side));
    }

    fn of_worker(&mut self, effect: worker::Effect, agenda: &mut VecDeque<Happens>, lost: &mut Vec<Side>) {
        match effect {
            worker::Effect::Send { frame: Frame { head: Head::Heartbeat(heartbeat), .. }, .. } => {
                self.status.send_replace(heartbeat); // A link says it by itself.
            }
            worker::Effect::Send { to: Side::Up | Side::Results, frame } if self.driver.is_some() => {
                agenda.push_back(Happens::Driver(driver::Event::Arrived(frame)));
            }
            worker::Effect::Send { to, frame } => {
                let line = self.links.get(&to);
                // A peer that does not even take what credit does not bound is no peer.
                if line.is_some_and(|line| {
                    matches!(line.outbox.try_send(frame), Err(mpsc::error::TrySendError::Full(_)))
                }) {
                    lost.push(to);
                }
            }
            worker::Effect::Stage(call) => {
                // The thread lives as long as this sender.
                let _ = self.calls.send(call);
            }
            worker::Effect::HangUp(side) => lost.push(side),
        }
    }

    fn of_driver(&mut self, effect: driver::Effect, agenda: &mut VecDeque<Happens>) {
        match effect {
            driver::Effect::Send(frame) => {
                agenda.push_back(Happens::Worker(worker::Event::Arrived { from: Side::Up, frame }));
            }
            driver::Effect::Token { session, token, logprob, spent } => {
                let word = Word::Token { token, logprob, spent };
                if self.answers.get(&session).is_none_or(|words| words.send(word).is_err()) {
                    agenda.push_back(Happens::Driver(driver::Event::Enough(session)));
                }
            }
            driver::Effect::Ended { session, end } => {
                if let Some(words) = self.answers.remove(&session) {
                    let _ = words.send(Word::End(end));
                }
            }
        }
    }

    /// Begins a task of this epoch.
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {} // Those that have ended take no room.
        self.tasks.spawn(task);
    }

    fn epoch(&self) -> Option<Epoch> {
        self.chain.as_ref().map(|chain| chain.epoch)
    }

    fn side_of(&self, link: u64) -> Option<Side> {
        self.links.iter().find(|(_, line)| line.number == link).map(|(side, _)| *side)
    }

    fn report(&self, report: Report) {
        // Nobody may want to know.
        let _ = self.reports.send(report);
    }
}

/// The thread of a stage: one thing after the other.
#[expect(clippy::disallowed_methods, reason = "a shell: here it is measured how long a pass takes")]
fn compute(mut stage: impl Stage, calls: &threads::Receiver<Call>, said: &mpsc::WeakUnboundedSender<Said>) {
    while let Ok(call) = calls.recv() {
        let Some(said) = said.upgrade() else { return };
        let told = match call {
            Call::Open { session, opening } => {
                stage.open(session, &opening).err().map(|code| Said::OpenFailed { session, code })
            }
            Call::Forward(steps) => {
                let start = std::time::Instant::now();
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| stage.forward(&steps)));
                let (outcome, took) = (outcome.unwrap_or(Err(Code::Internal)), start.elapsed());
                Some(Said::Computed { outcome, took })
            }
            Call::Trim { session, position } => {
                stage.trim(session, position);
                None
            }
            Call::Close(session) => {
                stage.close(session);
                None
            }
        };
        if let Some(told) = told {
            let _ = said.send(told);
        }
    }
}

/// Frames of all links that wait to be thought about, and of a link that wait to be sent: more than credit allows.
const FRAMES_MAX: usize = 2048;
/// Callers of an epoch that is to come, or while this member is not linked.
const WAITING_MAX: usize = 4;
