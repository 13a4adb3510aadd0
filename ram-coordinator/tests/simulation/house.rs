//! The coordinator's process: the real [`Coordinator`], and a shell that does what `ram_coordinator::run` and `ws` do,
//! on the world's clock: it carries effects out, renews leases, settles again where the disk was full, and dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ram_coordinator::config::Config;
use ram_coordinator::state::{
    ConnId, Coordinator, Effect, Event, JobError, Limits, Payer, Plain, Reply, Request, SettleOrder,
    Submission, TICK,
};
use ram_core::chat::tools::PromptJson;
use ram_core::chat::{ChatMessage, Role};
use ram_core::id::{Attempt, Epoch, JobId, ProviderId};
use ram_core::job::{GenerationParams, Sampling};
use ram_core::units::TokenCount;
use ram_proto::control::{Nonce, ToCoordinator, ToProvider};

use super::bank::{Answer, Order};
use super::fate::{End, Fate};
use super::machine::{MODEL, OTHER_MODEL};
use super::trace::{Down, Up};
use super::wire::{LinkId, Parcel, Way};
use super::world::{Happening, KEYS, World};

/// As in the coordinator's loop: when to settle again, and how often leases are renewed.
const SETTLE_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];
const RENEW_EVERY: Duration = Duration::from_secs(30);
/// How long a coordinator that shall stop lets running jobs end.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

/// The process, or the place where it was.
#[derive(Debug)]
pub struct House {
    pub life: u32,
    core: Option<Coordinator>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    /// Sockets on which a provider is registered, by what the coordinator said.
    standing: BTreeMap<ConnId, ProviderId>,
    /// Jobs whose leases are renewed.
    held: BTreeSet<JobId>,
    /// Orders that the store has not answered.
    paying: usize,
    drains: bool,
    pub sleeps: bool,
    /// What waits for it to wake.
    pub missed: Vec<Happening>,
    /// The last session of each provider, over all lives: sessions rise.
    epochs: BTreeMap<ProviderId, Epoch>,
    jobs: u64,
}

/// A socket that the shell serves.
#[derive(Debug)]
struct Conn {
    link: LinkId,
    /// Whether words to it still go out.
    has_outbox: bool,
}

