//! What has happened to a node, gathered from the effects of its agent.

use ram_core::job::{Failure, Outcome};
use ram_core::units::Timestamp;
use ram_proto::control::ToCoordinator;

use super::{JobCounts, PastError, Standing};
use crate::agent::{DrainedBy, Effect, Note};
use crate::plain::plain;

/// Where the node stands, and what has come of its jobs.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) standing: Standing,
    pub(crate) last_error: Option<PastError>,
    pub(crate) jobs: JobCounts,
}

impl Journal {
    /// Of a node that has just started.
    pub(crate) fn new() -> Self {
        Self { standing: Standing::Starting, last_error: None, jobs: JobCounts::default() }
    }

    /// Takes in what the agent did; answers whether an operator would see it at once.
    pub(crate) fn saw(&mut self, effect: &Effect, now: Timestamp) -> bool {
        match effect {
            Effect::Connect => self.standing = Standing::Connecting,
            Effect::Note(note) => self.read(note, now),
            Effect::Send(ToCoordinator::Finished { outcome, .. }) => self.count(*outcome),
            Effect::Exit => self.standing = Standing::Stopped,
            _ => return false,
        }
        true
    }

    /// The socket's own word for why it is gone, or somebody else's: made plain, for a terminal shows it.
    pub(crate) fn failed(&mut self, what: &str, now: Timestamp) {
        self.last_error = Some(PastError { at: now, what: plain(what) });
    }

    fn read(&mut self, note: &Note, now: Timestamp) {
        match note {
            Note::Registered { epoch, .. } => {
                self.standing = Standing::Registered { epoch: *epoch, since: now };
            }
            Note::Rejected { reason, retry_in } => {
                let (reason, retry_at) = (plain(&reason.to_string()), now.after(*retry_in));
                self.failed(&format!("the coordinator refused this node: {reason}"), now);
                self.standing = Standing::Refused { reason, retry_at };
            }
            Note::LinkLost { retry_in, .. } => {
                self.standing = Standing::Disconnected { retry_at: now.after(*retry_in) };
            }
            Note::PeerAtFault { what, retry_in } => {
                self.failed(&format!("the coordinator broke the protocol: {what}"), now);
                self.standing = Standing::Disconnected { retry_at: now.after(*retry_in) };
            }
            Note::Draining { by, .. } => {
                self.standing = Standing::Draining { leaves: *by == DrainedBy::Operator };
            }
            Note::Unsupported { .. } | Note::DrainTimedOut { .. } => {}
        }
    }

    fn count(&mut self, outcome: Outcome) {
        let jobs = &mut self.jobs;
        match outcome {
            Outcome::Done { usage, .. } => {
                jobs.done += 1;
                jobs.tokens_read += usage.prompt;
                jobs.tokens_written += usage.completion;
            }
            Outcome::Failed { failure: Failure::Cancelled } => jobs.cancelled += 1,
            Outcome::Failed { .. } => jobs.failed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::id::{Attempt, Epoch, JobId};
    use ram_core::job::{FinishReason, Usage};
    use ram_core::units::TokenCount;
    use ram_proto::control::RejectReason;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(5_000);

    fn finished(outcome: Outcome) -> Effect {
        Effect::Send(ToCoordinator::Finished { job: JobId::from_bits(1), attempt: Attempt::FIRST, outcome })
    }

    #[test]
    fn a_standing_follows_the_notes() {
        let mut journal = Journal::new();
        let retry_in = Duration::from_secs(2);
        let retry_at = Timestamp::from_millis(7_000);
        let mut check = |effect: Effect, expected: Standing| {
            assert!(journal.saw(&effect, NOW));
            assert_eq!(journal.standing, expected, "{effect:?}");
        };
        let provider = "p_00000000000000000000000000000000".parse().unwrap();
        let epoch = Epoch::new(2);
        check(Effect::Connect, Standing::Connecting);
        check(Effect::Note(Note::Registered { provider, epoch }), Standing::Registered { epoch, since: NOW });
        check(Effect::Note(Note::LinkLost { cancelled: 0, retry_in }), Standing::Disconnected { retry_at });
        let reason = RejectReason::Full.to_string();
        let refused = Note::Rejected { reason: RejectReason::Full, retry_in };
        check(Effect::Note(refused), Standing::Refused { reason, retry_at });
        let draining = Note::Draining { running: 1, by: DrainedBy::Operator };
        check(Effect::Note(draining), Standing::Draining { leaves: true });
        check(Effect::Exit, Standing::Stopped);
        assert!(!journal.saw(&Effect::CloseLink, NOW));
        assert!(journal.last_error.unwrap().what.contains("full"));
    }

    #[test]
    fn each_job_is_counted_by_its_end() {
        let mut journal = Journal::new();
        let usage = Usage { prompt: TokenCount::new(5), completion: TokenCount::new(7), ..Usage::default() };
        journal.saw(&finished(Outcome::Done { finish: FinishReason::Stop, usage }), NOW);
        for failure in [Failure::Cancelled, Failure::OutOfMemory, Failure::ModelUnavailable] {
            journal.saw(&finished(Outcome::Failed { failure }), NOW);
        }
        let JobCounts { done, failed, cancelled, tokens_read, tokens_written } = journal.jobs;
        assert_eq!((done, failed, cancelled), (1, 2, 1));
        assert_eq!((tokens_read.get(), tokens_written.get()), (5, 7));
    }
}
