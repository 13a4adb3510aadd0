//! The engine: prompts go in, answers stream out, many at once, from one thread that owns the model.
//!
//! ```text
//! Engine::submit ── prompt to tokens ──> queue ──> thread { Scheduler ──> Model } ──> Generation
//! ```
//!
//! [`Engine`] and [`Generation`] are the two ends. Between them, without a thread or a model: `scheduler` decides who
//! takes part in the next pass, `blocks` where keys and values lie, `prefix` which of them come again, `speculate` what
//! may follow, and `answer` what a token says. This file is the shell around them. Promises:
//!
//! - *Same seed, same prompt: same text*, alone or beside strangers.
//! - Every [`Generation`] that was handed out ends with exactly one [`Event::End`], whatever becomes of the thread.
//! - A dropped [`Generation`] costs at most the forward pass that is under way.
//! - Nothing grows without a bound: requests by slots and queue, keys and values by [`EngineConfig::kv_bytes_max`],
//!   events by the tokens of an answer.
//!
//! Start at [`Engine::load`].

mod answer;
mod blocks;
mod board;
#[cfg(test)]
mod fake;
mod generation;
mod prefix;
mod scheduler;
mod speculate;

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroUsize};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use ram_core::chat::calls::Format;
use ram_core::chat::template::{TemplateError, TemplateOptions};
use ram_core::chat::tools::{PromptJson, Tool};
use ram_core::chat::{ChatMessage, PromptText};
use ram_core::job::{Failure, GenerationParams, Outcome, TokenLogprob};
use ram_core::units::{Bytes, Timestamp, TokenCount};

use self::answer::{Answer, Delta};
use self::blocks::BlockLimits;
use self::board::Shared;
use self::scheduler::{Effect, Scheduler, SequenceId};
use crate::batch::{BLOCK_TOKENS, Rows, blocks_for};
use crate::config::Architecture;
use crate::constrain::Formats;
use crate::device::Device;
use crate::error::InferError;
use crate::models::{LoadOptions, Model, Shard};
use crate::tokenize::Tokenizer;

pub use self::generation::Generation;
use self::generation::Reply;

/// How an engine shares its model between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests that run at once.
    pub slots: NonZeroU16,
    /// Requests that may wait for a slot; more are refused.
    pub queue_max: u16,
    /// The longest prompt with its answer; no more than the model's own context, which is the default.
    pub context_max: Option<TokenCount>,
    /// The most memory for keys and values of all running requests, each counted as if its answer were as long as it
    /// may become, and of those kept for [`prefix_reuse`](Self::prefix_reuse). Without a limit, the default, requests
    /// are bounded by slots and context, and at most 1 GiB is kept.
    pub kv_bytes_max: Option<Bytes>,
    /// Tokens of prompts that are computed at once; others wait so long for their next token.
    pub prefill_chunk: NonZeroUsize,
    /// Whether the keys and values of a beginning that was computed before, for whichever request, are used again
    /// instead of computed again: a system prompt, or the conversation so far. Has no effect on models with a recurrent
    /// state.
    ///
    /// No request ever reads what was computed for other tokens than its own. But how soon the first token comes tells
    /// whether somebody asked with the same beginning not long ago. Where strangers share an engine and that must not
    /// be known, switch it off.
    pub prefix_reuse: bool,
    /// Whether tokens that may follow are guessed from what the text said before, and checked several at once. The
    /// answer is the same; where it quotes or repeats, it comes faster. Has no effect on models with a recurrent state.
    pub speculation: bool,
}