impl House {
    pub fn new() -> Self {
        Self {
            life: 0,
            core: None,
            conns: BTreeMap::new(),
            next_conn: 0,
            standing: BTreeMap::new(),
            held: BTreeSet::new(),
            paying: 0,
            drains: false,
            sleeps: false,
            missed: Vec::new(),
            epochs: BTreeMap::new(),
            jobs: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// Jobs that were ever submitted.
    pub fn jobs(&self) -> u64 {
        self.jobs
    }

    fn is_alive(&self, life: u32) -> bool {
        self.core.is_some() && self.life == life
    }
}

fn coordinator() -> Coordinator {
    let limits = Limits {
        queue_per_model: 12,
        jobs: 48,
        queue_wait: Duration::from_secs(5),
        first_token: Duration::from_secs(4),
        first_token_cold: Duration::from_secs(6),
        between_tokens: Duration::from_secs(4),
        ..Limits::default()
    };
    let demo_tokens_per_address = TokenCount::new(3000);
    let config = Config { name: "house".to_owned(), demo_tokens_per_address, limits, ..Config::default() };
    Coordinator::new(config.state().expect("the settings are good"))
}

/// Birth, sleep and death.
impl World {
    pub fn house_starts(&mut self) {
        if self.house.is_up() {
            return;
        }
        let now = self.now;
        self.house.life += 1;
        self.house.core = Some(coordinator());
        let life = self.house.life;
        self.note(format_args!("coordinator starts, life {life}"));
        self.bank.resolve_expired(now);
        self.plan(now, Happening::Tick(life));
        self.plan(now, Happening::Renew(life));
    }

    /// The process is killed, or its machine loses power; what the store has committed is all that stays.
    pub fn house_dies(&mut self) {
        if !self.house.is_up() {
            return;
        }
        let (life, is_killed) = (self.house.life, self.dice.one_in(2));
        self.note(format_args!("coordinator dies, {}", if is_killed { "killed" } else { "without power" }));
        self.count("deaths of the coordinator");
        let jobs = self.house.jobs;
        let epochs = std::mem::take(&mut self.house.epochs);
        self.house = House { life, epochs, jobs, ..House::new() };
        self.bank.lose_power();
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.house_life == life).map(|(&id, _)| id).collect();
        for id in links {
            if is_killed {
                self.send_down(id, Parcel::Closed);
            } else {
                self.soon(1000..=45_000, Happening::PingFails(id));
            }
        }
        for fate in self.fates.values_mut().filter(|fate| fate.end.is_none()) {
            fate.end = Some(End::Broken);
        }
        self.soon(100..=10_000, Happening::HouseStarts);
    }

    pub fn house_drains(&mut self) {
        if self.house.is_up() && !self.house.drains {
            self.house.drains = true;
            self.count("drains of the coordinator");
            let life = self.house.life;
            self.core(Event::Drain);
            self.plan(self.now.after(DRAIN_WITHIN), Happening::HouseMustStop(life));
        }
    }

    pub fn house_must_stop(&mut self, life: u32) {
        if self.house.is_alive(life) {
            self.house_dies();
        }
    }

    /// The machine sleeps: nobody is heard, and the store does nothing.
    pub fn house_sleeps(&mut self) {
        if self.house.is_up() && !self.house.sleeps {
            self.house.sleeps = true;
            self.count("sleeps of the coordinator");
            let life = self.house.life;
            self.soon(2000..=25_000, Happening::HouseWakes(life));
        }
    }

    /// The first thing that it does is to see the time; then it hears all that was said meanwhile.
    pub fn house_wakes(&mut self, life: u32) {
        if !self.house.is_alive(life) {
            return;
        }
        self.house.sleeps = false;
        self.core(Event::Tick);
        for missed in std::mem::take(&mut self.house.missed) {
            self.happen(missed);
        }
    }

    pub fn tick(&mut self, life: u32) {
        if self.house.is_alive(life) {
            self.core(Event::Tick);
            self.plan(self.now.after(TICK), Happening::Tick(life));
        }
    }

    pub fn renew(&mut self, life: u32) {
        if self.house.is_alive(life) {
            self.order(Order::Renew(self.house.held.iter().copied().collect()));
            self.order(Order::ResolveExpired);
            self.plan(self.now.after(RENEW_EVERY), Happening::Renew(life));
        }
    }

    /// What the coordinator still has in hand.
    pub fn what_is_open_in_the_house(&self) -> Option<String> {
        let Some(core) = &self.house.core else { return Some("the coordinator is down".to_owned()) };
        if core.open_jobs() > 0 {
            return Some(format!("the coordinator has {} open jobs", core.open_jobs()));
        }
        let providers = core.providers().providers;
        if providers.len() != self.machines.len() {
            return Some(format!("{} providers of {} are here", providers.len(), self.machines.len()));
        }
        let busy = providers.iter().find(|provider| provider.load.running > 0)?;
        Some(format!("{} has {} jobs, by the coordinator's count", busy.id, busy.load.running))
    }
}

/// Users.
impl World {
    pub fn user_comes(&mut self) {
        if !self.is_calm {
            self.user_submits();
            let every = self.plan.job_every_ms;
            self.soon(1..=every * 2, Happening::UserComes);
        }
    }

    pub fn user_submits(&mut self) {
        if !self.house.is_up() || self.house.sleeps {
            return; // nobody answers the door
        }
        self.house.jobs += 1;
        let job = JobId::from_bits(self.house.jobs.into());
        let payer = match self.dice.roll(4) {
            0 => Payer::Demo(std::net::Ipv4Addr::new(10, 0, 0, 1 + u8::from(self.dice.one_in(2))).into()),
            _ => Payer::Key(self.dice.pick(&KEYS).to_owned()),
        };
        let model = match self.dice.roll(20) {
            0 => "no-such-model",
            1..5 => OTHER_MODEL,
            _ => MODEL,
        };
        let max_tokens = TokenCount::new(self.dice.pick(&[1, 4, 20, 20, 100, 400]));
        let model = model.parse().expect("a model's name");
        let price = self.house.core.as_ref().and_then(|core| core.price_per_1k(&model));
        self.fates.insert(job, Fate::new(job, self.house.life, price, max_tokens));
        let preferred = self.dice.one_in(5).then(|| {
            let machine = self.dice.index(self.machines.len());
            self.machines[machine].provider
        });
        if self.dice.one_in(8) {
            self.soon(0..=8000, Happening::UserLeaves(job));
        }
        self.note(format_args!("job {} for {max_tokens} tokens", job.bits()));
        self.count("jobs");
        self.core(Event::Submit(Box::new(Submission {
            job,
            payer,
            model,
            request: Request::Plain(Box::new(Plain {
                messages: vec![ChatMessage::new(Role::User, "what is going on?")],
                tools: Vec::new(),
                chat_template_kwargs: PromptJson::default(),
                params: GenerationParams::new(max_tokens, Sampling::default()),
            })),
            preferred,
        })));
    }

