//! Connections: what a WebSocket over TCP can do to words, and nothing that it cannot.
//!
//! Within one direction of one connection words keep their order and none comes twice. But they take their time, may
//! be held up for half a minute and arrive after all, when both ends have long gone on; may vanish with a connection
//! that breaks, any number of the last ones; and a connection may be dead for one end or both without either knowing.

use std::collections::VecDeque;
use std::time::Duration;

use ram_coordinator::state::ConnId;
use ram_core::units::Timestamp;
use ram_proto::control::{ToCoordinator, ToProvider};

use super::dice::Dice;

/// One connection, from dialling on. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u32);

/// Both ends and both directions.
#[derive(Debug)]
pub struct Link {
    /// Which machine dialled, in which of its lives.
    pub machine: usize,
    pub machine_life: u32,
    /// Which life of the coordinator accepted, and as what.
    pub house_life: u32,
    pub conn: ConnId,
    pub up: Lane<ToCoordinator>,
    pub down: Lane<ToProvider>,
    /// The fastest that words can be, and how much slower some are.
    delay_ms: u64,
    jitter_ms: u64,
    has_suffered: bool,
}

/// One direction.
#[derive(Debug)]
pub struct Lane<T> {
    parcels: VecDeque<(u64, Parcel<T>)>,
    sent: u64,
    last_arrival: Timestamp,
    /// Nothing arrives before this.
    held_up_until: Timestamp,
    /// Nothing arrives any more, and nobody is told.
    is_dead: bool,
    is_closed: bool,
}

/// What travels.
#[derive(Debug)]
pub enum Parcel<T> {
    /// The connection stands.
    Up,
    Said(T),
    /// The other end has closed, or the connection broke.
    Closed,
}

/// Which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToCoordinator,
    ToProvider,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self {
            parcels: VecDeque::new(),
            sent: 0,
            last_arrival: Timestamp::ZERO,
            held_up_until: Timestamp::ZERO,
            is_dead: false,
            is_closed: false,
        }
    }

    /// Puts something on its way; answers its number and when it arrives, if it does.
    fn send(&mut self, parcel: Parcel<T>, earliest: Timestamp) -> Option<(u64, Timestamp)> {
        if self.is_dead || self.is_closed {
            return None;
        }
        self.is_closed = matches!(parcel, Parcel::Closed);
        self.sent += 1;
        self.last_arrival = earliest.max(self.last_arrival).max(self.held_up_until);
        self.parcels.push_back((self.sent, parcel));
        Some((self.sent, self.last_arrival))
    }

    /// The parcel of this number, unless it was lost on the way.
    pub fn arrive(&mut self, number: u64) -> Option<Parcel<T>> {
        if self.is_dead || self.parcels.front()?.0 != number {
            return None;
        }
        self.parcels.pop_front().map(|(_, parcel)| parcel)
    }

    /// Loses the last words, any number of them.
    fn lose_some(&mut self, dice: &mut Dice) {
        let kept = dice.index(self.parcels.len() + 1);
        self.parcels.truncate(kept);
        self.is_closed = false; // that word is lost, too, if it was said: both ends hear of the end anew
    }
}

impl Link {
    pub fn new(machine: (usize, u32), house_life: u32, conn: ConnId, pace: (u64, u64)) -> Self {
        Self {
            machine: machine.0,
            machine_life: machine.1,
            house_life,
            conn,
            up: Lane::new(),
            down: Lane::new(),
            delay_ms: pace.0,
            jitter_ms: pace.1,
            has_suffered: false,
        }
    }

    pub fn send_up(&mut self, parcel: Parcel<ToCoordinator>, now: Timestamp, dice: &mut Dice) -> Sent {
        let arrival = self.arrival(now, dice);
        self.up.send(parcel, arrival)
    }

    pub fn send_down(&mut self, parcel: Parcel<ToProvider>, now: Timestamp, dice: &mut Dice) -> Sent {
        let arrival = self.arrival(now, dice);
        self.down.send(parcel, arrival)
    }

    /// A broken connection: some last words are lost in each direction, and both ends will hear that it is closed.
    pub fn break_off(&mut self, dice: &mut Dice) {
        self.has_suffered = true;
        self.up.lose_some(dice);
        self.down.lose_some(dice);
    }

    /// A dead one: nobody hears anything any more, not even that.
    pub fn die(&mut self, up: bool, down: bool) {
        self.has_suffered = true;
        self.up.is_dead |= up;
        self.down.is_dead |= down;
    }

    /// Holds up all that is sent from now on.
    pub fn hold_up(&mut self, until: Timestamp, up: bool, down: bool) {
        self.has_suffered = true;
        if up {
            self.up.held_up_until = until;
        }
        if down {
            self.down.held_up_until = until;
        }
    }

    /// Whether nothing has ever befallen it.
    pub fn is_sound(&self) -> bool {
        !self.has_suffered
    }

    fn arrival(&self, now: Timestamp, dice: &mut Dice) -> Timestamp {
        now.after(Duration::from_millis(self.delay_ms + dice.roll(self.jitter_ms + 1)))
    }
}

/// The number of what was sent and when it arrives; nothing, where nothing can.
pub type Sent = Option<(u64, Timestamp)>;
