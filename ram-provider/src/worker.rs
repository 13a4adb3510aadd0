//! The engines of this node, and the answers that they write: thoughts told from words, speeds measured.
//!
//! ```text
//! Worker::answer -> Engine::submit -> Generation -> Splitter (<think>) -> Answer::next -> Step
//! ```
//!
//! Both ways to serve use it: the network by way of the agent, and the local server directly. Dropping an [`Answer`]
//! cancels it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use ram_core::chat::reasoning::{ReasoningFilter, Split, Start};
use ram_core::chat::template::TemplateOptions;
use ram_core::chat::{ChatMessage, PromptText, Role};
use ram_core::id::ModelId;
use ram_core::job::{Failure, GenerationParams, Outcome, TokenLogprob};
use ram_core::memory::{self, HEADROOM_PERCENT, Room, Verdict, Workload};
use ram_core::provider::{Hardware, ModelOffer, ModelState};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Generation, Prompt, Request};
use ram_infer::error::InferError;
use ram_infer::tokenize::Tokenizer;

use crate::ProviderError;
use crate::agent::Piece;
use crate::config::ProviderConfig;
use crate::models::{self, FoundModel};
use crate::speed::SpeedMeter;

/// Jobs that may wait for each slot: a fifth one waits longer than at another node.
const QUEUE_PER_SLOT: u16 = 4;

/// All engines of this node.
#[derive(Debug)]
pub struct Worker {
    models: Vec<Arc<Served>>,
    memory_free: Bytes,
}

/// One model that is in memory.
#[derive(Debug)]
pub struct Served {
    id: ModelId,
    alias: Option<ModelId>,
    engine: Engine,
    start: Start,
    meter: Mutex<SpeedMeter>,
}

/// What happens in an answer: at most one start, then pieces, then one end.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The prompt fits and is being read.
    Started {
        /// Tokens of the rendered prompt.
        prompt: TokenCount,
    },
    /// More of the answer.
    Piece(Piece),
    /// It is over.
    End(Outcome),
}

impl Worker {
    /// Finds and loads every model of the configuration. Takes as long as reading their weights: not for an async task.
    ///
    /// # Errors
    /// [`ProviderError`], which names the model and what the operator can do: it lies nowhere, does not fit under the
    /// memory cap, or does not load.
    pub fn load(config: &ProviderConfig, hardware: &Hardware) -> Result<Self, ProviderError> {
        let cache = models::hub_cache(|name| std::env::var_os(name).map(Into::into));
        let mut planned: Vec<Planned> = Vec::new();
        let mut left = Room { usable: hardware.usable_memory, cap: memory_cap(config, hardware) };
        for choice in &config.models {
            let found = models::find(choice, &config.home, cache.as_deref())?;
            if planned.iter().any(|other| other.found.id == found.id) {
                return Err(ProviderError::ModelTwice { model: found.id });
            }
            planned.push(plan(found, &mut left)?);
        }
        // What is left is for longer and more conversations, in equal parts, less the headroom that it needs itself.
        let models = planned.len().max(1) as u64;
        let spare = Bytes::new(left.available().get() / models / (100 + HEADROOM_PERCENT) * 100);
        let load =
            |planned: Planned| Served::load(planned.found, planned.cache + spare, config).map(Arc::new);
        let models = planned.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { models, memory_free: left.available() })
    }

    /// The model of this alias or full id, if it is served here.
    #[must_use]
    pub fn model(&self, name: &ModelId) -> Option<&Arc<Served>> {
        self.models.iter().find(|served| served.id == *name || served.alias.as_ref() == Some(name))
    }

    /// All models that are served here.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.models.iter()
    }

    /// What the node tells the network that it serves.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let offer = |served: &Arc<Served>| ModelOffer {
            model: served.id.clone(),
            state: ModelState::Loaded,
            speed: served.meter().speed(),
        };
        self.models.iter().map(offer).collect()
    }

    /// Memory under the cap that no model has asked for; the caches of long conversations may grow into it.
    #[must_use]
    pub const fn memory_free(&self) -> Bytes {
        self.memory_free
    }
}

/// The most that models may take together: the operator's cap, or all that the machine can use.
#[must_use]
pub fn memory_cap(config: &ProviderConfig, hardware: &Hardware) -> Bytes {
    config.memory_cap.unwrap_or(hardware.usable_memory).min(hardware.usable_memory)
}