    pub fn user_leaves(&mut self, job: JobId) {
        let fate = self.fates.get_mut(&job).expect("only who came can leave");
        if fate.end.is_none() {
            fate.end = Some(End::Left);
            self.count("users that left");
            self.note(format_args!("the user of job {} leaves", job.bits()));
            self.core(Event::Abandon { job });
        }
    }

    pub fn users_leave(&mut self) {
        let open = self.fates.values().filter(|fate| fate.end.is_none()).map(|fate| fate.job);
        for job in open.collect::<Vec<_>>() {
            if self.dice.one_in(2) && !self.house.sleeps {
                self.user_leaves(job);
            }
        }
    }

    /// Somebody reads too slowly: the shell cuts them off as if they had left.
    pub fn reader_is_slow(&mut self) {
        let open: Vec<JobId> =
            self.fates.values().filter(|fate| fate.end.is_none()).map(|fate| fate.job).collect();
        if !open.is_empty() && !self.house.sleeps {
            let job = self.dice.pick(&open);
            self.user_leaves(job);
        }
    }
}

/// What reaches the coordinator.
impl World {
    /// A provider's socket is accepted; answers what it is called here.
    pub fn house_accepts(&mut self, link: LinkId) -> ConnId {
        let conn = ConnId(self.house.next_conn);
        self.house.next_conn += 1;
        self.house.conns.insert(conn, Conn { link, has_outbox: true });
        conn
    }

    pub fn socket_opened(&mut self, conn: ConnId) {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&self.dice.roll(u64::MAX).to_be_bytes());
        self.core(Event::SocketOpened { conn, nonce: Nonce::from_bytes(nonce) });
    }

    pub fn house_hears(&mut self, id: LinkId, number: u64) {
        let link = self.links.get_mut(&id).expect("links stay known");
        let (conn, life) = (link.conn, link.house_life);
        let Some(parcel) = link.up.arrive(number) else { return };
        if !self.house.is_alive(life) || !self.house.conns.contains_key(&conn) {
            return;
        }
        match parcel {
            Parcel::Up => {}
            Parcel::Said(message) => self.core(Event::FromProvider { conn, message: Box::new(message) }),
            Parcel::Closed => self.conn_ends(life, conn),
        }
    }

    /// The shell is done with a socket, whoever closed it.
    pub fn conn_ends(&mut self, life: u32, conn: ConnId) {
        if self.house.is_alive(life) && self.house.conns.contains_key(&conn) {
            let ended = self.house.conns.remove(&conn).expect("it is there");
            if ended.has_outbox {
                self.send_down(ended.link, Parcel::Closed);
            }
            self.core(Event::SocketClosed { conn });
        }
    }

    /// A provider does not read; the shell cuts it off.
    pub fn outbox_is_full(&mut self) {
        let open: Vec<ConnId> = self.house.conns.keys().copied().collect();
        if !open.is_empty() && !self.house.sleeps {
            let conn = self.dice.pick(&open);
            self.cut_off(conn);
            self.core(Event::SocketClosed { conn });
        }
    }

    /// Puts an order into the store's queue.
    fn order(&mut self, order: Order) {
        self.bank.queue.push_back(order);
        if !self.bank.is_committing {
            self.bank.is_committing = true;
            let is_slow = self.now < self.bank.slow_until;
            let life = self.house.life;
            self.soon(if is_slow { 200..=5000 } else { 0..=5 }, Happening::Commit(life));
        }
    }

    pub fn commit(&mut self, life: u32) {
        if !self.house.is_alive(life) {
            return;
        }
        for answer in self.bank.commit(self.now) {
            self.soon(0..=2, Happening::StoreAnswers(life, answer));
        }
    }

