//! Threads that share the work of a pass: handed out in microseconds, and asleep when there is none.
//!
//! A pass is some hundred short regions, each of which all threads finish before the next one starts. Between them the
//! threads spin, for waking one takes longer than most regions; after [`SPINS`] turns without work they sleep.
//!
//! Parts of a region are taken one after another from a counter, so a thread that the system holds up delays it by one
//! part, and they become smaller towards the end (guided self-scheduling; Polychronopoulos and Kuck 1987), so that all
//! threads finish together. Who computes a part never shows in its result.

use std::any::Any;
use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Threads for the regions of passes, shared by all models of a process that want as many.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// One region at a time: whoever runs one holds this.
    turn: Mutex<()>,
    /// Besides the caller's.
    others: Vec<JoinHandle<()>>,
}

struct Shared {
    /// How many regions were started; a thread that sees a new number works on it.
    started: AtomicUsize,
    /// [`OPEN`] while a region may be entered, and [`INSIDE`] for each other thread that works on it. One that wakes
    /// late finds it closed, and nobody has waited for it.
    gate: AtomicUsize,
    /// What to do. Read only by threads inside.
    work: Mutex<Option<Work>>,
    /// Threads that sleep, or are about to.
    sleepers: Mutex<usize>,
    wake: Condvar,
    ending: AtomicBool,
    /// What a thread's part panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A region, without its lifetime: [`Pool::run`] does not return before no thread knows it any more.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn() + Sync));

#[expect(unsafe_code, reason = "a region lies on the caller's stack and is called by other threads")]
// SAFETY: it points to something `Sync`, and `Pool::run` keeps that alive until all threads are done with it.
unsafe impl Send for Work {}

impl Pool {
    /// The pool of this many threads, made when nobody has one yet. Threads that the system denies are done without.
    pub(crate) fn of(threads: NonZeroUsize) -> Arc<Self> {
        static POOLS: Mutex<BTreeMap<NonZeroUsize, Weak<Pool>>> = Mutex::new(BTreeMap::new());
        let mut pools = lock(&POOLS);
        if let Some(pool) = pools.get(&threads).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Self::new(threads));
        pools.insert(threads, Arc::downgrade(&pool));
        pool
    }

    fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared {
            started: AtomicUsize::new(0),
            gate: AtomicUsize::new(0),
            work: Mutex::new(None),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            ending: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |number: usize| {
            let shared = Arc::clone(&shared);
            let named = thread::Builder::new().name(format!("ram-infer-{number}"));
            named.spawn(move || shared.serve()).ok()
        };
        let others = (1..threads.get()).filter_map(spawn).collect();
        Self { shared, turn: Mutex::new(()), others }
    }

    /// How many threads work, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.others.len() + 1
    }

    /// Cuts `0..items` into runs of at most `grain` and does each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// With what a part panicked with, once all threads are done.
    pub(crate) fn run(&self, items: usize, grain: usize, part: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        if self.others.is_empty() || items <= grain {
            if items > 0 {
                part(0..items);
            }
            return;
        }
        let threads = self.threads();
        let next = AtomicUsize::new(0);
        let size = |first: usize| ((items - first) / (2 * threads)).clamp(1, grain);
        let region = || {
            let take = |first| (first < items).then(|| first + size(first));
            while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                part(first..first + size(first));
            }
        };
        let _turn = lock(&self.turn);
        let _done = self.shared.start(&region);
        region();
    }

    /// [`Self::run`] with a grain that gives each thread some parts.
    pub(crate) fn spread(&self, items: usize, part: impl Fn(Range<usize>) + Sync) {
        self.run(items, items.div_ceil(self.threads() * PARTS_A_THREAD), part);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake_all();
        for other in self.others.drain(..) {
            let _ = other.join(); // A region's panic was handed to who ran it.
        }
    }
}

/// Waits, when dropped, until no thread works on the region any more.
struct Done<'a> {
    shared: &'a Shared,
    region: PhantomData<&'a ()>,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.shared.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0;
        while self.shared.gate.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS_FOR_OTHERS {
                spin_loop();
            } else {
                thread::yield_now(); // The system holds one up, perhaps to run this one.
            }
        }
        *lock(&self.shared.work) = None;
        let met = lock(&self.shared.panic).take();
        if let Some(met) = met
            && !thread::panicking()
        {
            panic::resume_unwind(met);
        }
    }
}

