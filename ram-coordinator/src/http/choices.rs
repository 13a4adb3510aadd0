//! The choices of one request, each a job of its own, heard as one answer.
//!
//! A request with `n` choices is `n` jobs, submitted together and run wherever there is room; the first has the
//! request's number. One that fails takes the whole request with it, and the others are abandoned: nobody can use a
//! part of what was asked for. What is told of money and usage is the sum.

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll, unfold};
use ram_core::id::JobId;
use ram_core::job::Usage;
use ram_core::units::XRam;
use ram_proto::openai::{AnswerPiece, ApiError, Heard, ServedBy, XramFields};

use crate::run::Replies;
use crate::state::{Receipt, Reply};

use super::error::of_job;

/// All choices of one request. Dropping them before [`Heard::Done`] abandons what still runs.
pub(super) struct Choices {
    /// The replies to each that has not ended; `None` stands for a reader that was cut off.
    replies: SelectAll<BoxStream<'static, (u32, Option<Reply>)>>,
    /// The first choice's job, which the request is known by.
    job: JobId,
    /// Who took that job last.
    served_by: Option<ServedBy>,
    open: usize,
    /// Choices of which words came and no end yet: they will be charged.
    spoke: BTreeSet<u32>,
    usage: Usage,
    receipt: Option<Receipt>,
}

impl Choices {
    /// The choices whose replies these are, in their order; `job` is the first one's.
    pub(super) fn new(job: JobId, replies: Vec<Replies>) -> Self {
        let listen = |(choice, replies)| {
            unfold(Some(replies), move |replies: Option<Replies>| async move {
                let mut replies = replies?;
                let reply = replies.next().await;
                let is_last = matches!(reply, None | Some(Reply::Done { .. } | Reply::Failed { .. }));
                Some(((choice, reply), (!is_last).then_some(replies)))
            })
            .boxed()
        };
        Self {
            open: replies.len(),
            replies: (0..).zip(replies).map(listen).collect(),
            job,
            served_by: None,
            spoke: BTreeSet::new(),
            usage: Usage::default(),
            receipt: None,
        }
    }

    /// What comes next; nothing follows [`Heard::Done`] and [`Heard::Failed`]. Cancel-safe.
    pub(super) async fn next(&mut self) -> Heard {
        while self.open > 0 {
            let Some((choice, reply)) = self.replies.next().await else { break };
            match reply {
                Some(Reply::Started { provider, name, .. }) if choice == 0 => {
                    self.served_by = Some(ServedBy { id: provider, name });
                }
                Some(Reply::Started { .. }) => {}
                Some(Reply::Delta { content, reasoning, tool_calls, logprobs }) => {
                    let piece = AnswerPiece { content, reasoning, tool_calls, logprobs };
                    if piece != AnswerPiece::default() {
                        self.spoke.insert(choice);
                        return Heard::Piece(choice, piece); // tokens without a word are no news, and cost nothing yet
                    }
                }
                Some(Reply::Done { finish, usage, receipt }) => {
                    self.open -= 1;
                    self.spoke.remove(&choice);
                    self.usage = self.usage + usage;
                    self.receipt = Some(self.receipt.map_or(receipt, |so_far| sum(so_far, receipt)));
                    return Heard::Ended(choice, finish);
                }
                Some(Reply::Failed { error, receipt }) => {
                    self.spoke.remove(&choice); // its receipt says what it cost
                    return self.fail(of_job(error, receipt));
                }
                None => return self.fail(ApiError::internal()),
            }
        }
        match self.receipt.take() {
            Some(receipt) => Heard::Done(self.usage, self.xram(receipt)),
            None => self.fail(ApiError::internal()),
        }
    }

    /// Ends all: a client that tries again by itself would pay twice for what was charged.
    fn fail(&mut self, error: ApiError) -> Heard {
        self.replies.clear();
        self.open = 0;
        let charged = self.receipt.take().is_some_and(|receipt| receipt.charge > XRam::ZERO);
        Heard::Failed(if charged || !self.spoke.is_empty() { error.after_charge() } else { error })
    }

    /// What an answer carries beside OpenAI's own fields.
    fn xram(&mut self, receipt: Receipt) -> XramFields {
        XramFields {
            tokens_charged: Some(receipt.charge),
            session_remaining: receipt.remaining,
            job_id: Some(self.job),
            provider: self.served_by.take(),
            price_per_1k: Some(receipt.price_per_1k),
        }
    }
}

/// What two jobs cost together. Each settlement gives the rest of its hold back, so the larger balance is the later.
fn sum(one: Receipt, other: Receipt) -> Receipt {
    Receipt {
        charge: XRam::from_units(one.charge.units().saturating_add(other.charge.units())),
        price_per_1k: one.price_per_1k.max(other.price_per_1k),
        remaining: one.remaining.max(other.remaining),
    }
}