impl Default for EngineConfig {
    /// Four slots and sixteen places to wait; chunks of 128 tokens, about a second of a 1B model on two cores;
    /// beginnings are used again, and tokens guessed.
    fn default() -> Self {
        Self {
            slots: const { NonZeroU16::new(4).expect("is not zero") },
            queue_max: 16,
            context_max: None,
            kv_bytes_max: None,
            prefill_chunk: const { NonZeroUsize::new(128).expect("is not zero") },
            prefix_reuse: true,
            speculation: true,
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is to be continued.
    pub prompt: Prompt,
    /// How to continue it.
    pub params: GenerationParams,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation, written by the model's chat template; the assistant speaks next.
    Chat(Chat),
    /// A text as it stands.
    Text(PromptText),
}

/// A conversation, and what the model's chat template is told beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Its turns.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call. With some, the marks of calls stay in the text of the answer.
    pub tools: Vec<Tool>,
    /// Further variables, such as `enable_thinking`; reserved names have no effect.
    pub template_kwargs: PromptJson,
}

impl From<Vec<ChatMessage>> for Chat {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What happens to a request, in this order: at most one start, then deltas, then one end.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It has a slot, and its prompt is being read.
    Started {
        /// Tokens of the prompt.
        prompt: TokenCount,
        /// Those of them that were computed before and are used again.
        cached: TokenCount,
    },
    /// The answer goes on.
    Delta {
        /// The next stretch of it, in whole characters. Empty only at the end, for tokens that are counted and have no
        /// text in the answer: those of a stop string.
        text: PromptText,
        /// Tokens that came to their end with this text; the sum over an answer is its usage.
        tokens: TokenCount,
        /// Their log-probabilities, when the request asks for them.
        logprobs: Vec<TokenLogprob>,
    },
    /// It is over.
    End {
        /// How.
        outcome: Outcome,
    },
}

impl From<Delta> for Event {
    fn from(Delta { text, tokens, logprobs }: Delta) -> Self {
        Self::Delta { text, tokens, logprobs }
    }
}

/// What an engine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The model's family.
    pub architecture: Architecture,
    /// The longest prompt with its answer.
    pub context: TokenCount,
    /// Tokens of the model's vocabulary.
    pub vocab_size: usize,
    /// Memory that the weights take.
    pub weight_bytes: Bytes,
    /// Whether the model has a chat template; without one only [`Prompt::Text`] can be continued.
    pub has_chat_template: bool,
    /// How the model writes calls of functions; `None` where its template has no place to tell it of any, and a request
    /// with functions ends with [`Failure::ToolsUnsupported`].
    pub call_format: Option<Format>,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Requests that run.
    pub running: u16,
    /// Requests that wait.
    pub queued: u16,
    /// Requests that may run at once.
    pub slots: u16,
    /// Memory set aside for keys and values of the running ones.
    pub kv: Bytes,
    /// Memory with keys and values of ended ones, kept in case their beginnings come again. It gives way to the running
    /// ones.
    pub kv_idle: Bytes,
}

/// A model that answers requests. Cheap to clone; all handles share one thread.
///
/// With the last handle the engine ends: what still runs ends with [`Failure::ModelUnavailable`], and the drop waits
/// for the thread (at most one forward pass), so that the model's memory is free when it returns.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: EngineInfo,
    /// Tokens whose keys and values fit, one request alone.
    kv_tokens: TokenCount,
    tokenizer: Arc<Tokenizer>,
    end_tokens: Arc<[u32]>,
    formats: Formats,
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A request on its way to the thread.
struct Job {
    prompt: Vec<u32>,
    answer: Answer,
    reply: Reply,
}

/// The part of the configuration that the scheduler keeps.
#[derive(Clone, Copy, Debug)]
struct Limits {
    slots: NonZeroU16,
    prefill_chunk: NonZeroUsize,
    speculation: bool,
    blocks: BlockLimits,
}

impl Engine {
    /// Loads a model's folder and starts its thread, in the way that is best on this device ([`LoadOptions::new`]).
    /// Takes as long as reading the weights: not for an async task.
    ///
    /// # Errors
    /// Those of [`Self::load_with`].
    pub fn load(dir: &Path, device: &Device, config: EngineConfig) -> Result<Self, InferError> {
        Self::load_with(dir, &LoadOptions::new(*device), config)
    }

