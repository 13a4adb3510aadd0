//! The two ends of one request's events: the thread's [`Reply`] and the caller's [`Generation`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::stream::FusedStream;
use ram_core::chat::reasoning::Start;
use ram_core::job::{Failure, Outcome};

use super::Event;
use super::board::Place;

/// An answer as it comes: a stream of [`Event`]s that ends after [`Event::End`].
///
/// Dropping it cancels the request; the model then computes at most the token that is under way.
#[derive(Debug)]
pub struct Generation {
    // Unbounded, for it holds at most one delta for each token of the answer.
    events: UnboundedReceiver<Event>,
    ended: bool,
    pub(super) answer_start: Start,
}

impl Generation {
    /// Whether the answer begins inside reasoning, the template having opened it at the prompt's end. That may hang on
    /// the caller's variables.
    #[must_use]
    pub const fn answer_start(&self) -> Start {
        self.answer_start
    }

    /// Waits for the next event, blocking the thread; `None` after the end. An async task polls the stream instead.
    pub fn wait_next(&mut self) -> Option<Event> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut *self).poll_next(&mut context) {
                Poll::Ready(event) => return event,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// The events as an iterator that blocks the thread.
    pub fn into_blocking(mut self) -> impl Iterator<Item = Event> {
        std::iter::from_fn(move || self.wait_next())
    }
}

impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = Pin::new(&mut self.events).poll_next(context);
        self.ended = matches!(next, Poll::Ready(None | Some(Event::End { .. })));
        next
    }
}

impl FusedStream for Generation {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

/// Wakes a thread that waits in [`Generation::wait_next`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The thread's end of a request. Dropped without an end, as a panic does, it ends the request with
/// [`Failure::Internal`].
#[derive(Debug)]
pub(super) struct Reply {
    events: UnboundedSender<Event>,
    /// Given back before the end is said: who hears it may submit again at once.
    place: Option<Place>,
}

/// The two ends of a request that holds `place`.
pub(super) fn pair(place: Place) -> (Reply, Generation) {
    let (sender, receiver) = unbounded();
    let generation = Generation { events: receiver, ended: false, answer_start: Start::default() };
    (Reply { events: sender, place: Some(place) }, generation)
}

impl Reply {
    /// Whether nobody listens any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Says what happened, but for the end.
    pub(super) fn say(&self, event: Event) {
        let _ = self.events.unbounded_send(event); // Nobody listens: the next look at `is_cancelled` sees it.
    }

    /// Says the end.
    pub(super) fn end(mut self, outcome: Outcome) {
        self.close(outcome);
    }

    fn close(&mut self, outcome: Outcome) {
        if let Some(place) = self.place.take() {
            drop(place);
            self.say(Event::End { outcome });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.close(Outcome::Failed { failure: Failure::Internal });
    }
}
