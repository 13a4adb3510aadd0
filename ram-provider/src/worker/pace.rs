//! What an engine says of an answer, with the speeds measured that it was read and written at.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use ram_core::units::TokenCount;
use ram_infer::engine::{Event, Generation};

use super::Served;
use super::lease::Lease;

/// The events of a generation, on their way.
pub(super) struct Paced {
    generation: Generation,
    /// Keeps the model in memory; dropped after the generation, so that nobody unloads what still writes.
    served: Lease,
    pace: Pace,
}

impl Paced {
    pub(super) fn new(generation: Generation, served: Lease) -> Self {
        Self { generation, served, pace: Pace::default() }
    }
}

impl Stream for Paced {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let Self { generation, served, pace } = &mut *self;
        let event = generation.poll_next_unpin(context);
        match &event {
            Poll::Ready(Some(Event::Started { prompt, .. })) => pace.started(*prompt),
            Poll::Ready(Some(Event::Delta { tokens, .. })) => pace.wrote(*tokens, served),
            Poll::Ready(Some(Event::End { outcome })) => {
                pace.ended(served);
                served.log_fault(outcome);
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        event
    }
}

/// When the stretches of one answer came.
#[derive(Debug, Default)]
struct Pace {
    started: Option<(Instant, TokenCount)>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Tokens after the first stretch.
    tokens: TokenCount,
    /// Whether another request ran beside it: then it says nothing about the machine.
    disturbed: bool,
}

impl Pace {
    fn started(&mut self, prompt: TokenCount) {
        self.started = Some((now(), prompt));
    }

    fn wrote(&mut self, tokens: TokenCount, served: &Served) {
        self.disturbed |= !served.is_alone();
        let now = now();
        if self.first.is_none() {
            self.first = Some(now);
            if let Some((started, prompt)) = self.started.filter(|_| !self.disturbed) {
                served.model.meter().prefilled(prompt, now.saturating_duration_since(started));
            }
        } else {
            self.tokens += tokens;
        }
        self.last = Some(now);
    }

    fn ended(&self, served: &Served) {
        if let (Some(first), Some(last), false) = (self.first, self.last, self.disturbed) {
            let time: Duration = last.saturating_duration_since(first);
            served.model.meter().decoded(self.tokens, time);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the worker is a shell: here speeds are measured")]
fn now() -> Instant {
    Instant::now()
}