    /// The same, in a way of one's own.
    ///
    /// # Errors
    /// Those of [`Model::load_with`] and [`Tokenizer::load`], [`InferError::NoHead`] for a part of a model, and
    /// [`InferError::Thread`] when the system gives no thread.
    pub fn load_with(dir: &Path, options: &LoadOptions, config: EngineConfig) -> Result<Self, InferError> {
        let tokenizer = Tokenizer::load(dir)?;
        let model = Model::load_with(dir, options)?;
        if model.shard() != Shard::whole(model.config()) {
            return Err(InferError::NoHead);
        }
        let of = model.config();
        let info = EngineInfo {
            architecture: of.architecture,
            context: config.context_max.map_or(of.context, |max| max.min(of.context)),
            vocab_size: of.vocab_size,
            weight_bytes: model.weight_bytes(),
            has_chat_template: tokenizer.has_template(),
            call_format: tokenizer.call_format(),
        };
        let end_tokens = of.eos_token_ids.iter().copied().chain(tokenizer.end_token()).collect();
        Self::start(model, tokenizer, end_tokens, info, config)
    }

    /// Starts the thread over any model.
    fn start<M: Rows + Send + 'static>(
        model: M,
        tokenizer: Tokenizer,
        end_tokens: Vec<u32>,
        info: EngineInfo,
        config: EngineConfig,
    ) -> Result<Self, InferError> {
        let EngineConfig { slots, queue_max, prefill_chunk, speculation, .. } = config;
        let blocks = block_limits(&model, &config, info.context);
        let limits = Limits { slots, prefill_chunk, speculation, blocks };
        let kv_tokens = TokenCount::new((BLOCK_TOKENS as u64).saturating_mul(blocks.blocks_max as u64));
        let shared = Arc::new(Shared::new(slots, queue_max));
        let (jobs, inbox) = channel();
        let board = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("ram-infer".to_owned())
            .spawn(move || run(&model, limits, &inbox, &board))
            .map_err(|error| InferError::Thread { kind: error.kind() })?;
        let (tokenizer, end_tokens) = (Arc::new(tokenizer), Arc::from(end_tokens));
        let formats = Formats::new(Arc::clone(&tokenizer), info.vocab_size, Arc::clone(&end_tokens));
        Ok(Self(Arc::new(Inner {
            info,
            kv_tokens,
            tokenizer,
            end_tokens,
            formats,
            shared,
            jobs: Some(jobs),
            thread: Some(thread),
        })))
    }

    /// Asks for a continuation. Renders and encodes the prompt on the caller's thread (milliseconds for a usual one),
    /// so that the thread of the model never waits for it.
    ///
    /// A prompt that cannot be continued is no error here: its generation ends at once, with
    /// [`Failure::ContextLengthExceeded`] when it leaves no room for one token of an answer, with
    /// [`Failure::ToolsUnsupported`], with [`Failure::InvalidPrompt`], or with [`Failure::InvalidFormat`]. An answer
    /// that would pass the context, or the memory for keys and values, is cut there
    /// ([`FinishReason::Length`](ram_core::job::FinishReason::Length)).
    ///
    /// # Errors
    /// [`Failure::Overloaded`] when slots and queue are taken; [`Failure::Internal`] when the thread is no more.
    pub fn submit(&self, request: Request) -> Result<Generation, Failure> {
        let Inner { info, tokenizer, end_tokens, formats, shared, jobs, .. } = &*self.0;
        let place = Shared::take_place(shared).ok_or(Failure::Overloaded)?;
        let (reply, mut generation) = generation::pair(place);
        let Request { prompt, params } = request;
        let calls = matches!(&prompt, Prompt::Chat(chat) if !chat.tools.is_empty());
        let checked = encode(tokenizer, &prompt)
            .and_then(|prompt| check(prompt, info))
            .and_then(|prompt| Ok((formats.compile(&params.format, &prompt)?, prompt)));
        let (constraint, prompt) = match checked {
            Ok(checked) => checked,
            Err(failure) => {
                reply.end(Outcome::Failed { failure });
                return Ok(generation);
            }
        };
        // An answer that memory has no room for is cut as one that the context has no room for; a prompt is refused.
        let read = TokenCount::new(prompt.len() as u64);
        let room = if read < self.0.kv_tokens { info.context.min(self.0.kv_tokens) } else { info.context };
        let tokens_max = params.max_tokens.min(room.saturating_sub(read));
        let mut answer =
            Answer::new(Arc::clone(tokenizer), Arc::clone(end_tokens), &prompt, params, tokens_max);
        answer.hold_to(constraint);
        if calls {
            answer.show_marks();
        }
        generation.answer_start = tokenizer.answer_start(&prompt);
        let jobs = jobs.as_ref().ok_or(Failure::Internal)?;
        jobs.send(Job { prompt, answer, reply }).map_err(|_| Failure::Internal)?;
        Ok(generation)
    }

    /// What runs here.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.0.info
    }

    /// How busy it is.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        self.0.shared.occupancy()
    }

    /// The model's last failure, behind a [`Failure::Internal`] or [`Failure::OutOfMemory`]; `None` when it never
    /// failed. Holds no word of a prompt.
    #[must_use]
    pub fn last_fault(&self) -> Option<InferError> {
        self.0.shared.board().fault.clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It catches its panics; nothing is left to do about one here.
        }
    }
}

