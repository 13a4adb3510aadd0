//! The world: one clock, one agenda, one seed; everybody in it, and what goes wrong.
//!
//! ```text
//! users --Submit--> house (Coordinator and its shell) <==wire==> machines (Agent, engine, now and then a liar)
//!                     |  ^                                          ^
//!                     v  | answers                                  | deaths, dead lines, stopped clocks
//!                    bank                                        trouble
//! ```
//!
//! [`World::run`] plays it: trouble for a minute or so, then calm, and after the calm nothing may be left open.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::time::Duration;

use ram_coordinator::state::{ConnId, SettleOrder};
use ram_core::id::JobId;
use ram_core::units::{Timestamp, XRam};
use ram_provider::agent::Ticket;

use super::bank::{Answer, Bank};
use super::dice::Dice;
use super::fate::{End, Fate};
use super::house::House;
use super::machine::Machine;
use super::trace::Trace;
use super::wire::{Link, LinkId, Way};

/// When the first thing happens: late enough for clocks that are slow.
const START: Timestamp = Timestamp::from_millis(1_000_000);
/// After the calm began, every job has ended within this: all patience of one job together, and its line's.
const JOBS_END_WITHIN: Duration = Duration::from_secs(90);
/// And every hold is resolved within this: a lease, a sweep, and what a store takes.
const ALL_ENDS_WITHIN: Duration = Duration::from_secs(200);
/// Keys with money in them; the last soon has none.
pub const KEYS: [&str; 3] = ["key_1", "key_2", "key_3"];
/// What each key has: enough for a hundred jobs or so.
const CREDIT: XRam = XRam::from_milli_xram(3_000);

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub now: Timestamp,
    pub dice: Dice,
    pub plan: Plan,
    pub house: House,
    pub bank: Bank,
    pub machines: Vec<Machine>,
    pub links: BTreeMap<LinkId, Link>,
    pub fates: BTreeMap<JobId, Fate>,
    pub is_calm: bool,
    tally: BTreeMap<&'static str, u64>,
    pub trace: Trace,
    agenda: BinaryHeap<Reverse<Due>>,
    dues: u64,
    calm_since: Timestamp,
}

/// What kind of minute it is: each seed has some kinds of trouble and not others, so that none hides another.
#[derive(Debug)]
pub struct Plan {
    pub machines: usize,
    pub troubles: Vec<Trouble>,
    pub trouble_every_ms: u64,
    pub job_every_ms: u64,
    /// Milliseconds that words take at least, and how much longer some take.
    pub pace: (u64, u64),
    /// One in so many orders to a provider comes twice; 0: none.
    pub doubled: u64,
    pub calm_after: Duration,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    MachineDies,
    MachineLosesPower,
    MachineDrains,
    MachineLies,
    ModelUnloads,
    ClockJumps,
    EngineHangs,
    EngineFails,
    LineBreaks,
    LineDies,
    LineIsHeldUp,
    OutboxIsFull,
    ReaderIsSlow,
    HouseDies,
    HouseDrains,
    HouseSleeps,
    DiskIsFull,
    DiskIsSlow,
    UsersBurst,
    UsersLeave,
}

const TROUBLES: [Trouble; 20] = [
    Trouble::MachineDies,
    Trouble::MachineLosesPower,
    Trouble::MachineDrains,
    Trouble::MachineLies,
    Trouble::ModelUnloads,
    Trouble::ClockJumps,
    Trouble::EngineHangs,
    Trouble::EngineFails,
    Trouble::LineBreaks,
    Trouble::LineDies,
    Trouble::LineIsHeldUp,
    Trouble::OutboxIsFull,
    Trouble::ReaderIsSlow,
    Trouble::HouseDies,
    Trouble::HouseDrains,
    Trouble::HouseSleeps,
    Trouble::DiskIsFull,
    Trouble::DiskIsSlow,
    Trouble::UsersBurst,
    Trouble::UsersLeave,
];

/// Something that will happen.
#[derive(Debug)]
pub enum Happening {
    UserComes,
    UserLeaves(JobId),
    HouseStarts,
    HouseWakes(u32),
    HouseMustStop(u32),
    Tick(u32),
    Renew(u32),
    ConnEnds(u32, ConnId),
    Commit(u32),
    StoreAnswers(u32, Answer),
    SettleAgain(u32, SettleOrder, usize),
    Arrives(LinkId, Way, u64),
    PingFails(LinkId),
    DialFails(usize, u32),
    MachineStarts(usize, u32),
    AgentWakes(usize, u32),
    EngineWorks(usize, u32, Ticket),
    Trouble,
    Calm,
    LookAround,
}