    pub fn store_answers(&mut self, life: u32, answer: Answer) {
        if !self.house.is_alive(life) {
            return;
        }
        match answer {
            Answer::Held { job, result } => {
                self.house.paying -= 1;
                if result.is_err() {
                    self.house.held.remove(&job);
                }
                let fate = self.fates.get_mut(&job).expect("only jobs are held");
                fate.held = result.is_ok();
                self.count(if result.is_ok() { "holds" } else { "holds refused" });
                self.core(Event::Held { job, result });
            }
            Answer::Settled { job, remaining } => {
                self.house.paying -= 1;
                self.core(Event::Settled { job, remaining });
            }
            Answer::NotSettled(order, tries) => {
                self.count("settlements refused");
                match SETTLE_AGAIN_AFTER.get(tries) {
                    Some(&wait) => {
                        self.plan(self.now.after(wait), Happening::SettleAgain(life, order, tries + 1));
                    }
                    None => {
                        self.house.paying -= 1;
                        self.count("settlements given up");
                        self.core(Event::Settled { job: order.job, remaining: None });
                    }
                }
            }
        }
    }

    pub fn settle_again(&mut self, life: u32, order: SettleOrder, tries: usize) {
        if self.house.is_alive(life) {
            self.order(Order::Settle(order, tries));
        }
    }

    /// One event, all that follows from it, and what must hold of it.
    pub fn core(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            self.note_event(&event);
            let (about, is_tick) = (About::of(&event), matches!(event, Event::Tick));
            let is_heard = about.as_ref().is_none_or(|about| self.is_heard(about));
            let Some(core) = &mut self.house.core else { return };
            if let Event::SocketClosed { conn } = &event {
                self.house.standing.remove(conn);
            }
            core.handle(event, self.now, &mut effects);
            if let Some(about) = &about {
                self.check_what_was_heard(about, is_heard, &effects);
            }
            if is_tick {
                self.check_who_is_given_up(&effects);
            }
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
        let is_drained = self.house.drains
            && self.house.paying == 0
            && self.house.core.as_ref().is_some_and(|core| core.open_jobs() == 0);
        if is_drained {
            let life = self.house.life;
            self.house.drains = false;
            self.soon(0..=500, Happening::HouseMustStop(life));
        }
    }

    fn note_event(&mut self, event: &Event) {
        match event {
            Event::FromProvider { conn, message } => {
                self.note(format_args!("  conn {} says: {}", conn.0, Up(message)));
            }
            Event::SocketOpened { conn, .. } => self.note(format_args!("  conn {} opens", conn.0)),
            Event::SocketClosed { conn } => self.note(format_args!("  conn {} closes", conn.0)),
            Event::Submit(submission) => {
                self.note(format_args!("  submitted: job {}", submission.job.bits()));
            }
            Event::Held { job, result } => self.note(format_args!("  held: job {}, {result:?}", job.bits())),
            Event::Settled { job, .. } => self.note(format_args!("  settled: job {}", job.bits())),
            Event::Abandon { job } => self.note(format_args!("  abandoned: job {}", job.bits())),
            Event::Tick => {}
            other => self.note(format_args!("  {other:?}")),
        }
    }
}

/// Who said something, and of which attempt.
#[derive(Debug)]
struct About {
    conn: ConnId,
    run: Option<(JobId, Attempt)>,
    registers: bool,
    chunk: Option<ram_proto::control::Chunk>,
    accepts: Option<TokenCount>,
}

impl About {
    fn of(event: &Event) -> Option<Self> {
        let Event::FromProvider { conn, message } = event else { return None };
        let silent = Self { conn: *conn, run: None, registers: false, chunk: None, accepts: None };
        Some(match &**message {
            ToCoordinator::Register(_) => Self { registers: true, ..silent },
            ToCoordinator::Accepted { job, attempt, prompt } => {
                Self { run: Some((*job, *attempt)), accepts: Some(*prompt), ..silent }
            }
            ToCoordinator::Chunk(chunk) => {
                Self { run: Some((chunk.job, chunk.attempt)), chunk: Some(chunk.clone()), ..silent }
            }
            ToCoordinator::Finished { job, attempt, .. } => Self { run: Some((*job, *attempt)), ..silent },
            _ => silent,
        })
    }
}

