//! The head of a model over several nodes: a chat goes in, and an answer comes out as an engine's does.
//!
//! ```text
//! Job -> Scribe::begin -> tokens -> Member::submit => shards
//!                                   Word::Token <=====' the last one picks
//! Step <- Answer <- Event <- Script::write
//! ```
//!
//! The head alone knows the words: its shards get tokens, or what was computed of them. A session has the name of its
//! job. The seed is the job's too, so that another head which takes the job picks the same tokens.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use ram_core::id::{JobId, ModelId};
use ram_core::job::{Failure, Job, Outcome};
use ram_core::units::TokenCount;
use ram_infer::batch::blocks_for;
use ram_infer::engine::{Event, Scribe, Script};
use ram_infer::error::InferError;
use ram_infer::sample::Report;
use ram_pipeline::driver::{self, End};
use ram_pipeline::member::{Member, Word};
use ram_proto::frame::{Code, Logprob};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use super::answer::{Asked, Listens};
use super::{Answer, PendingAnswer};
use crate::run::now;

/// A model whose first layers this node holds. Cheap to clone; the member lives as long as one of these, or an answer.
#[derive(Clone, Debug)]
pub struct Head {
    scribe: Scribe,
    model: ModelId,
    member: Member,
    positions: TokenCount,
    /// Blocks of keys and values that no session has asked for: whoever finds too few waits, in turn.
    room: Arc<Semaphore>,
}

impl Head {
    /// The head of a model whose folder is `dir`, weights aside, and whose first shard is `member`. Every shard of the
    /// chain has keys and values for `positions` tokens of a session.
    ///
    /// Takes as long as reading a vocabulary: not for an async task.
    ///
    /// # Errors
    /// Those of [`Scribe::load`].
    pub fn load(
        dir: &Path,
        model: ModelId,
        member: Member,
        positions: TokenCount,
    ) -> Result<Self, InferError> {
        let room = Arc::new(Semaphore::new(blocks(positions).min(Semaphore::MAX_PERMITS)));
        Ok(Self { scribe: Scribe::load(dir)?, model, member, positions, room })
    }

    /// The model's full id.
    #[must_use]
    pub const fn model(&self) -> &ModelId {
        &self.model
    }

    /// The longest prompt with its answer.
    #[must_use]
    pub fn context(&self) -> TokenCount {
        self.scribe.context().min(self.positions)
    }

    /// Begins an answer. What stands in its way is told as its end; dropping it frees the memory of all shards.
    ///
    /// Before the chain is linked, and while others fill its memory, it waits. Of a job that is being answered already
    /// the second answer fails.
    #[must_use]
    pub fn answer(&self, job: Job) -> PendingAnswer {
        let head = self.clone();
        PendingAnswer::new(async move {
            // To write and to encode the prompt may take long.
            let opened = tokio::task::spawn_blocking({
                let head = head.clone();
                move || head.open(job)
            });
            let (mut script, asked, listens) = opened.await.unwrap_or(Err(Failure::Internal))?;
            let mut events = VecDeque::new();
            script.start(&mut events);
            let session = if script.is_ended() { None } else { Some(head.begin(asked).await?) };
            let start = script.answer_start();
            Ok(Answer::new(Spoken { session, script, events, model: head.model }, start, listens))
        })
    }

    /// Reads a job.
    fn open(&self, job: Job) -> Result<(Script, driver::Request, Listens), Failure> {
        let session = job.id;
        let Asked { request, listens } = Asked::new(job, self.scribe.call_format());
        let (prompt, script) = self.scribe.begin(&request, self.positions)?;
        let (tokens_max, sampling) = (script.tokens_max(), request.params.sampling);
        let deadline = now().after(ANSWER_MAX);
        let asked = driver::Request { session, prompt, tokens_max, sampling, deadline };
        Ok((script, asked, listens))
    }