/// How many blocks of keys and values there may be.
fn block_limits<M: Rows>(model: &M, config: &EngineConfig, context: TokenCount) -> BlockLimits {
    let fit = |bytes: Bytes| bytes.get().checked_div(model.block_bytes().get()).unwrap_or(u64::MAX);
    let count = |blocks: u64| usize::try_from(blocks.min(u32::MAX.into())).unwrap_or(usize::MAX);
    // Without a limit all slots may be full at once.
    let context = usize::try_from(context.get()).unwrap_or(usize::MAX);
    let full = blocks_for(context).saturating_mul(config.slots.get().into()) as u64;
    let blocks_max = count(config.kv_bytes_max.map_or(full, fit));
    let idle_max = config.kv_bytes_max.map_or_else(|| count(fit(IDLE_BYTES_MAX)), |_| blocks_max);
    let shares = config.prefix_reuse && !model.is_recurrent();
    BlockLimits { blocks_max, idle_max: if shares { idle_max } else { 0 } }
}

/// The tokens of a prompt.
fn encode(tokenizer: &Tokenizer, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
    let encoded = match prompt {
        Prompt::Chat(Chat { messages, tools, template_kwargs }) => {
            let options = TemplateOptions {
                tools: tools.clone(),
                extra: template_kwargs.as_object().clone(),
                today: Some(now()),
                ..TemplateOptions::default()
            };
            tokenizer.encode_chat(messages, &options)
        }
        Prompt::Text(text) => tokenizer.encode_text(text.as_str()),
    };
    encoded.map_err(|error| match error {
        InferError::Template(TemplateError::ToolsUnsupported) => Failure::ToolsUnsupported,
        _ => Failure::InvalidPrompt,
    })
}

/// That the model can continue a prompt.
fn check(prompt: Vec<u32>, info: &EngineInfo) -> Result<Vec<u32>, Failure> {
    let known = |token: &u32| usize::try_from(*token).is_ok_and(|token| token < info.vocab_size);
    if prompt.is_empty() || !prompt.iter().all(known) {
        return Err(Failure::InvalidPrompt);
    }
    let tokens = TokenCount::new(prompt.len() as u64);
    if tokens >= info.context {
        return Err(Failure::ContextLengthExceeded { prompt: tokens, limit: info.context });
    }
    Ok(prompt)
}

/// The date, for templates that write it into the system prompt.
#[expect(clippy::disallowed_methods, reason = "the engine is a shell: here the clock is read")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.after(since)
}

/// The thread: serves until the last handle is gone.
///
/// A panic ends all that ran, each with [`Failure::Internal`] as its reply is dropped; the model itself is never
/// written to, so the thread goes on with an empty scheduler.
fn run<M: Rows>(model: &M, limits: Limits, inbox: &Receiver<Job>, shared: &Shared) {
    while panic::catch_unwind(AssertUnwindSafe(|| serve(model, limits, inbox, shared))).is_err() {
        shared.post(0, Bytes::ZERO, Bytes::ZERO);
    }
}

