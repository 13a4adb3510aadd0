//! How jobs find providers, and how they end.

use ram_core::id::{Attempt, JobId, ProviderId};
use ram_core::job::{Failure, Retry, Usage};
use ram_core::provider::ModelState;
use ram_core::route::{self, Candidate};
use ram_core::units::Timestamp;
use ram_core::validate::Verdict;
use ram_proto::control::ToProvider;

use super::event::{Effect, JobError, Payer, Reply};
use super::jobs::{End, Phase, Run};
use super::{Coordinator, reply, sealed, send};

/// Heads that may try one job: a pipeline that loses one is whole again in a moment.
const HEADS_MAX: u32 = 8;

impl Coordinator {
    /// Gives a queued job to the best provider, if any can take it now.
    pub(super) fn dispatch(&mut self, job: JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let limits = self.config.limits;
        let Some(record) = self.jobs.get_mut(job) else { return };
        let candidates: Vec<Candidate<'_>> = self
            .registry
            .offering(record.ask.model())
            .filter(|(provider, _)| record.ask.only().is_none_or(|only| only == *provider))
            .map(|(provider, node)| {
                let reputation = self.standings.of(provider, now);
                self.registry.candidate(provider, node, record.ask.model(), reputation, now)
            })
            .collect();
        let wish = record.wish();
        let Some(provider) = route::choose(&candidates, &wish).chosen else { return };
        let Some(node) = self.registry.node_mut(provider) else { return };
        let loaded = node.offer(record.ask.model()).is_some_and(|offer| offer.state == ModelState::Loaded);
        let patience = if loaded { limits.first_token } else { limits.first_token_cold };
        let attempt = record.attempts.map_or(Attempt::FIRST, Attempt::next);
        record.attempts = Some(attempt);
        let group = node.pipeline(record.ask.model());
        if group.is_none() {
            record.tried.push(provider); // a head is tried again: another may have been at fault
        }
        let told = record.interrupted.take().and_then(|run| run.heard);
        let heard = told.map(|heard| Box::new(heard.again())).or_else(|| group.map(|_| Box::default()));
        record.phase = Phase::Running(Run { group, heard, ..Run::new(provider, attempt, now, patience) });
        node.running.insert(job);
        effects.push(send(node.conn, sealed::run(&record.ask, attempt, group)));
        let model = record.ask.model().clone();
        self.jobs.unqueue(&model, job);
    }

    /// Capacity may have come: tries each model's queue from the front until a job finds nobody. One that has failed
    /// somewhere is choosier than those behind it and does not speak for them.
    pub(super) fn serve_waiting(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for model in self.jobs.waiting_models() {
            for job in self.jobs.waiting(&model) {
                let waiting = self.jobs.queued(&model);
                let untried = self.jobs.get_mut(job).is_some_and(|record| record.tried.is_empty());
                self.dispatch(job, now, effects);
                if untried && self.jobs.queued(&model) == waiting {
                    break;
                }
            }
        }
    }

    /// An attempt ended without a whole answer: another provider tries, or what was delivered is paid, or nothing is.
    pub(super) fn attempt_failed(
        &mut self,
        job: JobId,
        failure: Failure,
        end: Option<End>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        let Phase::Running(run) = &record.phase else { return };
        let is_anyones = record.ask.only().is_none();
        let is_pipeline = is_anyones && run.group.is_some() && self.groups.has(record.ask.model());
        let tries_max = if is_pipeline { HEADS_MAX } else { self.config.limits.attempts };
        let tries_left = record.attempts.is_some_and(|attempt| attempt.get() < tries_max);
        let may_go_on = failure.retry() == Retry::Elsewhere && tries_left && end.is_none() && !self.draining;
        if record.spoke() {
            if may_go_on && is_pipeline {
                return self.interrupt(job, now, effects);
            }
            let usage = record.so_far(run);
            let end = end.unwrap_or(End::Cut { error: JobError::Provider { failure } });
            return self.settle(job, usage, end, now, effects);
        }
        if end.is_some() {
            return self.void(job, None, effects);
        }
        let is_new = |(provider, _)| !record.tried.contains(&provider);
        let someone_new =
            is_anyones && (is_pipeline || self.registry.offering(record.ask.model()).any(is_new));
        if may_go_on && someone_new {
            self.jobs.queue(job, now);
            self.dispatch(job, now, effects);
        } else {
            self.void(job, Some(JobError::Provider { failure }), effects);
        }
    }

    /// An answer of which the user has heard goes on at the next head of its pipeline.
    fn interrupt(&mut self, job: JobId, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        if let Phase::Running(run) = std::mem::replace(&mut record.phase, Phase::Queued { since: now }) {
            record.interrupted = Some(Box::new(run));
        }
        self.jobs.queue(job, now);
        self.dispatch(job, now, effects);
    }

    /// Ends a job that waits: what it was told, if anything, is paid.
    pub(super) fn end_waiting(
        &mut self,
        job: JobId,
        end: Option<JobError>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        if !record.take_up() {
            return self.void(job, end, effects);
        }
        let model = record.ask.model().clone();
        let Phase::Running(run) = &record.phase else { return };
        let (usage, end) = (record.so_far(run), end.map_or(End::Abandoned, |error| End::Cut { error }));
        self.jobs.unqueue(&model, job);
        self.settle(job, usage, end, now, effects);
    }

    /// Asks the provider of an attempt to stop. Unless the caller frees it, its slot stays taken until it says that it
    /// has: one that hangs gets no further jobs.
    pub(super) fn cancel(&self, provider: ProviderId, job: JobId, attempt: Attempt) -> Option<Effect> {
        let node = self.registry.node(provider)?;
        Some(send(node.conn, ToProvider::Cancel { job, attempt }))
    }

    /// Pays for what was delivered, if that is what it says it is; the user hears the end when the store has answered.
    pub(super) fn settle(
        &mut self,
        job: JobId,
        claim: Usage,
        end: End,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let verdict = self.verdict(job, claim, &end, now);
        let Some(record) = self.jobs.get_mut(job) else { return };
        let Phase::Running(run) = &record.phase else { return };
        let (order, charge) = record.settle(run, claim, verdict);
        if let Verdict::Refused(_) = verdict {
            return self.refuse_result(order, end, now, effects);
        }
        let used = order.usage.prompt + order.usage.completion;
        let end = match end {
            End::Whole { finish, .. } => End::Whole { finish, usage: order.usage },
            other => other,
        };
        if let Payer::Demo(address) = record.payer {
            self.demo.give_back(address, record.worst_case().saturating_sub(used), record.admitted_at);
        }
        self.credit(order.provider, verdict, &end, now);
        if let Some(record) = self.jobs.get_mut(job) {
            record.phase = Phase::Settling { end, charge };
        }
        self.totals.tokens += used;
        effects.push(Effect::Settle(order));
    }

    /// Ends a job that took nothing: the hold is released, and the user, if there is one, is told.
    pub(super) fn void(&mut self, job: JobId, error: Option<JobError>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Void { job });
        match error {
            Some(error) => self.end(job, error, effects),
            None => self.forget(job),
        }
    }

    pub(super) fn end(&mut self, job: JobId, error: JobError, effects: &mut Vec<Effect>) {
        self.forget(job);
        effects.push(reply(job, Reply::Failed { error, receipt: None }));
    }

    pub(super) fn forget(&mut self, job: JobId) {
        let Some(record) = self.jobs.remove(job) else { return };
        self.totals.jobs_failed += 1;
        if let Payer::Demo(address) = record.payer {
            self.demo.give_back(address, record.worst_case(), record.admitted_at);
        }
    }
}