impl Shared {
    /// Tells all threads of a region.
    fn start<'a>(&'a self, region: &'a (dyn Fn() + Sync + 'a)) -> Done<'a> {
        let pointer: *const (dyn Fn() + Sync + 'a) = region;
        #[expect(unsafe_code, reason = "a region lies on the caller's stack and is called by other threads")]
        // SAFETY: only the lifetime changes. `Done`, which borrows for it, waits for every thread that has entered
        // before it lets go.
        let pointer: *const (dyn Fn() + Sync) = unsafe { std::mem::transmute(pointer) };
        *lock(&self.work) = Some(Work(pointer));
        self.gate.store(OPEN, Ordering::Release);
        self.started.fetch_add(1, Ordering::Release);
        self.wake_all();
        Done { shared: self, region: PhantomData }
    }

    fn wake_all(&self) {
        let sleepers = lock(&self.sleepers);
        if *sleepers > 0 {
            self.wake.notify_all();
        }
    }

    /// A thread's life.
    fn serve(&self) {
        let mut seen = 0;
        while let Some(started) = self.wait(seen) {
            seen = started;
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + INSIDE);
            if self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
                continue;
            }
            // It may be a later region than the one that was heard of.
            seen = self.started.load(Ordering::Relaxed);
            let work = *lock(&self.work);
            if let Some(Work(region)) = work {
                #[expect(unsafe_code, reason = "a region lies on the caller's stack")]
                // SAFETY: this thread is inside, so `Pool::run` waits for it before the region ends.
                let done = panic::catch_unwind(AssertUnwindSafe(|| unsafe { (*region)() }));
                if let Err(met) = done {
                    lock(&self.panic).get_or_insert(met);
                }
            }
            self.gate.fetch_sub(INSIDE, Ordering::Release);
        }
    }

    /// Waits for a region after number `seen`; `None` when the pool ends.
    fn wait(&self, seen: usize) -> Option<usize> {
        let news = || {
            let started = self.started.load(Ordering::Acquire);
            (started != seen).then_some(started)
        };
        for _ in 0..SPINS {
            if let Some(started) = news() {
                return Some(started);
            }
            spin_loop();
        }
        let mut sleepers = lock(&self.sleepers);
        *sleepers += 1;
        let found = loop {
            if let Some(started) = news() {
                break Some(started);
            }
            if self.ending.load(Ordering::Acquire) {
                break None;
            }
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        };
        *sleepers -= 1;
        found
    }
}

/// A slice whose parts are written by several threads at once.
///
/// Rows and tiles of a product interleave in memory, so that no split of a slice describes who writes what.
#[derive(Clone, Copy)]
pub(crate) struct Scattered<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "handed to the threads of a pool")]
// SAFETY: it is a `&mut [T]` whose use by several threads at once is up to the promise of `part`'s callers.
unsafe impl<T: Send> Send for Scattered<'_, T> {}
#[expect(unsafe_code, reason = "handed to the threads of a pool")]
// SAFETY: as above; there is no way to reach an element but `part`.
unsafe impl<T: Send> Sync for Scattered<'_, T> {}

impl<'a, T> Scattered<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// As long as one lives, no other part that overlaps with it is used.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "that parts are apart is the caller's promise")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside");
        // SAFETY: inside of the slice, which is borrowed for 'a; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The elements of `range`, to read.
    ///
    /// # Safety
    /// As long as it lives, no part that overlaps with it is used.
    #[expect(unsafe_code, reason = "that nobody writes is the caller's promise")]
    #[inline(always)]
    pub(crate) unsafe fn view(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside");
        // SAFETY: inside of the slice, which is borrowed for 'a; not written by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // What they guard is whole between statements.
}

/// The parts of a gate's number.
const OPEN: usize = 1;
const INSIDE: usize = 2;
/// Some 600 µs of spinning: longer than a sampler takes between two passes, or a step from one shard of this process to
/// the next.
const SPINS: usize = 25_000;
/// Some 100 µs: a thread that is inside and takes longer to come out is not running.
const SPINS_FOR_OTHERS: usize = 4000;
/// Enough that a thread which was held up costs a few per cent of a region.
const PARTS_A_THREAD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn each_item_is_done_once_whatever_the_grain() {
        let pool = pool(3);
        for (items, grain) in [(0, 1), (1, 1), (7, 3), (1000, 1), (1000, 7), (5, 100)] {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..20 {
                pool.run(items, grain, |part| {
                    for item in part {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20), "{items} by {grain}");
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = pool(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(10, 1, |part| {
                            sum.fetch_add(part.len(), Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 10);
    }

    #[test]
    fn a_panic_comes_back_to_the_caller_and_the_pool_lives_on() {
        let pool = pool(2);
        let met = panic::catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, 1, |part| assert!(!part.contains(&5), "the fifth"));
        }));
        assert!(met.is_err());
        let done = AtomicUsize::new(0);
        pool.run(8, 1, |part| {
            done.fetch_add(part.len(), Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 8);
    }

    #[test]
    fn models_of_one_size_share_their_threads() {
        let two = NonZeroUsize::new(2).unwrap();
        assert!(Arc::ptr_eq(&Pool::of(two), &Pool::of(two)));
    }
}
