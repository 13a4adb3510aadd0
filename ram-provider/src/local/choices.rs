//! The choices of one request, each an answer of its own, heard as one.
//!
//! They run side by side where there are slots, and one after the other where not. One that fails takes the whole
//! request with it. Dropping them cancels what still runs.

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll, unfold};
use ram_core::job::{Outcome, Usage};
use ram_proto::openai::{AnswerPiece, ApiError, Heard, XramFields};
use tokio::sync::OwnedSemaphorePermit;

use crate::agent::Piece;
use crate::worker::{PendingAnswer, Step};

/// All choices of one request.
pub(super) struct Choices {
    /// The steps of each that has not ended.
    steps: SelectAll<BoxStream<'static, (u32, Step)>>,
    open: usize,
    usage: Usage,
    /// What they take of the server until they are dropped.
    _place: [OwnedSemaphorePermit; 2],
}

impl Choices {
    /// The choices that these answers are, in their order.
    pub(super) fn new(answers: Vec<PendingAnswer>, place: [OwnedSemaphorePermit; 2]) -> Self {
        let listen = |(choice, answer)| {
            unfold(answer, move |mut answer: PendingAnswer| async move {
                let step = answer.next().await?;
                Some(((choice, step), answer))
            })
            .boxed()
        };
        let open = answers.len();
        let steps = (0..).zip(answers).map(listen).collect();
        Self { steps, open, usage: Usage::default(), _place: place }
    }

    /// What comes next; nothing follows [`Heard::Done`] and [`Heard::Failed`]. Cancel-safe.
    pub(super) async fn next(&mut self) -> Heard {
        while self.open > 0 {
            match self.steps.next().await {
                Some((_, Step::Started { .. })) => {}
                Some((choice, Step::Piece(piece))) => {
                    let piece = AnswerPiece::from(piece);
                    if piece != AnswerPiece::default() {
                        return Heard::Piece(choice, piece); // tokens without a word are no news to a caller
                    }
                }
                Some((choice, Step::End(Outcome::Done { finish, usage }))) => {
                    self.open -= 1;
                    self.usage = self.usage + usage;
                    return Heard::Ended(choice, finish);
                }
                Some((_, Step::End(Outcome::Failed { failure }))) => return self.fail(failure.into()),
                None => return self.fail(ApiError::internal()),
            }
        }
        Heard::Done(self.usage, XramFields::default())
    }

    fn fail(&mut self, error: ApiError) -> Heard {
        self.steps.clear();
        Heard::Failed(error)
    }
}

impl From<Piece> for AnswerPiece {
    fn from(Piece { content, reasoning, tool_calls, logprobs, .. }: Piece) -> Self {
        Self { content, reasoning, tool_calls, logprobs }
    }
}
