//! Requests that their provider alone can read: whom to seal a prompt to, and boxes on their way back.
//!
//! Nothing here could open a box, nor could what this crate is built of. A prompt that is sealed to one provider is of
//! no use to another: the job has one try, and waits for nobody else. What is known of an answer is how many boxes it
//! came in, how long they were, and the tokens that the provider says it wrote.

use ram_core::catalog;
use ram_core::id::{JobId, ModelId, ProviderId};
use ram_core::job::{Failure, Job};
use ram_core::route;
use ram_core::units::{Timestamp, TokenCount};
use ram_proto::blob::Blob;
use ram_proto::control::ToProvider;
use ram_proto::control::sealed::{SealedChunk, SealedJob};
use ram_proto::rest::{E2eOffered, E2eProvider, E2eProviders};

use super::event::{Effect, JobError, Reply};
use super::jobs::{Bounds, Run, wish_for};
use super::registry::Node;
use super::{Coordinator, reply};

/// Bytes that a box has beside its text: padding up to 256, and a tag.
const BOX_BYTES: u64 = 512;

/// What is asked of a provider.
#[derive(Debug)]
pub(super) enum Ask {
    /// In words that the coordinator passes on.
    Plain(Box<Job>),
    /// In a box, of this provider alone.
    Sealed { job: SealedJob, provider: ProviderId },
}

impl Ask {
    pub(super) fn id(&self) -> JobId {
        match self {
            Self::Plain(job) => job.id,
            Self::Sealed { job, .. } => job.id,
        }
    }

    pub(super) fn model(&self) -> &ModelId {
        match self {
            Self::Plain(job) => &job.model,
            Self::Sealed { job, .. } => &job.model,
        }
    }

    /// Most tokens of the answer.
    pub(super) fn max_tokens(&self) -> TokenCount {
        match self {
            Self::Plain(job) => job.params.max_tokens,
            Self::Sealed { job, .. } => job.max_tokens,
        }
    }

    /// The words, if they can be read here.
    pub(super) fn plain(&self) -> Option<&Job> {
        match self {
            Self::Plain(job) => Some(job),
            Self::Sealed { .. } => None,
        }
    }

    /// Who alone may be asked, if not everybody.
    pub(super) fn only(&self) -> Option<ProviderId> {
        match self {
            Self::Plain(_) => None,
            Self::Sealed { provider, .. } => Some(*provider),
        }
    }
}

/// What has come of a sealed answer.
#[derive(Debug, Default)]
pub(super) struct Boxes {
    pub(super) bytes: u64,
    count: u64,
    pub(super) is_whole: bool,
}

impl Coordinator {
    /// The providers that open sealed prompts.
    #[must_use]
    pub fn e2e_providers(&self) -> E2eProviders {
        let view = |(_, node): (_, &Node)| {
            let provider = node.offered()?;
            Some(E2eProvider { provider, models: node.offers().map(|offer| offer.model.clone()).collect() })
        };
        E2eProviders { providers: self.registry.nodes().filter_map(view).collect() }
    }

    /// Whom a request for `model` should be sealed to now, and the model's full id. Nothing is kept of it: until the
    /// request comes, somebody else may have taken the place.
    ///
    /// # Errors
    /// [`JobError::UnknownModel`], [`JobError::NoCapacity`], [`JobError::Draining`].
    pub fn offer_sealed(
        &self,
        model: &ModelId,
        answer: TokenCount,
        preferred: Option<ProviderId>,
        now: Timestamp,
    ) -> Result<(ModelId, E2eOffered), JobError> {
        if self.draining {
            return Err(JobError::Draining);
        }
        let spec = catalog::resolve(model.as_str()).ok_or_else(|| JobError::UnknownModel(model.clone()))?;
        let id = spec.model_id();
        let opens = self.registry.offering(&id).filter(|(_, node)| node.knows_sealed);
        let candidates: Vec<_> = opens
            .map(|(provider, node)| {
                self.registry.candidate(provider, node, &id, self.standings.of(provider, now), now)
            })
            .collect();
        let wish = route::Wish { preferred, ..wish_for(spec, TokenCount::ZERO, answer) };
        let chosen = route::choose(&candidates, &wish).chosen;
        let offered = chosen.and_then(|provider| self.registry.node(provider)?.offered());
        offered.map(|offered| (id, offered)).ok_or_else(|| JobError::NoCapacity(model.clone()))
    }

    /// Hands the next box of an answer on.
    pub(super) fn sealed_chunk(
        &mut self,
        provider: ProviderId,
        chunk: SealedChunk,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let (job, attempt) = (chunk.job, chunk.attempt);
        let Some(record) = self.jobs.get_mut(job) else { return };
        let (bounds, is_sealed) = (record.bounds(), record.ask.plain().is_none());
        let Some(run) = record.run_of(provider, attempt) else { return };
        if chunk.seq < run.next_seq {
            return; // doubled on the way
        }
        if !is_sealed || !run.take_box(&chunk, bounds) {
            effects.extend(self.cancel(provider, job, attempt));
            self.strike(provider, now);
            return self.attempt_failed(job, Failure::Internal, None, now, effects);
        }
        let SealedChunk { tokens, nonce, sealed, last, .. } = chunk;
        if tokens == TokenCount::ZERO && sealed.is_none() {
            return; // and earns no further patience
        }
        run.deadline = now.after(self.config.limits.between_tokens);
        effects.extend(record.checkpoint(now).map(Effect::Checkpoint));
        if let Some(sealed) = sealed {
            effects.push(reply(job, Reply::Sealed { nonce, sealed, last }));
        }
    }
}

impl Run {
    /// Takes a box in, or answers that no honest provider sends it: out of turn, before the prompt was counted, behind
    /// the last one, or more than was asked for.
    #[must_use]
    fn take_box(&mut self, chunk: &SealedChunk, bounds: Bounds) -> bool {
        let boxes = &self.boxes;
        let count = boxes.count + u64::from(chunk.sealed.is_some());
        let bytes = boxes.bytes + chunk.sealed.as_ref().map_or(0, Blob::len) as u64;
        let delivered = self.delivered + chunk.tokens;
        let is_honest = self.prompt.is_some()
            && chunk.seq == self.next_seq
            && !boxes.is_whole
            && delivered <= bounds.tokens()
            && bytes <= bounds.text_bytes_max().saturating_add(count.saturating_mul(BOX_BYTES))
            && chunk.nonce.is_some() == (chunk.sealed.is_some() && boxes.count == 0)
            && (chunk.sealed.is_some() || !chunk.last);
        if is_honest {
            self.next_seq += 1;
            self.delivered = delivered;
            self.boxes = Boxes { bytes, count, is_whole: chunk.last };
        }
        is_honest
    }
}

/// The message by which a provider is asked.
pub(super) fn run(
    ask: &Ask,
    attempt: ram_core::id::Attempt,
    group: Option<ram_core::id::GroupId>,
) -> ToProvider {
    match ask {
        Ask::Plain(job) => ToProvider::Run { attempt, job: job.clone(), group },
        Ask::Sealed { job, .. } => ToProvider::RunSealed { attempt, job: Box::new(job.clone()), group },
    }
}