/// Ghosts: sessions that were superseded, attempts that were given up, sockets that never registered.
impl World {
    /// Whether words of this kind should change anything.
    fn is_heard(&self, about: &About) -> bool {
        let stands = self.house.standing.contains_key(&about.conn);
        let is_current = |&(job, attempt): &(JobId, Attempt)| {
            self.fates.get(&job).is_some_and(|fate| fate.is_current(attempt, about.conn))
        };
        about.registers || (stands && about.run.as_ref().is_none_or(is_current))
    }

    /// Who lives, talks, and is on a sound line, is never taken for dead.
    fn check_who_is_given_up(&self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Close { conn } = effect else { continue };
            let Some(open) = self.house.conns.get(conn) else { continue };
            let link = &self.links[&open.link];
            let machine = &self.machines[link.machine];
            let lives = machine.stands_on(open.link, link.machine_life) && machine.is_honest();
            assert!(!(lives && link.is_sound()), "conn {}: given up, and it lives", conn.0);
        }
    }

    fn check_what_was_heard(&mut self, about: &About, is_heard: bool, effects: &[Effect]) {
        if !is_heard {
            self.count("words of ghosts");
            let stands = self.house.standing.contains_key(&about.conn);
            let is_harmless = |effect: &Effect| match effect {
                Effect::Send { conn, message } if !stands => {
                    *conn == about.conn && matches!(**message, ToProvider::Rejected { .. })
                }
                Effect::Close { conn } => !stands && *conn == about.conn,
                // The slot of a cancelled run is free: others may get it.
                Effect::Send { message, .. } => matches!(**message, ToProvider::Run { .. }),
                Effect::Reply { job, .. } | Effect::Void { job } => {
                    stands && about.run.is_none_or(|run| run.0 != *job)
                }
                Effect::Settle(order) | Effect::Checkpoint(order) => {
                    stands && about.run.is_none_or(|run| run.0 != order.job)
                }
                Effect::NoteStandings(_) => true,
                Effect::Hold(_) | Effect::Refuse(_) => false,
            };
            assert!(effects.iter().all(is_harmless), "a ghost was heard: {about:?} led to {effects:?}");
            return;
        }
        let Some((job, _)) = about.run else { return };
        let said = |wanted: fn(&Reply) -> bool| {
            effects.iter().any(
                |effect| matches!(effect, Effect::Reply { job: of, reply } if *of == job && wanted(reply)),
            )
        };
        let fate = self.fates.get_mut(&job).expect("it is current");
        if let Some(prompt) = about.accepts
            && said(|reply| matches!(reply, Reply::Started { .. }))
        {
            fate.counted(prompt);
        }
        if let Some(chunk) = &about.chunk
            && said(|reply| matches!(reply, Reply::Delta { .. }))
        {
            fate.delivered(chunk);
        }
    }
}