impl Happening {
    /// Whether it waits while the coordinator's machine sleeps.
    const fn is_of_the_house(&self) -> bool {
        matches!(
            self,
            Self::UserComes
                | Self::UserLeaves(_)
                | Self::Tick(_)
                | Self::Renew(_)
                | Self::ConnEnds(..)
                | Self::Commit(_)
                | Self::StoreAnswers(..)
                | Self::SettleAgain(..)
                | Self::Arrives(_, Way::ToCoordinator, _)
        )
    }
}

#[derive(Debug)]
struct Due {
    at: Timestamp,
    /// Of what is due at once, what was planned first comes first.
    order: u64,
    what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What a run was like.
#[derive(Debug)]
pub struct Report {
    /// Of the whole story.
    pub hash: u64,
    /// How often what happened.
    pub tally: BTreeMap<&'static str, u64>,
}

impl Plan {
    fn drawn(dice: &mut Dice) -> Self {
        let mut troubles: Vec<Trouble> = TROUBLES.into_iter().filter(|_| dice.one_in(3)).collect();
        troubles.push(dice.pick(&TROUBLES));
        Self {
            machines: 1 + dice.index(5),
            troubles,
            trouble_every_ms: dice.pick(&[300, 1500, 5000]),
            job_every_ms: dice.pick(&[100, 400, 1500]),
            pace: dice.pick(&[(0, 0), (1, 5), (20, 100), (100, 2000)]),
            doubled: dice.pick(&[0, 0, 10]),
            calm_after: Duration::from_secs(dice.within(20..=60)),
        }
    }
}

impl World {
    pub fn new(seed: u64, is_loud: bool) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::drawn(&mut dice);
        let machines = (0..plan.machines).map(|number| Machine::new(number, &mut dice)).collect();
        let mut world = Self {
            now: START,
            dice,
            house: House::new(),
            bank: Bank::new(&KEYS, CREDIT, START),
            machines,
            links: BTreeMap::new(),
            fates: BTreeMap::new(),
            is_calm: false,
            tally: BTreeMap::new(),
            trace: Trace::new(is_loud),
            agenda: BinaryHeap::new(),
            dues: 0,
            calm_since: START.after(plan.calm_after),
            plan,
        };
        world.note(format_args!("seed {seed}: {:?}", world.plan.troubles.clone()));
        world.soon(0..=0, Happening::HouseStarts);
        for number in 0..world.machines.len() {
            world.soon(0..=3000, Happening::MachineStarts(number, 0));
        }
        world.soon(100..=3000, Happening::UserComes);
        world.soon(1000..=4000, Happening::Trouble);
        world.plan(world.calm_since, Happening::Calm);
        world
    }

    /// Plays it to its end.
    ///
    /// # Panics
    /// When a promise is broken, with the promise's own words.
    pub fn run(mut self) -> Report {
        let end = self.calm_since.after(ALL_ENDS_WITHIN);
        while let Some(Reverse(due)) = self.agenda.pop() {
            if due.at > end {
                break;
            }
            self.now = due.at;
            if matches!(due.what, Happening::LookAround) && self.what_is_open().is_none() {
                break; // and nothing can open again, for nobody comes any more
            }
            self.happen(due.what);
        }
        if let Some(open) = self.what_is_open() {
            panic!("{open}, long after all trouble");
        }
        self.check_the_books();
        Report { hash: self.trace.hash(), tally: std::mem::take(&mut self.tally) }
    }

