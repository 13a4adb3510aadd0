//! Which models are in memory and which gives way, decided without an engine, a clock or a thread.
//!
//! ```text
//!            take                      loaded
//!   OnDisk --------> Loading ------------------------> Loaded
//!     ^                 |  failed                         |  another model needs the room,
//!     |                 v                                 v  and nobody uses this one
//!     |              Failed (until its back-off is over)  Leaving
//!     +-----------------+--------------------------- left +
//! ```
//!
//! What the shelf keeps to: the claims of all that is in memory, on its way in or on its way out never pass the room;
//! a model that somebody uses or waits for is never unloaded; of the idle ones the least recently used goes first.
//! Where models in use fill the room, whoever waits for it has a turn: who asks for those models later waits behind it.
//! Room that is reserved for something else is none: idle models give way to it, and what does not fit beside it fails.

use std::time::Duration;

use ram_core::job::Failure;
use ram_core::provider::ModelState;
use ram_core::units::{Bytes, Timestamp};

use crate::agent::Wait;

/// The wait after a first failed load; each further one doubles it.
pub(crate) const RETRY_FIRST: Duration = Duration::from_secs(30);
/// The longest wait after a failed load: an operator who has mended a folder sees it served within ten minutes.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(600);

/// The models of a node, by their places in its list.
#[derive(Debug)]
pub(super) struct Shelf {
    room: Bytes,
    /// The part of it that is not for models.
    reserved: Bytes,
    books: Vec<Book>,
    /// Wishes so far.
    wishes: u64,
    /// Who gets room next, while there is none; nothing is on its way in or out meanwhile.
    turn: Option<Turn>,
}

/// Somebody's wish for a model, by its number: who came later has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    index: usize,
    number: u64,
}

/// The turn of a model that models in use leave no room for.
#[derive(Debug)]
struct Turn {
    index: usize,
    /// The models that leave enough room together.
    yielding: Vec<usize>,
    /// Wishes for these, from this number on, wait. Older ones are served first, so that a turn never unloads a model
    /// that has just been loaded for them.
    from: u64,
}

/// What one model needs of the memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// With one conversation of usual length: what a load waits for.
    pub(super) needs: Bytes,
    /// With all that its conversations may grow into: what it is granted, if so much is left. Never less than `needs`.
    pub(super) most: Bytes,
}

#[derive(Debug)]
struct Book {
    claim: Claim,
    place: Place,
    /// What is set aside for it while it is in memory.
    granted: Bytes,
    /// The numbers of those who wait for it.
    wishes: Vec<u64>,
    /// Answers that run on it.
    users: u32,
    used: Timestamp,
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    OnDisk,
    Loading,
    Loaded,
    Leaving,
    Failed { failure: Failure, wait: Wait },
}

/// What an answer that wants a model has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It is in memory, and stays there until [`Shelf::release`].
    Ready,
    /// Unload these, tell [`Shelf::left`] of each, then load it into so much memory and tell [`Shelf::loaded`] or
    /// [`Shelf::failed`].
    Load { unload: Vec<usize>, granted: Bytes },
    /// Something is on its way in or out; look again after the next change.
    Wait,
    /// What fills the memory is in use, or somebody else is next; look again after the next change.
    NoRoom,
    /// It did not load, a short while ago.
    Failed(Failure),
}

/// Where a model is, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residence {
    /// In memory.
    Loaded,
    /// On its way into memory.
    Loading,
    /// On disk: loaded when it is first asked for.
    OnDisk,
    /// It did not load; tried again after a while.
    Failed,
    /// It can never be served here: the folder or the memory must change first.
    Refused,
}

impl Shelf {
    /// All on disk, under a room that each fits alone.
    pub(super) fn new(room: Bytes, claims: impl IntoIterator<Item = Claim>) -> Self {
        let (place, granted, used) = (Place::OnDisk, Bytes::ZERO, Timestamp::ZERO);
        let book = |claim| Book { claim, place, granted, wishes: Vec::new(), users: 0, used, failures: 0 };
        let books = claims.into_iter().map(book).collect();
        Self { room, reserved: Bytes::ZERO, books, wishes: 0, turn: None }
    }

