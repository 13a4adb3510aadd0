//! What providers are believed, and what they are thought of: an answer is judged before it is paid, and what its
//! provider did is remembered.

use ram_core::id::{JobId, ProviderId};
use ram_core::job::{Failure, FinishReason, Usage};
use ram_core::reputation::Deed;
use ram_core::units::{Bytes, Timestamp};
use ram_core::validate::{self, Claim, Evidence, Recent, Unrewarded, Verdict};

use super::event::{Effect, JobError, SettleOrder};
use super::jobs::{End, Phase, Run};
use super::{Coordinator, Standing};

impl Coordinator {
    /// A provider says that an answer is whole: true only of a prompt that it has counted, and for no more than that.
    pub(super) fn done(
        &mut self,
        provider: ProviderId,
        job: JobId,
        finish: FinishReason,
        usage: Usage,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        let Phase::Running(Run { prompt, heard, boxes, .. }) = &record.phase else { return };
        if record.ask.plain().is_none() && !boxes.is_whole {
            self.strike(provider, now);
            return self.attempt_failed(job, Failure::Internal, None, now, effects);
        }
        if heard.as_ref().is_some_and(|heard| !heard.is_written()) {
            return self.differs(job, now, effects); // it is shorter than what the user was told
        }
        let Some(counted) = *prompt else {
            self.strike(provider, now);
            return self.attempt_failed(job, Failure::Internal, None, now, effects);
        };
        let usage = Usage { prompt: usage.prompt.min(counted), ..usage };
        self.settle(job, usage, End::Whole { finish, usage }, now, effects);
    }

    /// An answer that was begun anew is not what the user was told: it is cut where it is.
    pub(super) fn differs(&mut self, job: JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let failure = Failure::Internal;
        let end = End::Cut { error: JobError::Provider { failure } };
        self.attempt_failed(job, failure, Some(end), now, effects);
    }

    /// What the result of a running job is worth, whole or cut.
    pub(super) fn verdict(&mut self, job: JobId, claim: Usage, end: &End, now: Timestamp) -> Verdict {
        let Some(record) = self.jobs.get_mut(job) else { return Verdict::Good };
        let Phase::Running(run) = &record.phase else { return Verdict::Good };
        let mut forgotten = Recent::default(); // a node that is gone takes its answers along
        let node = self.registry.node_mut(run.provider);
        let provider_wallet = node.as_ref().and_then(|node| node.spec.wallet);
        let recent = node.map_or(&mut forgotten, |node| &mut node.recent);
        let finish = match end {
            End::Whole { finish, .. } => Some(*finish),
            End::Cut { .. } | End::Abandoned => None,
        };
        let claim = Claim {
            model: record.spec,
            // What is claimed beyond what came is not paid, and proves nothing: a chunk may be lost on the way.
            tokens: claim.completion.min(run.delivered),
            tokens_max: record.ask.max_tokens(),
            unseen: record.unseen(),
            finish,
            took: now.since(run.sent_at),
            provider_wallet,
            client_wallet: record.client_wallet(),
        };
        let evidence = match record.ask.plain() {
            Some(_) => Evidence::Plain { digest: &run.digest, prompt: record.prompt_hash(), recent },
            None => Evidence::Sealed { bytes: Bytes::new(run.boxes.bytes) },
        };
        validate::judge(evidence, &claim)
    }

    /// A provider claimed what cannot be. Nobody pays; if the user has heard nothing yet, somebody else tries.
    pub(super) fn refuse_result(
        &mut self,
        order: SettleOrder,
        end: End,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let job = order.job;
        self.standings.note(order.provider, Deed::Refused, now);
        effects.push(Effect::Refuse(order));
        let spoke = self.jobs.get_mut(job).is_some_and(|record| record.spoke());
        let failure = Failure::Internal;
        match end {
            End::Whole { .. } if !spoke => self.attempt_failed(job, failure, None, now, effects),
            End::Whole { .. } => self.void(job, Some(JobError::Provider { failure }), effects),
            End::Cut { error } => self.void(job, Some(error), effects),
            End::Abandoned => self.void(job, None, effects),
        }
    }

    /// What a result that is paid says of its provider.
    pub(super) fn credit(&mut self, provider: ProviderId, verdict: Verdict, end: &End, now: Timestamp) {
        let is_whole = matches!(end, End::Whole { .. });
        if let Some(node) = self.registry.node_mut(provider).filter(|_| is_whole) {
            node.strikes = 0;
        }
        match verdict {
            Verdict::Good if is_whole => self.standings.note(provider, Deed::Served, now),
            // To serve oneself is no fault, only no merit.
            Verdict::Good | Verdict::Unrewarded(Unrewarded::SelfDealing) | Verdict::Refused(_) => {}
            Verdict::Unrewarded(_) => self.standings.note(provider, Deed::Unrewarded, now),
        }
    }

    /// A provider failed a job by its own fault. One that does nothing else rests for a while (`route` names it), and
    /// starts afresh when it connects anew; what it did is remembered all the same.
    pub(super) fn strike(&mut self, provider: ProviderId, now: Timestamp) {
        if let Some(node) = self.registry.node_mut(provider) {
            node.strikes += 1;
            node.struck_at = now;
        }
        self.standings.note(provider, Deed::Failed, now);
    }

    /// Writes down what has changed in what is thought of providers.
    pub(super) fn note_standings(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let standings: Vec<Standing> =
            if self.draining { self.standings.unwritten(now) } else { self.standings.due(now) };
        if !standings.is_empty() {
            effects.push(Effect::NoteStandings(standings));
        }
    }
}