/// Takes jobs and steps, until the last handle is gone.
fn serve<M: Rows>(model: &M, limits: Limits, inbox: &Receiver<Job>, shared: &Shared) {
    let mut scheduler = Scheduler::new(model, limits);
    let mut replies: BTreeMap<SequenceId, Reply> = BTreeMap::new();
    let mut next_id = 0;
    let mut effects = Vec::new();
    loop {
        match next_job(inbox, scheduler.is_idle()) {
            Ok(Some(Job { prompt, answer, reply })) => {
                let id = SequenceId(next_id);
                next_id += 1;
                scheduler.submit(id, prompt, answer);
                replies.insert(id, reply);
                continue; // Perhaps there are more.
            }
            Ok(None) => {}
            Err(RecvError) => {
                let failure = Failure::ModelUnavailable;
                replies.into_values().for_each(|reply| reply.end(Outcome::Failed { failure }));
                return;
            }
        }
        for (id, _) in replies.extract_if(.., |_, reply| reply.is_cancelled()) {
            scheduler.cancel(id);
        }
        scheduler.step(&mut effects);
        shared.post(scheduler.running(), scheduler.kv_bytes(), scheduler.kv_bytes_idle());
        for effect in effects.drain(..) {
            match effect {
                Effect::Event(id, Event::End { outcome }) => {
                    if let Some(reply) = replies.remove(&id) {
                        reply.end(outcome);
                    }
                }
                Effect::Event(id, event) => {
                    if let Some(reply) = replies.get(&id) {
                        reply.say(event);
                    }
                }
                Effect::Fault(fault) => shared.board().fault = Some(fault),
            }
        }
    }
}

/// The next job, if there is one; waits for it when there is nothing else to do.
///
/// # Errors
/// When the last handle is gone.
fn next_job(inbox: &Receiver<Job>, idle: bool) -> Result<Option<Job>, RecvError> {
    if idle {
        return inbox.recv().map(Some);
    }
    match inbox.try_recv() {
        Ok(job) => Ok(Some(job)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Disconnected) => Err(RecvError),
    }
}

/// What is kept for beginnings that may come again, where memory has no limit.
const IDLE_BYTES_MAX: Bytes = Bytes::new(1 << 30);

#[cfg(test)]
mod tests {
    use super::fake::FakeModel;
    use super::*;
    use crate::tokenize::tests::byte_level;
    use futures::StreamExt;
    use ram_core::chat::Role;
    use ram_core::chat::reasoning::Start;
    use ram_core::job::{FinishReason, Sampling, Usage};

    fn engine(model: FakeModel, slots: u16, queue_max: u16) -> Engine {
        engine_with(model, slots, queue_max, None)
    }

    fn engine_with(model: FakeModel, slots: u16, queue_max: u16, kv_bytes_max: Option<Bytes>) -> Engine {
        let slots = NonZeroU16::new(slots).unwrap();
        let prefill_chunk = NonZeroUsize::new(8).unwrap();
        let config =
            EngineConfig { slots, queue_max, kv_bytes_max, prefill_chunk, ..EngineConfig::default() };
        engine_of(model, config)
    }

    fn engine_of(model: FakeModel, config: EngineConfig) -> Engine {
        let info = EngineInfo {
            architecture: Architecture::Llama,
            context: TokenCount::new(64),
            vocab_size: 262,
            weight_bytes: Bytes::ZERO,
            has_chat_template: true,
            call_format: None,
        };
        Engine::start(model, byte_level(&[]), vec![257], info, config).unwrap()
    }

    fn request(words: &str, max_tokens: u64, seed: u64) -> Request {
        let sampling = Sampling { seed, ..Sampling::default() };
        let max_tokens = TokenCount::new(max_tokens);
        let params = GenerationParams::new(max_tokens, sampling);
        Request { prompt: Prompt::Text(words.into()), params }
    }

    /// The whole text, and the end.
    fn read(mut generation: Generation) -> (String, Outcome) {
        let mut text = String::new();
        while let Some(event) = generation.wait_next() {
            match event {
                Event::Started { .. } => assert_eq!(text, ""),
                Event::Delta { text: more, .. } => text += more.as_str(),
                Event::End { outcome } => {
                    assert_eq!(generation.wait_next(), None);
                    return (text, outcome);
                }
            }
        }
        panic!("a generation ends with an end")
    }