    /// Somebody wants the model; ended by [`Shelf::release`].
    pub(super) fn wish(&mut self, index: usize) -> Wish {
        let wish = Wish { index, number: self.wishes };
        self.wishes += 1;
        self.books[index].wishes.push(wish.number);
        wish
    }

    /// Somebody wants it no more, whether or not it was ready.
    pub(super) fn release(&mut self, wish: Wish, now: Timestamp) {
        let book = &mut self.books[wish.index];
        if !book.strike_off(wish) {
            book.users = book.users.saturating_sub(1);
            book.used = now;
        }
        if book.wishes.is_empty() && self.has_turn(wish.index) {
            self.turn = None;
        }
    }

    /// What one who wants a model has to do to use it.
    pub(super) fn take(&mut self, wish: Wish, now: Timestamp) -> Take {
        let book = &mut self.books[wish.index];
        match book.place {
            Place::Loaded if !self.turn.as_ref().is_some_and(|turn| turn.holds_back(wish)) => {
                book.strike_off(wish);
                book.users += 1;
                Take::Ready
            }
            Place::Loaded => Take::NoRoom,
            Place::Loading | Place::Leaving => Take::Wait,
            Place::Failed { failure, wait } if !wait.is_over(now) => Take::Failed(failure),
            Place::OnDisk | Place::Failed { .. } => self.begin_load(wish.index),
        }
    }

    /// Sets room aside for something else, for which idle models give way; answers these: unload them, and tell
    /// [`Shelf::left`] of each. `None`, and nothing changed, when models in use leave too little.
    pub(super) fn reserve(&mut self, bytes: Bytes) -> Option<Vec<usize>> {
        let (unload, _) = self.make_room(Claim { needs: bytes, most: bytes })?;
        self.reserved += bytes;
        self.turn = None; // Of less room another choice is made.
        Some(unload)
    }

    /// Room that was reserved is for models again.
    pub(super) fn unreserve(&mut self, bytes: Bytes) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// What could be reserved if nothing was: all that models in use, or on their way in, were not granted.
    pub(super) fn lendable(&self) -> Bytes {
        let used = |&index: &usize| match self.books[index].place {
            Place::Loaded => !self.is_idle(index),
            Place::Loading => true,
            Place::OnDisk | Place::Leaving | Place::Failed { .. } => false,
        };
        let used: Vec<usize> = (0..self.books.len()).filter(used).collect();
        self.room.saturating_sub(self.granted(&used))
    }

    /// The room of models.
    fn room(&self) -> Bytes {
        self.room.saturating_sub(self.reserved)
    }

    fn begin_load(&mut self, index: usize) -> Take {
        if self.books[index].claim.needs > self.room() {
            return Take::Failed(Failure::OutOfMemory); // Nobody may wait for what does not come.
        }
        if self.turn.is_some() && !self.has_turn(index) {
            return Take::NoRoom;
        }
        if let Some((unload, granted)) = self.make_room(self.books[index].claim) {
            self.turn = None;
            (self.books[index].place, self.books[index].granted) = (Place::Loading, granted);
            return Take::Load { unload, granted };
        }
        if self.books.iter().any(|book| matches!(book.place, Place::Loading | Place::Leaving)) {
            return Take::Wait;
        }
        if self.turn.is_none() {
            self.turn = Some(self.turn_of(self.longest_waiting(index)));
        }
        Take::NoRoom
    }

    /// It is in memory.
    pub(super) fn loaded(&mut self, index: usize, now: Timestamp) {
        let book = &mut self.books[index];
        (book.place, book.used, book.failures) = (Place::Loaded, now, 0);
    }

    /// It did not load.
    pub(super) fn failed(&mut self, index: usize, failure: Failure, now: Timestamp) {
        let book = &mut self.books[index];
        let wait = RETRY_FIRST.saturating_mul(1 << book.failures.min(16)).min(RETRY_MAX);
        book.failures += 1;
        book.place = Place::Failed { failure, wait: Wait::new(now, wait) };
    }

    /// Its memory is free again.
    pub(super) fn left(&mut self, index: usize) {
        self.books[index].place = Place::OnDisk;
    }

