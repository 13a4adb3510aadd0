//! What a server hears of the choices of one request, and what its caller is told of each.
//!
//! Both servers, the gateway and the one without a network, merge the choices of a request into one row of [`Heard`],
//! which ends with [`Heard::Done`] or [`Heard::Failed`].

use std::ops::ControlFlow;

use ram_core::job::{FinishReason, Usage};

use super::error::ApiError;
use super::response::{ChatCompletion, XramFields};
use super::stream::{AnswerPiece, StreamedAnswer, WholeAnswer};

/// What is heard of a request's choices.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// More of this choice.
    Piece(u32, AnswerPiece),
    /// This choice is whole.
    Ended(u32, FinishReason),
    /// All choices are, and took so much together.
    Done(Usage, XramFields),
    /// There is no answer, or no more of it.
    Failed(ApiError),
}

impl WholeAnswer {
    /// Takes in what was heard; breaks with what the caller is told.
    pub fn hear(mut self, heard: Heard) -> ControlFlow<Result<ChatCompletion, ApiError>, Self> {
        match heard {
            Heard::Piece(choice, piece) => {
                if let Err(error) = self.push(choice, piece) {
                    return ControlFlow::Break(Err(error));
                }
            }
            Heard::Ended(choice, reason) => self.finish_choice(choice, reason),
            Heard::Done(usage, xram) => return ControlFlow::Break(Ok(self.finish(usage, xram))),
            Heard::Failed(error) => return ControlFlow::Break(Err(error)),
        }
        ControlFlow::Continue(self)
    }
}

impl StreamedAnswer {
    /// The frames of what was heard, and the answer unless they were its last.
    #[must_use]
    pub fn hear(mut self, heard: Heard) -> (String, Option<Self>) {
        let frames = match heard {
            Heard::Piece(choice, piece) => self.push(choice, piece),
            Heard::Ended(choice, reason) => self.finish_choice(choice, reason),
            Heard::Done(usage, xram) => return (self.finish(usage, xram), None),
            Heard::Failed(error) => return (self.fail(&error), None),
        };
        (frames, Some(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{Asked, CompletionHead, CompletionId, sse};
    use ram_core::id::JobId;
    use ram_core::units::Timestamp;
    use std::num::NonZeroU8;

    fn row(last: Heard) -> [Heard; 4] {
        let piece = |content: &str| AnswerPiece { content: content.into(), ..AnswerPiece::default() };
        [Heard::Piece(1, piece("b")), Heard::Piece(0, piece("a")), Heard::Ended(1, FinishReason::Stop), last]
    }

    fn whole(row: [Heard; 4]) -> Result<ChatCompletion, ApiError> {
        let mut answer = WholeAnswer::new(head(), Asked::default(), NonZeroU8::new(2).unwrap());
        answer.finish_choice(0, FinishReason::Length);
        for heard in row {
            match answer.hear(heard) {
                ControlFlow::Continue(more) => answer = more,
                ControlFlow::Break(told) => return told,
            }
        }
        panic!("the last of a row ends the answer")
    }

    fn streamed(row: [Heard; 4]) -> String {
        let mut answer = StreamedAnswer::new(head(), Asked::default(), NonZeroU8::new(2).unwrap());
        let mut frames = answer.finish_choice(0, FinishReason::Length);
        let mut open = Some(answer);
        for heard in row {
            let (more, rest) = open.take().unwrap().hear(heard);
            (frames, open) = (frames + &more, rest);
        }
        assert!(open.is_none());
        frames
    }

    fn head() -> CompletionHead {
        let id = CompletionId(JobId::from_bits(7));
        CompletionHead { id, created: Timestamp::ZERO, model: "ram-demo".parse().unwrap() }
    }

    #[test]
    fn a_row_ends_with_an_answer_or_with_its_error() {
        let done = row(Heard::Done(Usage::default(), XramFields::default()));
        assert_eq!(whole(done.clone()).unwrap().choices.len(), 2);
        assert!(streamed(done).ends_with(sse::DONE));
        let failed = row(Heard::Failed(ApiError::internal()));
        assert_eq!(whole(failed.clone()), Err(ApiError::internal()));
        assert!(!streamed(failed).contains(sse::DONE_DATA));
    }
}
