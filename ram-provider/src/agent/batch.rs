//! One run: what of its answer is still to be sent, and when.
//!
//! A message per token would cost more than the token on a busy link, so a run says something every 20 ms at most, or
//! at 64 tokens, whichever is first. Words after a pause do not wait: tokens that come slower than that go out one by
//! one, each at once.

use std::time::Duration;

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::id::{Attempt, GroupId, JobId};
use ram_core::job::{Failure, FinishReason};
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::control::sealed::SealedChunk;
use ram_proto::control::{Chunk, ToCoordinator};

use crate::sealed::Sealer;

use super::event::Piece;
use super::wait::Wait;

/// Shortest time between two messages of a run: below what a reader notices, above the time between tokens of a small
/// model. A piece that comes sooner waits for company until then.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// Most tokens of a batch: keeps 64 tokens with 20 alternatives each well under the message limit of 1 MiB.
const BATCH_TOKENS_MAX: TokenCount = TokenCount::new(64);
/// Most bytes of text in a batch, for tokens that spell long runs of characters.
const BATCH_BYTES_MAX: usize = 16 << 10;

/// One accepted `run` message until it is finished.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) job: JobId,
    pub(super) attempt: Attempt,
    /// Who answers, if no whole model does.
    pub(super) group: Option<GroupId>,
    seq: u32,
    spoke: bool,
    /// When the last batch went out because it was time.
    sent_at: Option<Timestamp>,
    batch: Option<(Piece, Wait)>,
    /// Of an answer that goes out in boxes.
    sealer: Option<Sealer>,
}

impl Run {
    /// A run of which nothing was said yet.
    pub(super) const fn new(
        job: JobId,
        attempt: Attempt,
        group: Option<GroupId>,
        sealer: Option<Sealer>,
    ) -> Self {
        Self { job, attempt, group, seq: 0, spoke: false, sent_at: None, batch: None, sealer }
    }

    /// Adds a piece of the answer to the batch.
    pub(super) fn push(&mut self, more: Piece, now: Timestamp) {
        match &mut self.batch {
            Some((piece, _)) => piece.append(more),
            None => self.batch = Some((more, Wait::new(self.sent_at.unwrap_or(now), BATCH_WAIT))),
        }
    }

    /// The batch as a message, if it is time.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<Chunk> {
        let (piece, wait) = self.batch.as_ref()?;
        let first_words = !self.spoke && piece.text_bytes() > 0;
        let full = piece.tokens >= BATCH_TOKENS_MAX
            || piece.text_bytes() >= BATCH_BYTES_MAX
            || piece.logprobs.len() as u64 >= BATCH_TOKENS_MAX.get();
        if !(first_words || full || wait.is_over(now)) {
            return None;
        }
        self.sent_at = Some(now);
        self.take_rest()
    }

    /// The batch as a message, due or not.
    pub(super) fn take_rest(&mut self) -> Option<Chunk> {
        let (piece, _) = self.batch.take()?;
        self.spoke |= piece.text_bytes() > 0;
        Some(self.chunk(piece))
    }

    /// The next message's number, with this in it.
    fn chunk(&mut self, piece: Piece) -> Chunk {
        let seq = self.seq;
        self.seq = seq.saturating_add(1);
        let Piece { tokens, content, reasoning, tool_calls, logprobs } = piece;
        let Self { job, attempt, .. } = *self;
        Chunk { job, attempt, seq, tokens, content, reasoning, tool_calls, logprobs }
    }

    /// A batch as it goes out: in words, or in a box.
    ///
    /// # Errors
    /// [`Failure`]: it does not go into a box.
    pub(super) fn told(&mut self, batch: Chunk) -> Result<ToCoordinator, Failure> {
        match &mut self.sealer {
            None => Ok(ToCoordinator::Chunk(batch)),
            Some(sealer) => sealer.chunk(batch).map(ToCoordinator::SealedChunk),
        }
    }

    /// The last box of an answer that is whole; `None` of one that goes out in words.
    ///
    /// # Errors
    /// [`Failure`]: there is none.
    pub(super) fn last_box(&mut self, finish: FinishReason) -> Result<Option<ToCoordinator>, Failure> {
        let Some(sealer) = self.sealer.take() else { return Ok(None) };
        let Chunk { job, attempt, seq, tokens, .. } = self.chunk(Piece::default());
        let (nonce, sealed) = sealer.last(finish)?;
        let last = SealedChunk { job, attempt, seq, tokens, nonce, sealed: Some(sealed), last: true };
        Ok(Some(ToCoordinator::SealedChunk(last)))
    }

    /// When the batch is due; `None` while it is empty.
    pub(super) fn due_at(&self) -> Option<Timestamp> {
        self.batch.as_ref().map(|(_, wait)| wait.end())
    }
}