    fn failure(generation: Generation) -> Option<Failure> {
        match read(generation).1 {
            Outcome::Failed { failure } => Some(failure),
            Outcome::Done { .. } => None,
        }
    }

    #[test]
    fn an_answer_streams_from_start_to_end() {
        let engine = engine(FakeModel::default(), 1, 0);
        let generation = engine.submit(request("abc", 5, 0)).unwrap();
        let events: Vec<Event> = generation.into_blocking().collect();
        assert_eq!(events[0], Event::Started { prompt: TokenCount::new(3), cached: TokenCount::ZERO });
        let tokens: TokenCount = events
            .iter()
            .map(|event| if let Event::Delta { tokens, .. } = event { *tokens } else { TokenCount::ZERO })
            .sum();
        assert_eq!(tokens, TokenCount::new(5));
        let usage = Usage { prompt: TokenCount::new(3), completion: tokens, ..Usage::default() };
        let outcome = Outcome::Done { finish: FinishReason::Length, usage };
        assert_eq!(events.last(), Some(&Event::End { outcome }));
    }

    #[test]
    fn the_same_seed_gives_the_same_text_alone_and_beside_strangers() {
        let alone: Vec<_> = {
            let engine = engine(FakeModel::default(), 1, 0);
            (0..5).map(|n| read(engine.submit(request("the same words", 40, n)).unwrap())).collect()
        };
        let engine = engine(FakeModel::default(), 5, 0);
        let together: Vec<_> =
            (0..5).map(|n| engine.submit(request("the same words", 40, n)).unwrap()).collect();
        let together: Vec<_> = together.into_iter().map(read).collect();
        assert_eq!(together, alone);
        assert_ne!(alone[0].0, alone[1].0, "another seed gives another text");
    }