/// Jobs that may wait on a node of this many slots.
pub(crate) const fn queue_max(slots: u16) -> u16 {
    slots.saturating_mul(QUEUE_PER_SLOT)
}

/// A model that fits, before it is loaded.
struct Planned {
    found: FoundModel,
    cache: Bytes,
}

/// Sets memory aside for a model with one conversation of usual length, or says why there is not enough.
fn plan(found: FoundModel, left: &mut Room) -> Result<Planned, ProviderError> {
    let needs = match models::needs(&found.dir, Workload::default()) {
        Ok(needs) => needs,
        Err(source) => {
            return Err(ProviderError::Model { model: found.id, dir: found.dir, source: source.into() });
        }
    };
    match memory::fit(needs, *left) {
        Verdict::Fits { needed, .. } => {
            *left = Room { usable: left.usable.saturating_sub(needed), cap: left.cap.saturating_sub(needed) };
            Ok(Planned { found, cache: needs.cache })
        }
        verdict @ Verdict::TooLarge { .. } => {
            Err(ProviderError::ModelTooLarge { model: found.id, verdict: Box::new(verdict) })
        }
    }
}

impl Served {
    fn load(found: FoundModel, kv_bytes_max: Bytes, config: &ProviderConfig) -> Result<Self, ProviderError> {
        let FoundModel { id, alias, dir } = found;
        let slots = config.slots;
        let engine_config = EngineConfig {
            slots,
            // Beyond the agent's own bound, for a cancelled run leaves its place here a moment later than there.
            queue_max: queue_max(slots.get()).saturating_add(slots.get()),
            kv_bytes_max: Some(kv_bytes_max),
            ..EngineConfig::default()
        };
        let load = || {
            let start = answer_start(&dir)?;
            Engine::load(&dir, &Device::best(), engine_config).map(|engine| (engine, start))
        };
        match load() {
            Ok((engine, start)) => Ok(Self { id, alias, engine, start, meter: Mutex::default() }),
            Err(source) => Err(ProviderError::Model { model: id, dir, source: source.into() }),
        }
    }

    /// Its full id.
    #[must_use]
    pub const fn id(&self) -> &ModelId {
        &self.id
    }

    /// Its short name, if the catalogue has one; else its full id.
    #[must_use]
    pub fn short_name(&self) -> &ModelId {
        self.alias.as_ref().unwrap_or(&self.id)
    }

    /// The longest prompt with its answer.
    #[must_use]
    pub fn context(&self) -> TokenCount {
        self.engine.info().context
    }

    /// Begins an answer. Writes and encodes the prompt on a thread where that may take long.
    ///
    /// # Errors
    /// [`Failure`] when the engine cannot take it now.
    pub async fn answer(
        self: Arc<Self>,
        messages: Vec<ChatMessage>,
        params: GenerationParams,
    ) -> Result<Answer, Failure> {
        let engine = self.engine.clone();
        let request = Request { prompt: Prompt::Chat(messages), params };
        let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
        let generation = submitted.map_err(|_| Failure::Internal)??;
        Ok(Answer {
            splitter: Splitter::new(self.start),
            served: self,
            generation,
            pace: Pace::default(),
            end: None,
            ended: false,
        })
    }

    /// Tells the operator why the model itself failed. A fault holds no word of a prompt.
    fn log_fault(&self, outcome: &Outcome) {
        if let Outcome::Failed { failure: Failure::Internal | Failure::OutOfMemory } = outcome
            && let Some(fault) = self.engine.last_fault()
        {
            tracing::warn!(model = %self.id(), %fault, "the model failed");
        }
    }

    fn is_alone(&self) -> bool {
        self.engine.occupancy().running <= 1
    }

    fn meter(&self) -> MutexGuard<'_, SpeedMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner) // two plain numbers: no panic leaves them half
    }
}

/// Whether the model's template opens `<think>` for the model, seen on the prompt of a probe.
fn answer_start(dir: &Path) -> Result<Start, InferError> {
    let tokenizer = Tokenizer::load(dir)?;
    if !tokenizer.has_template() {
        return Ok(Start::Answer);
    }
    let options = TemplateOptions { today: Some(Timestamp::ZERO), ..TemplateOptions::default() };
    let probe = [ChatMessage::new(Role::User, "hello")];
    let prompt = tokenizer.decode(&tokenizer.encode_chat(&probe, &options)?)?;
    Ok(Start::after_prompt(&prompt))
}

