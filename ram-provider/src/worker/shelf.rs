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
    books: Vec<Book>,
}

/// What one model needs of the memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// With one conversation of usual length: what a load waits for.
    pub(super) needs: Bytes,
    /// With all that its conversations may grow into: what is set aside. Never less than `needs`.
    pub(super) most: Bytes,
}

#[derive(Debug)]
struct Book {
    claim: Claim,
    place: Place,
    /// Answers that run on it or wait for it.
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
    /// It is in memory.
    Ready,
    /// Unload these, tell [`Shelf::left`] of each, then load it and tell [`Shelf::loaded`] or [`Shelf::failed`].
    Load { unload: Vec<usize> },
    /// Somebody else loads or unloads it; look again after the next change.
    Wait,
    /// What fills the memory is in use; look again after the next change.
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
        let book = |claim| Book { claim, place: Place::OnDisk, users: 0, used: Timestamp::ZERO, failures: 0 };
        Self { room, books: claims.into_iter().map(book).collect() }
    }

    /// Somebody wants the model; ended by [`Shelf::release`].
    pub(super) fn hold(&mut self, index: usize) {
        self.books[index].users += 1;
    }

    /// Somebody wants it no more.
    pub(super) fn release(&mut self, index: usize, now: Timestamp) {
        let book = &mut self.books[index];
        book.users = book.users.saturating_sub(1);
        book.used = now;
    }

    /// What one who holds the model has to do to use it.
    pub(super) fn take(&mut self, index: usize, now: Timestamp) -> Take {
        match self.books[index].place {
            Place::Loaded => Take::Ready,
            Place::Loading | Place::Leaving => Take::Wait,
            Place::Failed { failure, wait } if !wait.is_over(now) => Take::Failed(failure),
            Place::OnDisk | Place::Failed { .. } => match self.make_room(self.books[index].claim.most) {
                Some(unload) => {
                    self.books[index].place = Place::Loading;
                    Take::Load { unload }
                }
                None => Take::NoRoom,
            },
        }
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
        self.room.saturating_sub(self.in_memory(|claim| claim.needs))
    }

    /// Memory that a load could have: what is free, and, where a model on disk needs more than that, what idle models
    /// would give up for it. A coordinator sends work for a model on disk only where it sees room for it.
    pub(super) fn free_for_a_load(&self) -> Bytes {
        let free = self.free();
        let waits = |book: &Book| !book.place.is_in_memory() && book.claim.needs > free;
        if !self.books.iter().any(waits) {
            return free;
        }
        free + self.books.iter().filter(|book| book.is_idle()).map(|book| book.claim.needs).sum()
    }

    /// Marks the least recently used idle models as leaving until `most` is free beside all the others; `None`, and
    /// nothing changed, when that cannot be had.
    fn make_room(&mut self, most: Bytes) -> Option<Vec<usize>> {
        let mut free = self.room.saturating_sub(self.in_memory(|claim| claim.most));
        let mut idle: Vec<usize> =
            (0..self.books.len()).filter(|&index| self.books[index].is_idle()).collect();
        idle.sort_by_key(|&index| self.books[index].used);
        let mut unload = Vec::new();
        for index in idle {
            if free >= most {
                break;
            }
            free += self.books[index].claim.most;
            unload.push(index);
        }
        if free < most {
            return None;
        }
        for &index in &unload {
            self.books[index].place = Place::Leaving;
        }
        Some(unload)
    }

    fn in_memory(&self, part: impl Fn(Claim) -> Bytes) -> Bytes {
        self.books.iter().filter(|book| book.place.is_in_memory()).map(|book| part(book.claim)).sum()
    }
}

impl Book {
    const fn is_idle(&self) -> bool {
        matches!(self.place, Place::Loaded) && self.users == 0
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
        let claim = |&bytes: &u64| Claim { needs: Bytes::new(bytes), most: Bytes::new(bytes) };
        Shelf::new(Bytes::new(room), claims.iter().map(claim))
    }

    /// Loads a model for one who uses it for a moment, at `at`.
    fn use_once(shelf: &mut Shelf, index: usize, at: u64) -> Vec<usize> {
        let at = Timestamp::from_millis(at);
        shelf.hold(index);
        let unloaded = match shelf.take(index, at) {
            Take::Ready => Vec::new(),
            Take::Load { unload } => {
                unload.iter().for_each(|&index| shelf.left(index));
                shelf.loaded(index, at);
                unload
            }
            other => panic!("{other:?}"),
        };
        shelf.release(index, at);
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
        use_once(&mut shelf, 0, 1);
        shelf.hold(0);
        shelf.hold(1);
        assert_eq!(shelf.take(1, NOW), Take::NoRoom);
        shelf.release(0, NOW);
        assert_eq!(shelf.take(1, NOW), Take::Load { unload: vec![0] });
        assert_eq!(shelf.take(1, NOW), Take::Wait, "a second one waits for the first one's load");
        assert_eq!(shelf.take(0, NOW), Take::Wait, "and nobody takes one that leaves");
    }

    #[test]
    fn a_failed_load_is_tried_again_later_and_less_often() {
        let mut shelf = shelf(10, &[6, 6]);
        let mut now = NOW;
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            assert!(matches!(shelf.take(0, now), Take::Load { .. }));
            shelf.failed(0, Failure::ModelUnavailable, now);
            assert_eq!(shelf.take(0, now), Take::Failed(Failure::ModelUnavailable));
            assert_eq!((shelf.offered(0, now), shelf.residence(0, now)), (None, Residence::Failed));
            let before = now.after(Duration::from_millis(seconds * 1000 - 1));
            assert_eq!(shelf.take(0, before), Take::Failed(Failure::ModelUnavailable));
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
        three.hold(0);
        assert_eq!(three.free_for_a_load(), Bytes::new(6), "but not what a running one holds");
    }

    proptest! {
        #[test]
        fn claims_never_pass_the_room(steps in proptest::collection::vec((0..5u8, 0..4usize), 1..200)) {
            let mut shelf = shelf(10, &[3, 4, 6, 10]);
            let mut now = NOW;
            for (step, index) in steps {
                now = now.after(Duration::from_secs(7));
                let users: Vec<u32> = shelf.books.iter().map(|book| book.users).collect();
                match step {
                    0 => shelf.hold(index),
                    1 => shelf.release(index, now),
                    2 => if let Take::Load { unload } = shelf.take(index, now) {
                        prop_assert!(unload.iter().all(|&gone| users[gone] == 0 && gone != index));
                        // What leaves still stands beside what comes, until it has left.
                        let most = |claim: Claim| claim.most;
                        let leaving = unload.iter().map(|&gone| shelf.books[gone].claim.most).sum::<Bytes>();
                        prop_assert!(shelf.in_memory(most).saturating_sub(leaving) <= shelf.room);
                        unload.into_iter().for_each(|gone| shelf.left(gone));
                    },
                    3 => if matches!(shelf.books[index].place, Place::Loading) { shelf.loaded(index, now) },
                    _ => if matches!(shelf.books[index].place, Place::Loading) {
                        shelf.failed(index, Failure::OutOfMemory, now);
                    },
                }
                prop_assert!(shelf.in_memory(|claim| claim.most) <= shelf.room);
                prop_assert!(shelf.free_for_a_load() <= shelf.room);
            }
        }
    }
}