/// What the coordinator wants done.
impl World {
    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => self.send(conn, *message),
            Effect::Close { conn } => self.cut_off(conn),
            Effect::Hold(order) => {
                self.house.paying += 1;
                self.house.held.insert(order.job);
                self.fate(order.job).hold(order.amount);
                self.order(Order::Hold(order));
            }
            Effect::Settle(order) => {
                self.house.paying += 1;
                self.house.held.remove(&order.job);
                self.note(format_args!("  > settle job {}: {}", order.job.bits(), order.charge));
                self.count("settlements");
                self.fate(order.job).settle(&order);
                self.order(Order::Settle(order, 0));
            }
            Effect::Checkpoint(order) => {
                self.count("checkpoints");
                self.fate(order.job).check_order(&order);
                self.order(Order::Checkpoint(order));
            }
            Effect::Refuse(order) => {
                self.note(format_args!("  > refuse job {}", order.job.bits()));
                self.count("refused results");
            }
            Effect::NoteStandings(_) => self.count("notes on nodes"),
            Effect::Void { job } => {
                self.house.held.remove(&job);
                self.note(format_args!("  > void job {}", job.bits()));
                self.count("voids");
                self.fate(job).void();
                self.order(Order::Void(job));
            }
            Effect::Reply { job, reply } => self.reply(job, &reply),
        }
    }

    fn fate(&mut self, job: JobId) -> &mut Fate {
        let life = self.house.life;
        let fate = self.fates.get_mut(&job).expect("no effect is about a job that nobody submitted");
        assert_eq!(fate.life, life, "{fate}: of an earlier life");
        fate
    }

    fn reply(&mut self, job: JobId, reply: &Reply) {
        let honest: BTreeSet<ProviderId> = self
            .machines
            .iter()
            .filter(|machine| machine.is_honest())
            .map(|machine| machine.provider)
            .collect();
        let fate = self.fate(job);
        fate.hear(reply, |provider| honest.contains(&provider));
        let words = fate.words();
        let last = fate.tried().last();
        match reply {
            Reply::Done { .. } => {
                let writer = self.machines.iter().find(|machine| Some(machine.provider) == last);
                let wrote = writer.filter(|machine| machine.is_honest()).map(|machine| machine.wrote(job));
                let has_left = self.fates[&job].end == Some(End::Left);
                assert!(
                    has_left || wrote.is_none_or(|wrote| wrote == words),
                    "job {}: cut short",
                    job.bits()
                );
                self.count("done");
            }
            Reply::Failed { error, receipt } => self.count(match (error, receipt) {
                (_, Some(_)) => "failed in the middle",
                (JobError::Provider { .. }, None) => "failed by providers",
                (JobError::NoCapacity(_), None) => "no capacity",
                (JobError::Draining, None) => "refused while draining",
                (JobError::QueueFull(_), None) => "queue full",
                (JobError::DemoBudget, None) => "demo budget spent",
                _ => "refused otherwise",
            }),
            Reply::Started { .. } | Reply::Delta { .. } | Reply::Sealed { .. } => return,
        }
        self.note(format_args!("  > job {} ends: {reply:?}", job.bits()));
    }

    fn send(&mut self, conn: ConnId, message: ToProvider) {
        match &message {
            ToProvider::Run { attempt, job, .. } => {
                let provider = self.house.standing.get(&conn).copied();
                let provider = provider.unwrap_or_else(|| panic!("a job for conn {}, which is none", conn.0));
                let (attempt, job) = (*attempt, job.id);
                self.fate(job).run(attempt, conn, provider);
                if attempt > Attempt::FIRST {
                    self.count("second tries");
                }
            }
            ToProvider::Registered { provider, epoch, .. } => {
                let before = self.house.epochs.insert(*provider, *epoch);
                assert!(before.is_none_or(|before| before < *epoch), "{provider}: its session did not rise");
                let elsewhere = self.house.standing.values().any(|standing| standing == provider);
                assert!(!elsewhere, "{provider}: two sessions stand");
                self.house.standing.insert(conn, *provider);
                self.count("registrations");
            }
            _ => {}
        }
        self.note(format_args!("  > to conn {}: {}", conn.0, Down(&message)));
        let Some(Conn { link, has_outbox: true }) = self.house.conns.get(&conn) else { return };
        let link = *link;
        let again = self.plan.doubled > 0
            && matches!(message, ToProvider::Run { .. } | ToProvider::Cancel { .. })
            && self.dice.one_in(self.plan.doubled);
        if again {
            self.send_down(link, Parcel::Said(message.clone()));
        }
        self.send_down(link, Parcel::Said(message));
    }

    /// What is said leaves, then the socket closes; meanwhile it may still be read.
    fn cut_off(&mut self, conn: ConnId) {
        self.note(format_args!("  > close conn {}", conn.0));
        self.house.standing.remove(&conn);
        let Some(open) = self.house.conns.get_mut(&conn) else { return };
        if std::mem::take(&mut open.has_outbox) {
            let (link, life) = (open.link, self.house.life);
            self.send_down(link, Parcel::Closed);
            let is_slow = self.dice.one_in(10);
            self.soon(if is_slow { 0..=30_000 } else { 0..=50 }, Happening::ConnEnds(life, conn));
        }
    }

    pub fn send_down(&mut self, link: LinkId, parcel: Parcel<ToProvider>) {
        let sender = self.links.get_mut(&link).expect("links stay known");
        if let Some((number, at)) = sender.send_down(parcel, self.now, &mut self.dice) {
            self.plan(at, Happening::Arrives(link, Way::ToProvider, number));
        }
    }
}