    /// What the network is told of a model; `None` while it is not offered.
    pub(super) fn offered(&self, index: usize, now: Timestamp) -> Option<ModelState> {
        match self.residence(index, now) {
            Residence::Loaded => Some(ModelState::Loaded),
            Residence::Loading | Residence::OnDisk => Some(ModelState::OnDisk),
            Residence::Failed | Residence::Refused => None,
        }
    }

    /// Where a model is.
    pub(super) fn residence(&self, index: usize, now: Timestamp) -> Residence {
        match self.books[index].place {
            Place::Loaded => Residence::Loaded,
            Place::Loading => Residence::Loading,
            Place::Failed { wait, .. } if !wait.is_over(now) => Residence::Failed,
            Place::OnDisk | Place::Leaving | Place::Failed { .. } => Residence::OnDisk,
        }
    }

    /// Memory under the cap that no model in memory has asked for; long conversations may grow into it.
    pub(super) fn free(&self) -> Bytes {
        let in_memory = self.books.iter().filter(|book| book.place.is_in_memory());
        self.room().saturating_sub(in_memory.map(|book| book.claim.needs).sum())
    }

    /// Memory that a load could have: what loaded models have not asked for, and, where not every other model fits
    /// beside what these were granted, what they leave and idle ones would give up. A coordinator sends work for a
    /// model on disk only where it sees room for it; one on its way in has its room already, and sees it here.
    pub(super) fn free_for_a_load(&self) -> Bytes {
        let (loaded, others): (Vec<usize>, Vec<usize>) =
            (0..self.books.len()).partition(|&index| self.books[index].is_loaded());
        let left = self.room().saturating_sub(self.granted(&loaded));
        if others.iter().all(|&index| self.books[index].claim.needs <= left) {
            let needs = loaded.iter().map(|&index| self.books[index].claim.needs);
            return self.room().saturating_sub(needs.sum());
        }
        left + self.granted(&self.idle())
    }

    /// Marks the least recently used idle models as leaving until a claim's needs are free beside all the others;
    /// answers these models and what is granted. `None`, and nothing changed, when that cannot be had.
    fn make_room(&mut self, claim: Claim) -> Option<(Vec<usize>, Bytes)> {
        let (unload, free) = self.enough_of(self.idle(), claim.needs);
        if free < claim.needs {
            return None;
        }
        for &index in &unload {
            self.books[index].place = Place::Leaving;
        }
        Some((unload, claim.most.min(free)))
    }

    /// The model on disk that somebody has waited for the longest, this one among them.
    fn longest_waiting(&self, index: usize) -> usize {
        let fits = |other: usize| self.books[other].claim.needs <= self.room();
        let waits = |&other: &usize| {
            other == index || (matches!(self.books[other].place, Place::OnDisk) && fits(other))
        };
        let oldest = |other: &usize| self.books[*other].wishes.iter().min().copied().unwrap_or(u64::MAX);
        (0..self.books.len()).filter(waits).min_by_key(oldest).unwrap_or(index)
    }

    /// The turn of a model that only models in use make room for: those idle now go first, as they would anyway.
    fn turn_of(&self, index: usize) -> Turn {
        let mut loaded: Vec<usize> =
            (0..self.books.len()).filter(|&index| self.books[index].is_loaded()).collect();
        loaded.sort_by_key(|&index| (!self.is_idle(index), self.books[index].used));
        let (yielding, _) = self.enough_of(loaded, self.books[index].claim.needs);
        Turn { index, yielding, from: self.wishes }
    }

    /// The first of these models that leave so much free together, and what is free then.
    fn enough_of(&self, models: Vec<usize>, needs: Bytes) -> (Vec<usize>, Bytes) {
        let in_memory: Vec<usize> =
            (0..self.books.len()).filter(|&index| self.books[index].place.is_in_memory()).collect();
        let mut free = self.room().saturating_sub(self.granted(&in_memory));
        let mut enough = Vec::new();
        for index in models {
            if free >= needs {
                break;
            }
            free += self.books[index].granted;
            enough.push(index);
        }
        (enough, free)
    }