    #[test]
    fn a_stream_may_be_polled_as_well() {
        let engine = engine(FakeModel::default(), 1, 0);
        let mut generation = engine.submit(request("abc", 5, 0)).unwrap();
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        let mut ends = 0;
        loop {
            match generation.poll_next_unpin(&mut context) {
                std::task::Poll::Pending => thread::yield_now(),
                std::task::Poll::Ready(None) => break,
                std::task::Poll::Ready(Some(event)) => {
                    ends += usize::from(matches!(event, Event::End { .. }));
                }
            }
        }
        assert_eq!(ends, 1);
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_refused_and_one_that_leaves_little_is_cut_short() {
        let engine = engine(FakeModel::default(), 1, 0);
        let (prompt, limit) = (TokenCount::new(64), TokenCount::new(64));
        let too_long = engine.submit(request(&"a".repeat(64), 1, 0)).unwrap();
        assert_eq!(failure(too_long), Some(Failure::ContextLengthExceeded { prompt, limit }));
        let (text, outcome) = read(engine.submit(request(&"a".repeat(60), 1000, 0)).unwrap());
        assert_eq!(text.len(), 4);
        assert!(matches!(outcome, Outcome::Done { finish: FinishReason::Length, .. }));
    }

    #[test]
    fn a_prompt_that_cannot_be_written_is_refused() {
        let engine = engine(FakeModel::default(), 1, 0);
        let empty = engine.submit(request("", 1, 0)).unwrap();
        assert_eq!(failure(empty), Some(Failure::InvalidPrompt));
        // Every character that could break up the forged token stands in the text.
        let all: String = ('\u{fdd0}'..='\u{fdef}').chain("<s>".chars()).collect();
        let prompt = Prompt::Chat(vec![ChatMessage::new(Role::User, all)].into());
        let refused = engine.submit(Request { prompt, ..request("", 1, 0) }).unwrap();
        assert_eq!(failure(refused), Some(Failure::InvalidPrompt));
        assert_eq!(engine.occupancy().queued, 0, "the places are given back");
    }

    #[test]
    fn functions_are_refused_where_the_template_has_no_place_for_them() {
        let engine = engine(FakeModel::default(), 1, 0);
        assert_eq!(engine.info().call_format, None);
        let tools = vec![serde_json::from_str::<Tool>(r#"{"name": "now"}"#).unwrap()];
        let messages = vec![ChatMessage::new(Role::User, "hi")];
        let prompt = Prompt::Chat(Chat { messages, tools, ..Chat::default() });
        let refused = engine.submit(Request { prompt, ..request("", 1, 0) }).unwrap();
        assert_eq!(failure(refused), Some(Failure::ToolsUnsupported));
    }

    #[test]
    fn a_generation_knows_whether_its_prompt_has_begun_the_thought() {
        let engine = engine(FakeModel::default(), 2, 0);
        let start = |words: &str| engine.submit(request(words, 1, 0)).unwrap().answer_start();
        assert_eq!(start("say <think>\n"), Start::Reasoning);
        assert_eq!(start("<think>\n\n</think>\n\n"), Start::Answer);
    }

    #[test]
    fn a_full_engine_refuses_and_takes_again_when_one_has_ended() {
        let (model, gate) = FakeModel::gated();
        let engine = engine(model, 1, 1);
        let mut first = engine.submit(request("a", 1, 0)).unwrap();
        assert!(matches!(first.wait_next(), Some(Event::Started { .. })));
        let second = engine.submit(request("b", 1, 0)).unwrap();
        assert_eq!(engine.submit(request("c", 1, 0)).err(), Some(Failure::Overloaded));
        let (kv, kv_idle) = (Bytes::new(3200), Bytes::ZERO);
        assert_eq!(engine.occupancy(), Occupancy { running: 1, queued: 1, slots: 1, kv, kv_idle });
        gate.send(()).unwrap();
        assert_eq!(failure(first), None);
        let third = engine.submit(request("c", 1, 0)).unwrap();
        drop(gate);
        assert_eq!((failure(second), failure(third)), (None, None));
        assert_eq!(engine.occupancy(), Occupancy { slots: 1, ..Occupancy::default() });
    }

    #[test]
    fn dropping_a_generation_cancels_it_between_tokens() {
        let (model, gate) = FakeModel::gated();
        let engine = engine(model, 1, 0);
        let mut generation = engine.submit(request("a", 50, 0)).unwrap();
        assert!(matches!(generation.wait_next(), Some(Event::Started { .. })));
        gate.send(()).unwrap();
        assert!(matches!(generation.wait_next(), Some(Event::Delta { .. })));
        drop(generation);
        gate.send(()).unwrap(); // The token that is under way.
        while engine.occupancy() != (Occupancy { slots: 1, ..Occupancy::default() }) {
            thread::yield_now(); // Would never end if a third token were computed: the gate is shut.
        }
    }

    #[test]
    fn a_panic_ends_all_that_runs_and_nothing_hangs() {
        let engine = engine(FakeModel::panicking_on(u32::from(b'!')), 2, 2);
        let open: Vec<_> =
            ["!", "!", "!", "!"].map(|words| engine.submit(request(words, 50, 0)).unwrap()).into();
        for generation in open {
            assert_eq!(failure(generation), Some(Failure::Internal));
        }
        assert_eq!(failure(engine.submit(request("a", 5, 0)).unwrap()), None, "the engine goes on");
        assert_eq!(engine.occupancy(), Occupancy { slots: 2, ..Occupancy::default() });
    }

    #[test]
    fn an_answer_is_as_long_as_memory_allows_and_a_prompt_without_room_is_refused() {
        let model = FakeModel::default();
        let room = Some(model.block_bytes());
        let engine = engine_with(model, 1, 1, room);
        let (_, outcome) = read(engine.submit(request("ab", 50, 0)).unwrap());
        assert!(
            matches!(outcome, Outcome::Done { usage, .. } if usage.completion == TokenCount::new(30)),
            "{outcome:?}"
        );
        let too_long = engine.submit(request(&"a".repeat(40), 5, 0)).unwrap();
        assert_eq!(failure(too_long), Some(Failure::OutOfMemory));
    }

    #[test]
    fn a_request_without_room_is_refused_at_once_and_another_goes_on() {
        let (model, gate) = FakeModel::gated();
        let room = Some(model.block_bytes());
        let engine = engine_with(model, 2, 0, room);
        let mut goes_on = engine.submit(request("ab", 20, 0)).unwrap();
        assert!(matches!(goes_on.wait_next(), Some(Event::Started { .. })));
        let too_large = engine.submit(request(&"a".repeat(40), 5, 0)).unwrap();
        gate.send(()).unwrap(); // The pass that is under way: no other is needed.
        assert_eq!(failure(too_large), Some(Failure::OutOfMemory));
        drop(gate);
        let (text, outcome) = read(goes_on);
        assert_eq!(text.len(), 20);
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }

    #[test]
    fn a_beginning_is_kept_for_the_next_request_unless_switched_off() {
        let ask = |prefix_reuse: bool| {
            let config = EngineConfig { prefix_reuse, ..EngineConfig::default() };
            let engine = engine_of(FakeModel::default(), config);
            let words = "the same words to begin with, and then some";
            let cached = |generation: Generation| match generation.into_blocking().next() {
                Some(Event::Started { cached, .. }) => cached.get(),
                event => panic!("{event:?}"),
            };
            let first = read(engine.submit(request(words, 9, 0)).unwrap());
            let idle = engine.occupancy().kv_idle;
            let again = read(engine.submit(request(words, 9, 0)).unwrap());
            assert_eq!(again, first);
            (idle, cached(engine.submit(request(words, 9, 0)).unwrap()))
        };
        assert_eq!(ask(true), (Bytes::new(3200), 32));
        assert_eq!(ask(false), (Bytes::ZERO, 0));
    }

    #[test]
    fn a_failure_of_the_model_is_kept_for_its_operator() {
        let engine = engine(FakeModel::failing_on(u32::from(b'!')), 2, 2);
        assert_eq!(engine.last_fault(), None);
        assert_eq!(failure(engine.submit(request("!", 5, 0)).unwrap()), Some(Failure::Internal));
        assert_eq!(engine.last_fault(), Some(InferError::NoTokens));
    }

    #[test]
    fn what_runs_and_waits_ends_when_the_last_handle_is_gone() {
        let shared = Arc::new(Shared::new(NonZeroU16::MIN, 1));
        let limits = Limits {
            slots: NonZeroU16::MIN,
            prefill_chunk: NonZeroUsize::new(8).unwrap(),
            speculation: true,
            blocks: BlockLimits { blocks_max: 9, idle_max: 9 },
        };
        let (jobs, inbox) = channel();
        let mut generations = Vec::new();
        for _ in 0..2 {
            let (reply, generation) = generation::pair(Shared::take_place(&shared).unwrap());
            let (tokenizer, params) = (Arc::new(byte_level(&[])), request("", 5, 0).params);
            let answer = Answer::new(tokenizer, Arc::new([]), &[97], params, TokenCount::new(5));
            jobs.send(Job { prompt: vec![97], answer, reply }).unwrap();
            generations.push(generation);
        }
        drop(jobs);
        run(&FakeModel::default(), limits, &inbox, &shared);
        for generation in generations {
            assert_eq!(failure(generation), Some(Failure::ModelUnavailable));
        }
    }

    #[test]
    fn an_engine_lives_as_long_as_one_of_its_handles() {
        let first = engine(FakeModel::default(), 1, 1);
        let second = first.clone();
        drop(first);
        assert_eq!(failure(second.submit(request("a", 5, 0)).unwrap()), None);
        let board = Arc::downgrade(&second.0.shared);
        drop(second);
        assert_eq!(board.strong_count(), 0, "the thread has ended");
    }

    #[test]
    fn debug_shows_no_word_of_a_request() {
        let request = request("the secret plan", 5, 0);
        assert!(!format!("{request:?}").contains("secret"));
        let token = TokenLogprob { token: "s".into(), bytes: vec![115], logprob: 0.0, top: Vec::new() };
        let (text, tokens, logprobs) = ("s".into(), TokenCount::new(1), vec![token]);
        let event = format!("{:?}", Event::Delta { text, tokens, logprobs });
        assert!(!event.contains("\"s\"") && !event.contains("115"), "{event}");
    }
}
