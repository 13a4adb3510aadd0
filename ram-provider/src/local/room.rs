//! What callers can take of the local server, and how much of it is left.

use std::sync::Arc;
use std::time::Duration;

use ram_core::job::Failure;
use ram_proto::openai::{ApiError, BODY_WITHIN, HEAD_WITHIN, WRITE_STALL};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What callers can take of a local server: connections, bytes, time and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalLimits {
    /// Connections at once, of which a system gives a process a thousand or fewer. One more waits in the kernel's
    /// backlog.
    pub connections_max: usize,
    /// Answers at once, each choice counted, whether they are written or wait for a slot or for their model.
    pub answers_max: usize,
    /// Bytes of the requests of all open answers and of those that are being read, beyond the first 64 KiB of each.
    pub prompt_bytes_max: usize,
    /// How long a request's head may take, and how long a connection may idle.
    pub head_within: Duration,
    /// How long a request's body may take.
    pub body_within: Duration,
    /// How long a client may read nothing of what is written to it: while it stalls, its model cannot be unloaded.
    pub write_stall: Duration,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            answers_max: 256,
            prompt_bytes_max: 256 << 20,
            head_within: HEAD_WITHIN,
            body_within: BODY_WITHIN,
            write_stall: WRITE_STALL,
        }
    }
}

/// So much of something that runs out. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new(all: usize) -> Self {
        Self(Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes so much until the permit is dropped.
    ///
    /// # Errors
    /// 503 with `retry-after` when less is left.
    pub(super) fn take(&self, much: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit =
            u32::try_from(much).ok().and_then(|much| Arc::clone(&self.0).try_acquire_many_owned(much).ok());
        permit.ok_or_else(|| Failure::Overloaded.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let room = Room::new(3);
        let taken = room.take(3).unwrap();
        let full = room.take(1).unwrap_err();
        assert_eq!((full.status, full.retry_after.is_some()), (503, true));
        assert!(room.take(0).is_ok(), "a short request takes nothing");
        drop(taken);
        assert!(room.take(3).is_ok() && room.take(4).is_err() && room.take(usize::MAX).is_err());
    }
}