    /// The loaded models that nobody uses or may use before the next turn, the least recently used first.
    fn idle(&self) -> Vec<usize> {
        let mut idle: Vec<usize> = (0..self.books.len()).filter(|&index| self.is_idle(index)).collect();
        idle.sort_by_key(|&index| self.books[index].used);
        idle
    }

    fn is_idle(&self, index: usize) -> bool {
        let book = &self.books[index];
        let held_back =
            |&number: &u64| self.turn.as_ref().is_some_and(|turn| turn.holds_back(Wish { index, number }));
        book.is_loaded() && book.users == 0 && book.wishes.iter().all(held_back)
    }

    fn has_turn(&self, index: usize) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.index == index)
    }

    fn granted(&self, models: &[usize]) -> Bytes {
        models.iter().map(|&index| self.books[index].granted).sum()
    }
}

impl Turn {
    fn holds_back(&self, wish: Wish) -> bool {
        wish.number >= self.from && self.yielding.contains(&wish.index)
    }
}

impl Book {
    const fn is_loaded(&self) -> bool {
        matches!(self.place, Place::Loaded)
    }

    /// Strikes a wish off; whether it was still open.
    fn strike_off(&mut self, wish: Wish) -> bool {
        let open = self.wishes.iter().position(|&number| number == wish.number);
        open.is_some_and(|place| self.wishes.swap_remove(place) == wish.number)
    }
}

