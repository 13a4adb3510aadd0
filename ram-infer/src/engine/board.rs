//! How busy an engine is, seen from its thread and from its handles: places are taken by the handles, the rest is
//! posted by the thread.

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ram_core::units::Bytes;

use super::Occupancy;
use crate::error::InferError;

/// What the thread and the handles both see.
#[derive(Debug)]
pub(super) struct Shared {
    slots: NonZeroU16,
    open_max: usize,
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
pub(super) struct Board {
    /// Requests taken and not ended.
    open: usize,
    running: usize,
    kv: Bytes,
    kv_idle: Bytes,
    /// The model's last failure.
    pub(super) fault: Option<InferError>,
}

impl Shared {
    pub(super) fn new(slots: NonZeroU16, queue_max: u16) -> Self {
        let open_max = usize::from(slots.get()) + usize::from(queue_max);
        Self { slots, open_max, board: Mutex::default() }
    }

    /// A place for one more request, if there is one.
    pub(super) fn take_place(this: &Arc<Self>) -> Option<Place> {
        let mut board = this.board();
        if board.open >= this.open_max {
            return None;
        }
        board.open += 1;
        Some(Place(Arc::clone(this)))
    }

    /// Posts what runs.
    pub(super) fn post(&self, running: usize, kv: Bytes, kv_idle: Bytes) {
        let mut board = self.board();
        (board.running, board.kv, board.kv_idle) = (running, kv, kv_idle);
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let Board { open, running, kv, kv_idle, .. } = *self.board();
        let small = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let running = running.min(open); // A request gives its place back a moment before the thread posts again.
        let (running, queued) = (small(running), small(open - running));
        Occupancy { running, queued, slots: self.slots.get(), kv, kv_idle }
    }

    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        // No code panics while it holds the board, and counts are right after each statement.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the open requests; given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.board().open -= 1;
    }
}
