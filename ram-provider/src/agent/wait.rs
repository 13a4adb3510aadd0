//! A span of time that a clock can be set back in.

use std::time::Duration;

use ram_core::units::Timestamp;

/// A wait: over when its time has passed, or when the clock was set back behind its start.
///
/// Without the second half a clock that is put right by an hour would silence the heartbeat for an hour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    from: Timestamp,
    length: Duration,
}

impl Wait {
    /// A wait of `length` that starts at `from`.
    pub(crate) const fn new(from: Timestamp, length: Duration) -> Self {
        Self { from, length }
    }

    /// When it ends, if the clock keeps its pace.
    pub(crate) fn end(self) -> Timestamp {
        self.from.after(self.length)
    }

    /// Whether it is over.
    pub(crate) fn is_over(self, now: Timestamp) -> bool {
        now < self.from || now.since(self.from) >= self.length
    }

    /// The same wait, from `now`.
    pub(crate) const fn again(self, now: Timestamp) -> Self {
        Self::new(now, self.length)
    }

    /// How much time has passed since it started.
    pub(crate) const fn elapsed(self, now: Timestamp) -> Duration {
        now.since(self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_ends_the_wait() {
        let wait = Wait::new(Timestamp::from_millis(5_000), Duration::from_secs(10));
        assert!(!wait.is_over(Timestamp::from_millis(14_999)));
        assert!(wait.is_over(wait.end()));
        assert!(wait.is_over(Timestamp::from_millis(4_999)));
    }
}