impl Piece {
    fn text_bytes(&self) -> usize {
        let calls: usize = self.tool_calls.iter().map(ToolCall::text_bytes).sum();
        self.content.as_str().len() + self.reasoning.as_str().len() + calls
    }

    fn append(&mut self, more: Self) {
        self.tokens += more.tokens;
        join(&mut self.content, &more.content);
        join(&mut self.reasoning, &more.reasoning);
        self.tool_calls.extend(more.tool_calls);
        self.logprobs.extend(more.logprobs);
    }
}

fn join(text: &mut PromptText, more: &PromptText) {
    if !more.as_str().is_empty() {
        let joined = std::mem::take(text).into_string() + more.as_str();
        *text = joined.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(content: &str) -> Piece {
        Piece { tokens: TokenCount::new(1), content: content.into(), ..Piece::default() }
    }

    fn run() -> Run {
        Run::new(JobId::from_bits(1), Attempt::FIRST, None, None)
    }

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_first_words_do_not_wait() {
        let mut run = run();
        run.push(piece(""), at(0)); // a hidden token
        assert_eq!(run.take_due(at(0)), None);
        run.push(piece("Par"), at(1));
        let chunk = run.take_due(at(1)).unwrap();
        assert_eq!((chunk.seq, chunk.tokens, chunk.content.as_str()), (0, TokenCount::new(2), "Par"));
    }

    #[test]
    fn a_call_is_as_good_as_words() {
        let mut run = run();
        let call = ToolCall { id: "1".into(), name: "f".into(), arguments: "{}".into() };
        run.push(Piece { tool_calls: vec![call.clone()], ..piece("") }, at(0));
        assert_eq!(run.take_due(at(0)).unwrap().tool_calls, [call]);
    }

    #[test]
    fn later_words_wait_for_company() {
        let mut run = run();
        run.push(piece("a"), at(0));
        assert!(run.take_due(at(0)).is_some());
        run.push(piece("b"), at(5));
        run.push(piece("c"), at(15));
        assert_eq!(run.due_at(), Some(at(20)));
        assert_eq!(run.take_due(at(19)), None);
        let chunk = run.take_due(at(20)).unwrap();
        assert_eq!((chunk.seq, chunk.content.as_str()), (1, "bc"));
        assert_eq!((run.due_at(), run.take_rest()), (None, None));
    }

    #[test]
    fn words_after_a_pause_do_not_wait() {
        let mut run = run();
        for millis in [0, 20, 50, 1000] {
            run.push(piece("a"), at(millis));
            assert!(run.take_due(at(millis)).is_some(), "at {millis}");
        }
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let mut run = run();
        run.push(piece("a"), at(0));
        assert!(run.take_due(at(0)).is_some());
        for _ in 0..63 {
            run.push(piece("x"), at(0));
            assert_eq!(run.take_due(at(0)), None);
        }
        run.push(piece("x"), at(0));
        assert_eq!(run.take_due(at(0)).unwrap().tokens, BATCH_TOKENS_MAX);
        run.push(piece(&"y".repeat(BATCH_BYTES_MAX)), at(0));
        assert!(run.take_due(at(0)).is_some());
    }
}
