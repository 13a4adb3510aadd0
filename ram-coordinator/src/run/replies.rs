//! The replies to one job, from the loop to whoever waits: bounded by number and by bytes.
//!
//! A reader who falls behind is cut off; one who leaves is noticed by its [`Replies`] being dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ram_core::chat::tools::ToolCall;
use ram_core::id::JobId;
use ram_core::job::TokenLogprob;
use tokio::sync::mpsc;

use crate::state::Reply;

/// Replies that may wait for one reader: at a provider's 20 chunks a second, 12 seconds of an answer.
const REPLIES_MAX: usize = 256;
/// Bytes of replies that may wait for one reader, whatever a provider puts into one chunk.
const REPLY_BYTES_MAX: usize = 256 << 10;

/// The replies to one job. Dropping them before the last one tells the core that nobody waits any more.
#[derive(Debug)]
pub struct Replies {
    job: JobId,
    replies: mpsc::Receiver<Reply>,
    /// Bytes of the replies that wait.
    waiting: Arc<AtomicUsize>,
    abandoned: mpsc::UnboundedSender<JobId>,
    ended: bool,
}

/// The loop's end of [`Replies`].
pub(super) struct ReplySender {
    replies: mpsc::Sender<Reply>,
    waiting: Arc<AtomicUsize>,
}

/// Both ends.
pub(super) fn pair(job: JobId, abandoned: mpsc::UnboundedSender<JobId>) -> (ReplySender, Replies) {
    let (sender, replies) = mpsc::channel(REPLIES_MAX);
    let waiting = Arc::<AtomicUsize>::default();
    let sender = ReplySender { replies: sender, waiting: Arc::clone(&waiting) };
    (sender, Replies { job, replies, waiting, abandoned, ended: false })
}

impl ReplySender {
    /// Whether nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.replies.is_closed()
    }

    /// Whether the reply went off: it does not when the reader is gone, or too far behind.
    pub(super) fn send(&self, reply: Reply) -> bool {
        let size = size(&reply);
        let before = self.waiting.fetch_add(size, Ordering::Relaxed);
        let fits = before == 0 || before + size <= REPLY_BYTES_MAX;
        fits && self.replies.try_send(reply).is_ok()
    }
}

/// About how much memory a reply takes beyond its own size.
fn size(reply: &Reply) -> usize {
    let (content, reasoning, tool_calls, logprobs) = match reply {
        Reply::Delta { content, reasoning, tool_calls, logprobs } => {
            (content, reasoning, tool_calls, logprobs)
        }
        Reply::Sealed { sealed, .. } => return sealed.as_base64().len(),
        Reply::Started { .. } | Reply::Done { .. } | Reply::Failed { .. } => return 0,
    };
    let own =
        |token: &TokenLogprob| size_of::<TokenLogprob>() + token.token.as_str().len() + token.bytes.len();
    let tokens: usize =
        logprobs.iter().map(|token| own(token) + token.top.iter().map(own).sum::<usize>()).sum();
    let calls: usize = tool_calls.iter().map(|call| size_of::<ToolCall>() + call.text_bytes()).sum();
    content.as_str().len() + reasoning.as_str().len() + calls + tokens
}

impl Replies {
    /// The job that they are about.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// The next reply; `None` after the last one, or when the reader was too slow and was cut off.
    pub async fn next(&mut self) -> Option<Reply> {
        let reply = self.replies.recv().await;
        if let Some(reply) = &reply {
            self.waiting.fetch_sub(size(reply), Ordering::Relaxed);
        }
        self.ended |= matches!(reply, None | Some(Reply::Done { .. } | Reply::Failed { .. }));
        reply
    }
}

#[cfg(test)]
impl Replies {
    /// Replies that a test makes, and where it sees whether they were abandoned.
    pub(crate) fn scripted(job: JobId) -> (mpsc::Sender<Reply>, mpsc::UnboundedReceiver<JobId>, Self) {
        let (abandoned, left) = mpsc::unbounded_channel();
        let (sender, replies) = pair(job, abandoned);
        replies.waiting.store(usize::MAX / 2, Ordering::Relaxed); // the test's end does not count bytes
        (sender.replies, left, replies)
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.abandoned.send(self.job); // a loop that stopped has no jobs to abandon
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::chat::PromptText;

    fn delta(bytes: usize) -> Reply {
        let content = "x".repeat(bytes).into();
        Reply::Delta {
            content,
            reasoning: PromptText::default(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
        }
    }

    #[test]
    fn calls_count_as_words_do() {
        let call = ToolCall { id: "a".into(), name: "b".into(), arguments: "x".repeat(1000).into() };
        let Reply::Delta { content, reasoning, logprobs, .. } = delta(0) else { panic!("a delta") };
        let calls = Reply::Delta { content, reasoning, tool_calls: vec![call; 10], logprobs };
        assert!(size(&calls) >= 10 * 1002);
    }

    fn ends() -> (ReplySender, Replies) {
        pair(JobId::from_bits(1), mpsc::unbounded_channel().0)
    }

    #[tokio::test]
    async fn a_reader_who_keeps_up_is_never_cut_off() {
        let (sender, mut replies) = ends();
        for _ in 0..10 * REPLIES_MAX {
            assert!(sender.send(delta(REPLY_BYTES_MAX / 2)) && sender.send(delta(REPLY_BYTES_MAX / 2)));
            let _ = (replies.next().await, replies.next().await);
        }
        assert!(sender.send(delta(2 * REPLY_BYTES_MAX)), "one reply always fits");
    }

    #[test]
    fn a_reader_who_falls_behind_is_cut_off_by_bytes_or_by_number() {
        let (sender, _replies) = ends();
        assert!(sender.send(delta(REPLY_BYTES_MAX)));
        assert!(!sender.send(delta(1)));
        let (sender, _replies) = ends();
        assert!((0..REPLIES_MAX).all(|_| sender.send(delta(1))));
        assert!(!sender.send(delta(1)));
    }

    #[test]
    fn a_reader_who_left_takes_nothing() {
        let (sender, replies) = ends();
        drop(replies);
        assert!(!sender.send(delta(1)));
    }
}