    pub fn note(&mut self, words: fmt::Arguments<'_>) {
        self.trace.note(self.now, words);
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn plan(&mut self, at: Timestamp, what: Happening) {
        self.dues += 1;
        self.agenda.push(Reverse(Due { at, order: self.dues, what }));
    }

    /// Plans something in so many milliseconds.
    pub fn soon(&mut self, within: std::ops::RangeInclusive<u64>, what: Happening) {
        let at = self.now.after(self.dice.millis(within));
        self.plan(at, what);
    }

    pub fn happen(&mut self, what: Happening) {
        if self.house.sleeps && what.is_of_the_house() {
            return self.house.missed.push(what);
        }
        match what {
            Happening::UserComes => self.user_comes(),
            Happening::UserLeaves(job) => self.user_leaves(job),
            Happening::HouseStarts => self.house_starts(),
            Happening::HouseWakes(life) => self.house_wakes(life),
            Happening::HouseMustStop(life) => self.house_must_stop(life),
            Happening::Tick(life) => self.tick(life),
            Happening::Renew(life) => self.renew(life),
            Happening::ConnEnds(life, conn) => self.conn_ends(life, conn),
            Happening::Commit(life) => self.commit(life),
            Happening::StoreAnswers(life, answer) => self.store_answers(life, answer),
            Happening::SettleAgain(life, order, tries) => self.settle_again(life, order, tries),
            Happening::Arrives(link, Way::ToCoordinator, number) => self.house_hears(link, number),
            Happening::Arrives(link, Way::ToProvider, number) => self.machine_hears(link, number),
            Happening::PingFails(link) => self.ping_fails(link),
            Happening::DialFails(machine, life) => self.dial_fails(machine, life),
            Happening::MachineStarts(machine, life) => self.machine_starts(machine, life),
            Happening::AgentWakes(machine, life) => self.agent_wakes(machine, life),
            Happening::EngineWorks(machine, life, ticket) => self.engine_works(machine, life, ticket),
            Happening::Trouble => self.trouble(),
            Happening::Calm => self.calm(),
            Happening::LookAround => self.look_around(),
        }
    }

    fn trouble(&mut self) {
        if self.is_calm {
            return;
        }
        let trouble = self.dice.pick(&self.plan.troubles);
        self.note(format_args!("trouble: {trouble:?}"));
        match trouble {
            Trouble::HouseDies => self.house_dies(),
            Trouble::HouseDrains => self.house_drains(),
            Trouble::HouseSleeps => self.house_sleeps(),
            Trouble::DiskIsFull => self.bank.fails_until = self.now.after(self.dice.millis(500..=20_000)),
            Trouble::DiskIsSlow => self.bank.slow_until = self.now.after(self.dice.millis(500..=20_000)),
            Trouble::UsersBurst => {
                for _ in 0..self.dice.within(5..=30) {
                    self.user_submits();
                }
            }
            Trouble::UsersLeave => self.users_leave(),
            Trouble::ReaderIsSlow => self.reader_is_slow(),
            Trouble::OutboxIsFull => self.outbox_is_full(),
            Trouble::LineBreaks | Trouble::LineDies | Trouble::LineIsHeldUp => {
                self.trouble_on_a_line(trouble);
            }
            _ => self.trouble_at_a_machine(trouble),
        }
        let every = self.plan.trouble_every_ms;
        self.soon(every / 2..=every * 2, Happening::Trouble);
    }

    /// From now on everybody is honest, awake and connected; those who were not start anew.
    fn calm(&mut self) {
        self.note(format_args!("calm"));
        self.is_calm = true;
        (self.bank.fails_until, self.bank.slow_until) = (Timestamp::ZERO, Timestamp::ZERO);
        for machine in 0..self.machines.len() {
            self.machine_calms_down(machine);
        }
        self.soon(1000..=1000, Happening::LookAround);
    }

    fn look_around(&mut self) {
        if self.now.since(self.calm_since) >= JOBS_END_WITHIN {
            let open = self.fates.values().find(|fate| fate.end.is_none());
            assert!(open.is_none(), "{}: never ends", open.expect("it is open"));
        }
        self.soon(1000..=1000, Happening::LookAround);
    }

    /// Something that is not over yet.
    fn what_is_open(&self) -> Option<String> {
        if let Some(fate) = self.fates.values().find(|fate| fate.end.is_none()) {
            return Some(format!("{fate} has not ended"));
        }
        if self.bank.open_holds() > 0 {
            return Some(format!("{} holds are open", self.bank.open_holds()));
        }
        self.what_is_open_in_the_house().or_else(|| self.machines.iter().find_map(Machine::what_is_open))
    }

    /// After the end: each job's money went to one provider or back, and the user knows the right sum.
    fn check_the_books(&self) {
        let mut earned = 0;
        for fate in self.fates.values() {
            let hold = self.bank.hold_of(fate.job);
            let Some(paid) = self.bank.paid_for(fate.job) else {
                continue;
            };
            let (held, _) = hold.unwrap_or_else(|| panic!("{fate}: paid out of nothing"));
            assert!(paid.charge <= held, "{fate}: {paid:?} of {held}");
            assert!(fate.tried().any(|tried| tried == paid.provider), "{fate}: {paid:?} to a stranger");
            earned += paid.charge.units();
            match &fate.end {
                // Where the disk was full for long, an older checkpoint was paid in the end.
                Some(End::Done(receipt) | End::Failed(_, Some(receipt))) => {
                    assert!(paid.charge <= receipt.charge, "{fate}: the user was told less than was taken");
                }
                Some(End::Failed(_, None)) => panic!("{fate}: charged, and the user was not told"),
                Some(End::Left | End::Broken) => {}
                None => panic!("{fate}: open"),
            }
        }
        let to_providers = self.bank.earned().units();
        assert!(to_providers <= earned, "{to_providers} were earned, and {earned} charged");
        assert!(to_providers >= earned * 9 / 10 - earned.min(1000), "providers get nine parts of ten");
    }
}