/// One answer as it comes. Dropping it cancels it.
#[derive(Debug)]
pub struct Answer {
    served: Arc<Served>,
    generation: Generation,
    splitter: Splitter,
    pace: Pace,
    /// How it ended, while the last piece goes first.
    end: Option<Outcome>,
    ended: bool,
}

impl Answer {
    /// The next step; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Step> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(outcome) = self.end.take() {
                self.ended = true;
                return Some(Step::End(self.splitter.count_reasoning(outcome)));
            }
            match self.generation.next().await {
                Some(Event::Started { prompt }) => {
                    self.pace.started(prompt);
                    return Some(Step::Started { prompt });
                }
                Some(Event::Delta { text, tokens, logprobs }) => {
                    self.pace.wrote(tokens, &self.served);
                    if let Some(piece) = self.splitter.push(&text, tokens, logprobs) {
                        return Some(Step::Piece(piece));
                    }
                }
                Some(Event::End { outcome }) => {
                    self.pace.ended(&self.served);
                    self.served.log_fault(&outcome);
                    self.end = Some(outcome);
                    if let Some(piece) = self.splitter.finish() {
                        return Some(Step::Piece(piece));
                    }
                }
                None => self.end = Some(Outcome::Failed { failure: Failure::Internal }),
            }
        }
    }
}

/// Tells thoughts from words, and which tokens and log-probabilities belong to which.
#[derive(Debug)]
struct Splitter {
    filter: Option<ReasoningFilter>,
    /// Tokens whose text the filter holds back, and their log-probabilities.
    held: TokenCount,
    held_logprobs: Vec<TokenLogprob>,
    thinking: bool,
    reasoning: TokenCount,
}

impl Splitter {
    fn new(start: Start) -> Self {
        Self {
            filter: Some(ReasoningFilter::new(start)),
            held: TokenCount::ZERO,
            held_logprobs: Vec::new(),
            thinking: start == Start::Reasoning,
            reasoning: TokenCount::ZERO,
        }
    }

    /// Takes a stretch of the answer; `None` while its meaning is open.
    fn push(&mut self, text: &PromptText, tokens: TokenCount, logprobs: Vec<TokenLogprob>) -> Option<Piece> {
        let split = self.filter.as_mut().map(|filter| filter.push(text.as_str())).unwrap_or_default();
        self.held_logprobs.extend(logprobs);
        if split.is_empty() {
            self.held += tokens;
            return None;
        }
        Some(self.piece(split, tokens))
    }

    /// What was held back, and tokens that had no text.
    fn finish(&mut self) -> Option<Piece> {
        let split = self.filter.take().map(ReasoningFilter::finish).unwrap_or_default();
        let piece = self.piece(split, TokenCount::ZERO);
        (piece != Piece::default()).then_some(piece)
    }

    /// Tokens held back before words began were still thoughts (the tag, the blank line after it); those of a tag that
    /// opens are thoughts too.
    fn piece(&mut self, split: Split, tokens: TokenCount) -> Piece {
        let held = std::mem::take(&mut self.held);
        let logprobs = std::mem::take(&mut self.held_logprobs);
        if split.content.is_empty() && !split.reasoning.is_empty() {
            self.thinking = true;
            self.reasoning += held + tokens;
        } else if self.thinking {
            self.reasoning += held;
            self.thinking = split.content.is_empty();
        }
        let logprobs = last_that_spell(&split.content, logprobs);
        Piece {
            tokens: held + tokens,
            content: split.content.into(),
            reasoning: split.reasoning.into(),
            tool_calls: Vec::new(),
            logprobs,
        }
    }

    fn count_reasoning(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { finish, mut usage } => {
                usage.reasoning = self.reasoning.min(usage.completion);
                Outcome::Done { finish, usage }
            }
            failed @ Outcome::Failed { .. } => failed,
        }
    }
}

/// The log-probabilities of the fewest last tokens whose text covers `content`: those before belong to thoughts or
/// tags.
fn last_that_spell(content: &str, mut logprobs: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
    let mut missing = content.len();
    let mut first = logprobs.len();
    while missing > 0 && first > 0 {
        first -= 1;
        missing = missing.saturating_sub(logprobs[first].bytes.len());
    }
    logprobs.split_off(first)
}

