//! The engine: prompts go in, answers stream out, many at once, from one thread that owns the model.
//!
//! ```text
//! Engine::submit ── prompt to tokens ──> queue ──> thread { Scheduler ──> Model } ──> Generation
//! ```
//!
//! [`Engine`] and [`Generation`] are the two ends. Between them, without a thread or a model: `scheduler` decides who
//! takes part in the next pass, `blocks` where keys and values lie, `prefix` which of them come again, `speculate` what
//! may follow, `answer` which token does, and `text` what it says. This file is the shell around them. [`Scribe`] and
//! [`Script`] read prompts and write answers for whoever computes elsewhere. Promises:
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
mod scribe;
mod speculate;
mod text;

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroUsize};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use ram_core::chat::calls::Format;
use ram_core::chat::tools::{PromptJson, Tool};
use ram_core::chat::{ChatMessage, PromptText};
use ram_core::job::{Failure, GenerationParams, Outcome, TokenLogprob};
use ram_core::units::{Bytes, TokenCount};

use self::answer::Answer;
use self::blocks::BlockLimits;
use self::board::Shared;
use self::scheduler::{Effect, Scheduler, SequenceId};
use self::scribe::Opened;
use self::text::Delta;
use crate::batch::{BLOCK_TOKENS, Rows, blocks_for};
use crate::config::Architecture;
use crate::constrain::Formats;
use crate::device::Device;
use crate::error::InferError;
use crate::models::{LoadOptions, Model, Shard};
use crate::tokenize::Tokenizer;

pub use self::generation::Generation;
use self::generation::Reply;
pub use self::scribe::{Scribe, Script};

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
    scribe: Scribe,
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
        let end_tokens = scribe::end_tokens(of, &tokenizer);
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
        let (context, vocab_size) = (info.context, info.vocab_size);
        let scribe = Scribe { tokenizer, end_tokens, context, vocab_size };
        Ok(Self(Arc::new(Inner {
            info,
            kv_tokens,
            scribe,
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
    /// [`Failure::OutOfMemory`] when keys and values never have room for it, with [`Failure::ToolsUnsupported`], with
    /// [`Failure::InvalidPrompt`], or with [`Failure::InvalidFormat`]. An answer that would pass the context, or the
    /// memory for keys and values, is cut there ([`FinishReason::Length`](ram_core::job::FinishReason::Length)).
    ///
    /// # Errors
    /// [`Failure::Overloaded`] when slots and queue are taken; [`Failure::Internal`] when the thread is no more.
    pub fn submit(&self, request: Request) -> Result<Generation, Failure> {
        let Inner { kv_tokens, scribe, formats, shared, jobs, .. } = &*self.0;
        let place = Shared::take_place(shared).ok_or(Failure::Overloaded)?;
        let (reply, mut generation) = generation::pair(place);
        let opened = scribe.open(&request, *kv_tokens).and_then(|opened| {
            let constraint = formats.compile(&request.params.format, &opened.prompt)?;
            Ok((opened, constraint))
        });
        let (Opened { prompt, text, answer_start }, constraint) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                reply.end(Outcome::Failed { failure });
                return Ok(generation);
            }
        };
        let mut answer = Answer::new(text, request.params.sampling, &prompt);
        answer.hold_to(constraint);
        generation.answer_start = answer_start;
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
mod tests;