impl Place {
    const fn is_in_memory(self) -> bool {
        matches!(self, Self::Loading | Self::Loaded | Self::Leaving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn shelf(room: u64, claims: &[u64]) -> Shelf {
        shelf_of(room, &claims.iter().map(|&bytes| (bytes, bytes)).collect::<Vec<_>>())
    }

    /// A shelf of models that need the first and take up to the second.
    fn shelf_of(room: u64, claims: &[(u64, u64)]) -> Shelf {
        let claim = |&(needs, most): &(u64, u64)| Claim { needs: Bytes::new(needs), most: Bytes::new(most) };
        Shelf::new(Bytes::new(room), claims.iter().map(claim))
    }

    /// Takes a model that is in memory or comes into it at once, at `at`; answers the use, and what went for it.
    fn start(shelf: &mut Shelf, index: usize, at: u64) -> (Wish, Vec<usize>) {
        let at = Timestamp::from_millis(at);
        let wish = shelf.wish(index);
        let mut unloaded = Vec::new();
        if shelf.books[index].is_loaded() {
            assert_eq!(shelf.take(wish, at), Take::Ready);
        } else {
            unloaded = load(shelf, wish, at);
        }
        (wish, unloaded)
    }

    /// Loads a model for a wish and grants it.
    fn load(shelf: &mut Shelf, wish: Wish, at: Timestamp) -> Vec<usize> {
        let Take::Load { unload, .. } = shelf.take(wish, at) else { panic!("there is room") };
        unload.iter().for_each(|&index| shelf.left(index));
        shelf.loaded(wish.index, at);
        assert_eq!(shelf.take(wish, at), Take::Ready);
        unload
    }

    /// Loads a model for one who uses it for a moment, at `at`.
    fn use_once(shelf: &mut Shelf, index: usize, at: u64) -> Vec<usize> {
        let (wish, unloaded) = start(shelf, index, at);
        shelf.release(wish, Timestamp::from_millis(at));
        unloaded
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let mut shelf = shelf(10, &[5, 5, 5]);
        assert!(use_once(&mut shelf, 0, 1).is_empty());
        assert!(use_once(&mut shelf, 1, 2).is_empty());
        assert!(use_once(&mut shelf, 0, 3).is_empty());
        assert_eq!(use_once(&mut shelf, 2, 4), [1]);
        assert_eq!(use_once(&mut shelf, 1, 5), [0]);
        assert_eq!(shelf.offered(0, NOW), Some(ModelState::OnDisk));
        assert_eq!(shelf.offered(1, NOW), Some(ModelState::Loaded));
    }

    #[test]
    fn one_that_is_used_or_waited_for_stays() {
        let mut shelf = shelf(10, &[6, 6]);
        let (used, _) = start(&mut shelf, 0, 1);
        let waiting = shelf.wish(0);
        let other = shelf.wish(1);
        assert_eq!(shelf.take(other, NOW), Take::NoRoom);
        shelf.release(used, NOW);
        assert_eq!(shelf.take(other, NOW), Take::NoRoom, "one who asked before waits for it");
        shelf.release(waiting, NOW);
        assert_eq!(shelf.take(other, NOW), Take::Load { unload: vec![0], granted: Bytes::new(6) });
        let second = shelf.wish(1);
        assert_eq!(shelf.take(second, NOW), Take::Wait, "a second one waits for the first one's load");
        let late = shelf.wish(0);
        assert_eq!(shelf.take(late, NOW), Take::Wait, "and nobody takes one that leaves");
    }

    #[test]
    fn a_steady_stream_on_one_model_does_not_starve_another() {
        let mut shelf = shelf(10, &[6, 6]);
        let (first, _) = start(&mut shelf, 0, 1);
        let before = shelf.wish(0);
        let other = shelf.wish(1);
        assert_eq!(shelf.take(other, NOW), Take::NoRoom);
        assert_eq!(shelf.take(before, NOW), Take::Ready, "who asked before is served before");
        let after = shelf.wish(0);
        assert_eq!(shelf.take(after, NOW), Take::NoRoom, "who asks later waits behind");
        shelf.release(first, NOW);
        assert_eq!(shelf.take(other, NOW), Take::NoRoom);
        shelf.release(before, NOW);
        assert_eq!(load(&mut shelf, other, NOW), [0]);
        let next = shelf.wish(1);
        assert_eq!(shelf.take(after, NOW), Take::NoRoom, "it waits for room in its turn");
        assert_eq!(shelf.take(next, NOW), Take::Ready, "and unloads none that a waiting one has just got");
        [other, next].into_iter().for_each(|wish| shelf.release(wish, NOW));
        assert_eq!(load(&mut shelf, after, NOW), [1]);
    }

    #[test]
    fn a_turn_ends_with_the_last_who_waits_for_it() {
        let mut shelf = shelf(10, &[6, 6, 6]);
        let (used, _) = start(&mut shelf, 0, 1);
        let (next, behind, late) = (shelf.wish(1), shelf.wish(2), shelf.wish(0));
        assert_eq!(shelf.take(next, NOW), Take::NoRoom);
        let later = shelf.wish(0);
        assert_eq!(shelf.take(later, NOW), Take::NoRoom);
        shelf.release(used, NOW);
        shelf.release(late, NOW);
        assert_eq!(shelf.take(behind, NOW), Take::NoRoom, "the room is another's");
        shelf.release(next, NOW);
        assert_eq!(shelf.take(later, NOW), Take::Ready);
    }

    #[test]
    fn what_is_idle_is_kept_for_the_one_that_is_next() {
        let mut shelf = shelf(10, &[5, 5, 10]);
        let (used, _) = start(&mut shelf, 0, 1);
        use_once(&mut shelf, 1, 2);
        let large = shelf.wish(2);
        assert_eq!(shelf.take(large, NOW), Take::NoRoom);
        let late = shelf.wish(1);
        assert_eq!(shelf.take(late, NOW), Take::NoRoom);
        shelf.release(used, NOW);
        assert_eq!(load(&mut shelf, large, NOW), [1, 0]);
    }

    #[test]
    fn nobody_is_told_of_no_room_while_a_model_comes_or_goes() {
        let mut shelf = shelf(10, &[6, 6]);
        let (first, other) = (shelf.wish(0), shelf.wish(1));
        assert!(matches!(shelf.take(first, NOW), Take::Load { .. }));
        assert_eq!(shelf.take(other, NOW), Take::Wait);
        shelf.loaded(0, NOW);
        assert_eq!(shelf.take(first, NOW), Take::Ready);
        assert_eq!(shelf.take(other, NOW), Take::NoRoom);
    }

    #[test]
    fn what_is_reserved_makes_idle_models_give_way_and_fails_what_does_not_fit_beside_it() {
        let mut shelf = shelf(10, &[6, 3, 4]);
        let (used, _) = start(&mut shelf, 1, 1);
        use_once(&mut shelf, 0, 2);
        assert_eq!((shelf.lendable(), shelf.reserve(Bytes::new(8))), (Bytes::new(7), None));
        assert_eq!(shelf.reserve(Bytes::new(5)), Some(vec![0]));
        shelf.left(0);
        assert_eq!((shelf.lendable(), shelf.free()), (Bytes::new(7), Bytes::new(2)));
        let large = shelf.wish(0);
        assert_eq!(shelf.take(large, NOW), Take::Failed(Failure::OutOfMemory));
        let waiting = shelf.wish(2);
        assert_eq!(shelf.take(waiting, NOW), Take::NoRoom);
        shelf.release(used, NOW);
        assert_eq!(load(&mut shelf, waiting, NOW), [1]);
        shelf.unreserve(Bytes::new(5));
        assert_eq!(load(&mut shelf, large, NOW), [0usize; 0]);
    }

    #[test]
    fn a_failed_load_is_tried_again_later_and_less_often() {
        let mut shelf = shelf(10, &[6, 6]);
        let mut now = NOW;
        let wish = shelf.wish(0);
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            assert!(matches!(shelf.take(wish, now), Take::Load { .. }));
            shelf.failed(0, Failure::ModelUnavailable, now);
            assert_eq!(shelf.take(wish, now), Take::Failed(Failure::ModelUnavailable));
            assert_eq!((shelf.offered(0, now), shelf.residence(0, now)), (None, Residence::Failed));
            let before = now.after(Duration::from_millis(seconds * 1000 - 1));
            assert_eq!(shelf.take(wish, before), Take::Failed(Failure::ModelUnavailable));
            now = now.after(Duration::from_secs(seconds));
            assert_eq!(shelf.offered(0, now), Some(ModelState::OnDisk));
        }
        assert!(use_once(&mut shelf, 1, 5).is_empty(), "its room is free for the others");
    }

    #[test]
    fn what_idle_models_hold_is_free_only_where_it_is_needed() {
        let mut two = shelf(10, &[4, 4]);
        use_once(&mut two, 0, 1);
        assert_eq!(two.free_for_a_load(), Bytes::new(6), "the other fits beside it");
        let mut three = shelf(10, &[4, 4, 4]);
        use_once(&mut three, 0, 1);
        use_once(&mut three, 1, 2);
        assert_eq!((three.free(), three.free_for_a_load()), (Bytes::new(2), Bytes::new(10)));
        three.wish(0);
        assert_eq!(three.free_for_a_load(), Bytes::new(6), "but not what a running one holds");
    }

    #[test]
    fn a_model_on_its_way_in_has_the_room_that_it_is_offered_with() {
        let mut shelf = shelf(10, &[6, 6]);
        use_once(&mut shelf, 0, 1);
        let wish = shelf.wish(1);
        let Take::Load { unload, .. } = shelf.take(wish, NOW) else { panic!("there is room") };
        assert_eq!(shelf.offered(1, NOW), Some(ModelState::OnDisk));
        assert_eq!(shelf.free_for_a_load(), Bytes::new(10), "while another leaves for it");
        unload.into_iter().for_each(|gone| shelf.left(gone));
        assert_eq!(shelf.free_for_a_load(), Bytes::new(10), "and while it loads");
    }

    #[test]
    fn a_model_takes_what_is_left_between_its_needs_and_its_most() {
        let mut shelf = shelf_of(10, &[(4, 7), (3, 6), (4, 7)]);
        let (used, _) = start(&mut shelf, 0, 1);
        assert_eq!(shelf.free_for_a_load(), Bytes::new(3));
        let small = shelf.wish(1);
        assert_eq!(shelf.take(small, NOW), Take::Load { unload: vec![], granted: Bytes::new(3) });
        shelf.loaded(1, NOW);
        shelf.release(small, NOW);
        shelf.release(used, NOW);
        assert_eq!(shelf.free_for_a_load(), Bytes::new(10));
        assert_eq!(use_once(&mut shelf, 2, 2_000), [0], "the one that was used first");
    }

    proptest! {
        #[test]
        fn grants_never_pass_the_room_and_promises_are_kept(
            steps in proptest::collection::vec((0..7u8, 0..4usize), 1..300)
        ) {
            let mut shelf = shelf_of(10, &[(2, 3), (3, 6), (5, 6), (9, 10)]);
            let mut now = NOW;
            let mut wishes: Vec<Wish> = Vec::new();
            for (step, index) in steps {
                now = now.after(Duration::from_secs(7));
                let in_transit = |book: &Book| matches!(book.place, Place::Loading | Place::Leaving);
                let settled = shelf.turn.is_none() && !shelf.books.iter().any(in_transit);
                let promised = shelf.free_for_a_load() >= shelf.books[index].claim.needs;
                let wish = wishes.iter().rposition(|wish| wish.index == index);
                match (step, wish) {
                    (0, _) => wishes.push(shelf.wish(index)),
                    (1, Some(wish)) => shelf.release(wishes.remove(wish), now),
                    (2, Some(wish)) => {
                        let users: Vec<u32> = shelf.books.iter().map(|book| book.users).collect();
                        let on_disk = shelf.residence(index, now) == Residence::OnDisk;
                        let wish = wishes.remove(wish); // one that is granted is not taken twice
                        let taken = shelf.take(wish, now);
                        if settled && on_disk {
                            prop_assert_eq!(promised, matches!(taken, Take::Load { .. }));
                        }
                        match taken {
                            Take::Ready => shelf.release(wish, now),
                            Take::Load { unload, .. } => {
                                prop_assert!(unload.iter().all(|&gone| users[gone] == 0 && gone != index));
                                unload.into_iter().for_each(|gone| shelf.left(gone));
                                wishes.push(wish);
                            }
                            _ => wishes.push(wish),
                        }
                    }
                    (3, _) if matches!(shelf.books[index].place, Place::Loading) => shelf.loaded(index, now),
                    (4, _) if matches!(shelf.books[index].place, Place::Loading) => {
                        shelf.failed(index, Failure::OutOfMemory, now);
                    }
                    (5, _) => {
                        let bytes = Bytes::new(1 + index as u64);
                        let lendable = shelf.lendable();
                        if let Some(gone) = shelf.reserve(bytes) {
                            gone.into_iter().for_each(|gone| shelf.left(gone));
                            prop_assert!(shelf.reserved <= lendable);
                        }
                    }
                    (6, _) => shelf.unreserve(shelf.reserved),
                    _ => {}
                }
                let in_memory = shelf.books.iter().filter(|book| book.place.is_in_memory());
                prop_assert!(in_memory.map(|book| book.granted).sum::<Bytes>() <= shelf.room());
                prop_assert!(shelf.free_for_a_load() <= shelf.room);
            }
        }

        /// Everybody who keeps asking is served within a bounded number of rounds, whoever else asks.
        #[test]
        fn nobody_starves(order in proptest::collection::vec(0..3usize, 3..6), length in 1..4usize) {
            let mut shelf = shelf(10, &[6, 6, 10]);
            let mut waiting: Vec<(Wish, usize)> = Vec::new();
            let mut running: Vec<(Wish, usize)> = Vec::new();
            for round in 0..400 {
                let now = NOW.after(Duration::from_millis(round as u64));
                let index = order[round % order.len()];
                waiting.push((shelf.wish(index), round));
                let (done, rest) = running.into_iter().partition(|&(_, since)| round - since >= length);
                running = rest;
                let done: Vec<(Wish, usize)> = done;
                done.into_iter().for_each(|(wish, _)| shelf.release(wish, now));
                let mut left = Vec::new();
                for (wish, asked) in waiting.drain(..).rev() {
                    prop_assert!(round - asked < 60, "asked in round {asked}");
                    match shelf.take(wish, now) {
                        Take::Ready => running.push((wish, round)),
                        Take::Load { unload, .. } => {
                            unload.into_iter().for_each(|gone| shelf.left(gone));
                            shelf.loaded(wish.index, now);
                            left.insert(0, (wish, asked));
                        }
                        _ => left.insert(0, (wish, asked)),
                    }
                }
                waiting = left;
            }
        }
    }
}
