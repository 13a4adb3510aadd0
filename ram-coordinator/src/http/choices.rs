//! The choices of one request, each a job of its own, heard as one answer.
//!
//! A request with `n` choices is `n` jobs, submitted together and run wherever there is room; the first has the
//! request's number. One that fails takes the whole request with it, and the others are abandoned: nobody can use a
//! part of what was asked for. What is told of money and usage is the sum, and [`Charged`] tells whether there is any.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll, unfold};
use ram_core::id::JobId;
use ram_core::job::Usage;
use ram_core::units::XRam;
use ram_proto::openai::{AnswerPiece, ApiError, Heard, ServedBy, XramFields};

use crate::run::Replies;
use crate::state::{Receipt, Reply};

use super::error::of_job;

/// Whether a request was charged for, or may have been; it goes with the answer as an extension, since neither status
/// nor headers can tell. Final once the answer's body has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Charged(Arc<AtomicBool>);

impl Charged {
    /// What is known so far.
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn certain() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All choices of one request. Dropping them before [`Heard::Done`] abandons what still runs.
pub(super) struct Choices {
    /// The replies to each that has not ended; `None` stands for a reader that was cut off.
    replies: SelectAll<BoxStream<'static, (u32, Option<Reply>)>>,
    /// The first choice's job, which the request is known by.
    job: JobId,
    /// Who took that job last.
    served_by: Option<ServedBy>,
    open: usize,
    /// Choices that somebody took and that have no end yet: tokens may have come of them, which are charged.
    started: BTreeSet<u32>,
    charged: Charged,
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
            started: BTreeSet::new(),
            charged: Charged::default(),
            usage: Usage::default(),
            receipt: None,
        }
    }

    /// Whether they were charged for, now and later.
    pub(super) fn charged(&self) -> Charged {
        self.charged.clone()
    }

    /// What comes next; nothing follows [`Heard::Done`] and [`Heard::Failed`]. Cancel-safe.
    pub(super) async fn next(&mut self) -> Heard {
        while self.open > 0 {
            let Some((choice, reply)) = self.replies.next().await else { break };
            match reply {
                Some(Reply::Started { provider, name, .. }) => {
                    self.started.insert(choice);
                    if choice == 0 {
                        self.served_by = Some(ServedBy { id: provider, name });
                    }
                }
                Some(Reply::Delta { content, reasoning, tool_calls, logprobs }) => {
                    self.started.insert(choice);
                    let piece = AnswerPiece { content, reasoning, tool_calls, logprobs };
                    if piece != AnswerPiece::default() {
                        return Heard::Piece(choice, piece); // tokens without a word are no news
                    }
                }
                Some(Reply::Done { finish, usage, receipt }) => {
                    self.open -= 1;
                    self.started.remove(&choice);
                    self.charged.set(); // even an answer that cost nothing is one
                    self.usage = self.usage + usage;
                    self.receipt = Some(self.receipt.map_or(receipt, |so_far| sum(so_far, receipt)));
                    return Heard::Ended(choice, finish);
                }
                Some(Reply::Failed { error, receipt }) => {
                    self.started.remove(&choice); // its receipt says what it cost
                    let was_charged = receipt.is_some_and(|receipt| receipt.charge > XRam::ZERO);
                    return self.fail(of_job(error), was_charged);
                }
                // What was asked in words is not answered in boxes.
                Some(Reply::Sealed { .. }) | None => return self.fail(ApiError::internal(), false),
            }
        }
        match self.receipt.take() {
            Some(receipt) => Heard::Done(self.usage, self.xram(receipt)),
            None => self.fail(ApiError::internal(), false),
        }
    }

    /// Ends all: a client that tries again by itself would pay twice for what was charged. Nobody waits to hear what
    /// the choices that still run have cost, so each that was taken counts.
    fn fail(&mut self, error: ApiError, was_charged: bool) -> Heard {
        self.replies.clear();
        self.open = 0;
        let ended = self.receipt.take().is_some_and(|receipt| receipt.charge > XRam::ZERO);
        if ended || was_charged || !self.started.is_empty() {
            self.charged.set();
            return Heard::Failed(error.after_charge());
        }
        Heard::Failed(error)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::JobError;
    use ram_core::chat::PromptText;
    use ram_core::id::NodeKey;
    use ram_core::job::{Failure, FinishReason};
    use ram_core::units::TokenCount;

    fn started() -> Reply {
        let provider = NodeKey::from_bytes([7; 32]).provider_id();
        Reply::Started { provider, name: "node".parse().unwrap(), prompt: TokenCount::new(9) }
    }

    fn receipt(charge: u128) -> Receipt {
        Receipt { charge: XRam::from_units(charge), price_per_1k: XRam::ZERO, remaining: None }
    }

    fn done(charge: u128) -> Reply {
        Reply::Done { finish: FinishReason::Stop, usage: Usage::default(), receipt: receipt(charge) }
    }

    fn failed(receipt: Option<Receipt>) -> Reply {
        Reply::Failed { error: JobError::Provider { failure: Failure::InvalidPrompt }, receipt }
    }

    fn word() -> Reply {
        let (content, reasoning) = ("Paris".into(), PromptText::default());
        Reply::Delta { content, reasoning, tool_calls: Vec::new(), logprobs: Vec::new() }
    }

    /// Whether these replies, one list for each choice, count as charged in the end; and the error, if they have one.
    async fn outcome(choices: Vec<Vec<Reply>>) -> (bool, Option<ApiError>) {
        let (mut kept, mut replies) = (Vec::new(), Vec::new());
        for (number, told) in (1..).zip(choices) {
            let (sender, left, heard) = Replies::scripted(JobId::from_bits(number));
            told.into_iter().for_each(|reply| sender.try_send(reply).unwrap());
            kept.push((sender, left));
            replies.push(heard);
        }
        let mut choices = Choices::new(JobId::from_bits(1), replies);
        let charged = choices.charged();
        loop {
            match choices.next().await {
                Heard::Failed(error) => return (charged.get(), Some(error)),
                Heard::Done(..) => return (charged.get(), None),
                Heard::Piece(..) | Heard::Ended(..) => {}
            }
        }
    }

    async fn check(choices: Vec<Vec<Reply>>, is_charged: bool) {
        let (charged, error) = outcome(choices).await;
        assert_eq!((charged, error.unwrap().should_retry == Some(false)), (is_charged, is_charged));
    }

    #[tokio::test]
    async fn an_error_says_that_there_was_a_charge_where_there_may_have_been_one() {
        let here = || vec![started()];
        check(vec![vec![failed(None)]], false).await;
        check(vec![vec![started(), failed(None)]], false).await;
        check(vec![vec![started(), word(), failed(Some(receipt(0)))]], false).await;
        check(vec![vec![started(), word(), failed(Some(receipt(1)))]], true).await;
        check(vec![vec![failed(None)], vec![]], false).await;
        check(vec![here(), vec![started(), word(), failed(None)]], true).await;
        check(vec![vec![started(), done(1)], vec![started(), word(), failed(None)]], true).await;
    }

    #[tokio::test]
    async fn an_answer_counts_even_if_it_cost_nothing() {
        let (charged, error) = outcome(vec![vec![started(), done(0)]]).await;
        assert!(charged && error.is_none());
    }
}