/// When the stretches of one answer came.
#[derive(Debug, Default)]
struct Pace {
    started: Option<(Instant, TokenCount)>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Tokens after the first stretch.
    tokens: TokenCount,
    /// Whether another request ran beside it: then it says nothing about the machine.
    disturbed: bool,
}

impl Pace {
    fn started(&mut self, prompt: TokenCount) {
        self.started = Some((now(), prompt));
    }

    fn wrote(&mut self, tokens: TokenCount, served: &Served) {
        self.disturbed |= !served.is_alone();
        let now = now();
        if self.first.is_none() {
            self.first = Some(now);
            if let Some((started, prompt)) = self.started.filter(|_| !self.disturbed) {
                served.meter().prefilled(prompt, now.saturating_duration_since(started));
            }
        } else {
            self.tokens += tokens;
        }
        self.last = Some(now);
    }

    fn ended(&self, served: &Served) {
        if let (Some(first), Some(last), false) = (self.first, self.last, self.disturbed) {
            let time: Duration = last.saturating_duration_since(first);
            served.meter().decoded(self.tokens, time);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the worker is a shell: here speeds are measured")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::job::{FinishReason, Usage};

    fn logprob(text: &str) -> TokenLogprob {
        TokenLogprob { token: text.into(), bytes: text.as_bytes().to_vec(), logprob: -1.0, top: Vec::new() }
    }

    /// Splits texts of one token each: content, reasoning, tokens of thoughts, tokens in all, tokens with
    /// probabilities.
    fn split(start: Start, texts: &[&str]) -> (String, String, u64, u64, Vec<String>) {
        let mut splitter = Splitter::new(start);
        let mut pieces: Vec<Piece> = texts
            .iter()
            .filter_map(|&text| splitter.push(&text.into(), TokenCount::new(1), vec![logprob(text)]))
            .collect();
        pieces.extend(splitter.finish());
        let usage = Usage { completion: TokenCount::new(texts.len() as u64), ..Usage::default() };
        let done = splitter.count_reasoning(Outcome::Done { finish: FinishReason::Stop, usage });
        let Outcome::Done { usage, .. } = done else { panic!("it was done") };
        let joined =
            |part: fn(&Piece) -> &PromptText| pieces.iter().map(|piece| part(piece).as_str()).collect();
        let tokens: TokenCount = pieces.iter().map(|piece| piece.tokens).sum();
        let told = pieces.iter().flat_map(|piece| &piece.logprobs);
        let told = told.map(|logprob| logprob.token.as_str().to_owned()).collect();
        (
            joined(|piece| &piece.content),
            joined(|piece| &piece.reasoning),
            usage.reasoning.get(),
            tokens.get(),
            told,
        )
    }

    #[test]
    fn thoughts_are_told_from_words_and_counted() {
        let texts = ["<think>", "so", " it", "</think>", "\n\n", "Par", "is"];
        let (content, reasoning, thoughts, tokens, told) = split(Start::Answer, &texts);
        assert_eq!((content.as_str(), reasoning.as_str()), ("Paris", "so it"));
        assert_eq!((thoughts, tokens), (5, 7), "the tags and the blank line are thoughts");
        assert_eq!(told, ["Par", "is"]);
    }

    #[test]
    fn a_template_may_have_begun_the_thought() {
        let (content, reasoning, thoughts, _, told) = split(Start::Reasoning, &["so", "</think>", "Paris"]);
        assert_eq!((content.as_str(), reasoning.as_str(), thoughts), ("Paris", "so", 2));
        assert_eq!(told, ["Paris"]);
    }

    #[test]
    fn a_plain_answer_passes_whole() {
        let (content, reasoning, thoughts, tokens, told) = split(Start::Answer, &["a", " <", "b", "<th", ""]);
        assert_eq!((content.as_str(), reasoning.as_str()), ("a <b<th", ""));
        assert_eq!((thoughts, tokens, told.len()), (0, 5, 5));
    }

    #[test]
    fn an_answer_cut_while_thinking_is_all_thought() {
        let (content, reasoning, thoughts, ..) = split(Start::Answer, &["<think>", "so", "</thi"]);
        assert_eq!((content.as_str(), reasoning.as_str(), thoughts), ("", "so</thi", 3));
    }
}