    /// Begins a session when there is room for it.
    async fn begin(&self, asked: driver::Request) -> Result<Session, Failure> {
        let needs = blocks(TokenCount::new(asked.prompt.len() as u64) + asked.tokens_max);
        let needs = u32::try_from(needs).map_err(|_| Failure::OutOfMemory)?;
        let room = self.room.clone().acquire_many_owned(needs).await.map_err(|_| Failure::Internal)?;
        let (id, member) = (asked.session, self.member.clone());
        Ok(Session { id, words: member.submit(asked), member, _room: room })
    }
}

/// What becomes of the tokens that come from the last shard.
struct Spoken {
    /// Until the end.
    session: Option<Session>,
    script: Script,
    /// What goes before anything else.
    events: VecDeque<Event>,
    model: ModelId,
}

impl Spoken {
    fn hear(&mut self, word: Option<Word>) {
        let failure = match word {
            Some(Word::Token { token, logprob, .. }) => {
                let report = logprob.map(|Logprob { logprob, top }| Report { logprob, top });
                match self.script.write(token, report, &mut self.events) {
                    Ok(()) if self.script.is_ended() => return self.session = None,
                    Ok(()) => return,
                    Err(fault) => {
                        warn!(model = %self.model, %fault, "the last shard picked what cannot be written");
                        fault.failure()
                    }
                }
            }
            Some(Word::End(End::Failed(code))) => {
                warn!(model = %self.model, ?code, "an answer over shards could not go on");
                failure_of(code)
            }
            // As long as it may be, it would have ended before; otherwise somebody else has ended it.
            Some(Word::End(End::Length | End::Enough)) | None => Failure::Internal,
        };
        self.session = None;
        self.events.push_back(Event::End { outcome: Outcome::Failed { failure } });
    }
}

impl Stream for Spoken {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(session) = &mut self.session else { return Poll::Ready(None) };
            let word = ready!(session.words.poll_recv(context));
            self.hear(word);
        }
    }
}

/// A session that shards have memory for. Dropped, it is enough, and they free that.
struct Session {
    id: JobId,
    member: Member,
    words: UnboundedReceiver<Word>,
    _room: OwnedSemaphorePermit,
}

/// Blocks that so many positions take.
fn blocks(positions: TokenCount) -> usize {
    usize::try_from(positions.get()).map_or(usize::MAX, blocks_for)
}

impl Drop for Session {
    fn drop(&mut self) {
        // One that has ended by itself may have been begun again, by whom this would end it.
        if !self.words.is_closed() {
            self.member.enough(self.id);
        }
    }
}

/// What a job is told of a session that could not go on.
const fn failure_of(code: Code) -> Failure {
    match code {
        Code::Busy => Failure::Overloaded,
        Code::DeadlineExceeded => Failure::TimedOut,
        Code::WrongShape => Failure::OutOfMemory, // more positions than a shard ever has
        Code::WrongVersion | Code::WrongModel | Code::WrongLayers => Failure::ModelUnavailable,
        Code::WrongEpoch | Code::WrongPrefix | Code::UnknownSession | Code::LinkLost => Failure::ProviderLost,
        Code::Protocol | Code::Unsupported | Code::UnknownContent | Code::Internal => Failure::Internal,
    }
}

/// Longest answer. Whoever asks gives up long before that, and says so by dropping it.
const ANSWER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use ram_core::job::Retry;

    use super::*;

    #[test]
    fn what_shards_could_not_do_is_tried_elsewhere() {
        let codes = [
            Code::WrongVersion,
            Code::WrongModel,
            Code::WrongLayers,
            Code::WrongEpoch,
            Code::WrongPrefix,
            Code::WrongShape,
            Code::UnknownSession,
            Code::Busy,
            Code::DeadlineExceeded,
            Code::Protocol,
            Code::Unsupported,
            Code::LinkLost,
            Code::Internal,
        ];
        // Also where the same group would fail again: none of these is the fault of who asks.
        for code in codes {
            assert_eq!(failure_of(code).retry(), Retry::Elsewhere, "{code:?}");
        }
    }
}
