//! The life of a job, from the user's request to the last reply.
//!
//! ```text
//! Submit -> Holding --held--> Queued <--failed before the first token, another may do it--+
//!              |                |  chosen                                                  |
//!              | no money       v                                                          |
//!              |             Running --accepted, chunks--> Running --finished--> Settling --> Done
//!              v                |                            |                             |
//!            Failed             |                            +--failed, lost--> Settling --> Failed
//!                               +----------------------------------------------------------+
//! ```
//!
//! An answer over a pipeline whose head is lost goes from Running back to Queued, with what the user has heard
//! (`heard`).
//!
//! A job takes one hold and resolves it once: by a settle for what was delivered, or by a void. Only the current
//! attempt of the current provider is listened to; every other word about a job comes from a ghost. A result is judged
//! (`trust`) before it is paid: one that cannot be true is a failure, before the first word as after it.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use ram_chain::pricing;
use ram_core::catalog::ModelSpec;
use ram_core::chat::tools::{PromptJson, Tool, ToolCall};
use ram_core::chat::{ChatMessage, PromptText};
use ram_core::id::{Attempt, GroupId, JobId, ModelId, ProviderId, WalletAddress};
use ram_core::job::{FinishReason, Job, TokenLogprob, Usage};
use ram_core::memory::{self, Workload};
use ram_core::reputation;
use ram_core::route::Wish;
use ram_core::units::{Bytes, Timestamp, TokenCount, XRam};
use ram_core::validate::{Digest, Part, Unrewarded, Verdict};

use ram_proto::control::Chunk;
use ram_proto::control::sealed::SealedJob;

use crate::address::subscriber;

use super::event::{JobError, Payer, Plain, Receipt, Request, Sealed, SettleOrder, Submission};
use super::heard::Heard;
use super::sealed::{Ask, Boxes};

/// Added to the bytes of each message when the tokens of a prompt are bounded: what a template writes around a turn.
const TEMPLATE_TOKENS_PER_MESSAGE: u64 = 64;
/// Added where there are tools: what templates say about how to call them, of which the longest take some 600.
const TEMPLATE_TOKENS_FOR_TOOLS: u64 = 1024;
/// How much longer JSON can become when a template writes it again: blanks behind `:` and `,`, and lines set in.
const JSON_GROWTH: u64 = 2;
/// Longest text of one token, generously: what an honest provider never passes, and a liar cannot.
const TEXT_BYTES_PER_TOKEN_MAX: u64 = 1024;
/// Longest text of one token that has a log-probability, and of an alternative to it: twice the longest token of the
/// catalogue's vocabularies, 128 blanks. A bound on the mean would be tighter, and a user could break it for a node:
/// who weights such a token by `logit_bias` gets nothing else.
const LOGPROB_BYTES_MAX: usize = 256;

/// A checkpoint is due after so many tokens,
const CHECKPOINT_TOKENS: u64 = 64;
/// or after so long, whichever comes first: what a crash can cost a provider.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// All open jobs.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    open: BTreeMap<JobId, JobRecord>,
    /// Jobs in [`Phase::Queued`], oldest first, by full model id.
    queues: BTreeMap<ModelId, VecDeque<JobId>>,
    /// How many of the open ones each payer has.
    by_payer: BTreeMap<Payer, usize>,
    /// Bytes of the prompts of the open ones.
    prompt_bytes: Bytes,
}

/// One open job.
#[derive(Debug)]
pub(super) struct JobRecord {
    pub(super) ask: Ask,
    pub(super) spec: &'static ModelSpec,
    pub(super) admitted_at: Timestamp,
    pub(super) payer: Payer,
    pub(super) preferred: Option<ProviderId>,
    /// Fixed at admission.
    pub(super) price_per_1k: XRam,
    /// Most tokens that the prompt can have.
    pub(super) prompt_bound: TokenCount,
    /// Bytes that the prompt takes, at most: a token has one or more.
    pub(super) prompt_bytes: Bytes,
    /// Providers that had their try.
    pub(super) tried: Vec<ProviderId>,
    pub(super) attempts: Option<Attempt>,
    /// The attempt whose pipeline lost its head, while the job waits for the next one: it is paid if none comes.
    pub(super) interrupted: Option<Box<Run>>,
    pub(super) phase: Phase,
}

/// Where a job stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// The store sets money aside. `abandoned`: the user left meanwhile.
    Holding { abandoned: bool },
    /// It waits for a provider.
    Queued { since: Timestamp },
    /// A provider has it.
    Running(Run),
    /// The store pays; then the user hears the end.
    Settling { end: End, charge: XRam },
}

/// An attempt that runs.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) provider: ProviderId,
    /// Over which pipeline, whose head the provider is.
    pub(super) group: Option<GroupId>,
    /// What the user was told, of answers that may be begun anew.
    pub(super) heard: Option<Box<Heard>>,
    pub(super) attempt: Attempt,
    pub(super) sent_at: Timestamp,
    /// After this without a word the attempt is given up.
    pub(super) deadline: Timestamp,
    /// What the provider counted, once it has accepted.
    pub(super) prompt: Option<TokenCount>,
    pub(super) next_seq: u32,
    pub(super) delivered: TokenCount,
    pub(super) delivered_bytes: u64,
    /// What was delivered, for its validation.
    pub(super) digest: Digest,
    /// What was delivered in boxes.
    pub(super) boxes: Boxes,
    pub(super) logprobs: u64,
    pub(super) tool_calls: u64,
    pub(super) checkpoint: Checkpoint,
}

/// What the store was last told of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checkpoint {
    pub(super) at: Timestamp,
    pub(super) delivered: TokenCount,
}

/// Most tokens that a turn can become: one for each byte, and what the template writes around it and its calls.
fn tokens_of_message(message: &ChatMessage) -> u64 {
    let of = |text: &Option<PromptText>| text.as_ref().map_or(0, |text| text.as_str().len());
    let words = message.content.as_str().len() + of(&message.name) + of(&message.tool_call_id);
    let call = |call: &ToolCall| JSON_GROWTH * call.text_bytes() as u64 + TEMPLATE_TOKENS_PER_MESSAGE;
    words as u64 + TEMPLATE_TOKENS_PER_MESSAGE + message.tool_calls.iter().map(call).sum::<u64>()
}

/// Most tokens that tools and template variables can become.
fn tokens_of_tools(tools: &[Tool], kwargs: &PromptJson) -> u64 {
    let around = if tools.is_empty() { 0 } else { TEMPLATE_TOKENS_FOR_TOOLS };
    let each = |tool: &Tool| JSON_GROWTH * json_bytes(tool.function()) + TEMPLATE_TOKENS_PER_MESSAGE;
    let kwargs = if kwargs.is_empty() { 0 } else { JSON_GROWTH * json_bytes(kwargs) };
    around + tools.iter().map(each).sum::<u64>() + kwargs
}

/// How long an object is as JSON.
fn json_bytes(object: &PromptJson) -> u64 {
    serde_json::to_vec(object).map_or(0, |json| json.len() as u64) // plain JSON always has a form
}

/// How much an answer can be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    tokens: TokenCount,
    /// Alternatives that were asked for with each token; `None`: no log-probabilities at all.
    alternatives: Option<u8>,
    /// Whether there are functions that it may call.
    has_tools: bool,
}

impl Bounds {
    pub(super) const fn tokens(self) -> TokenCount {
        self.tokens
    }

    /// Longest text.
    pub(super) const fn text_bytes_max(self) -> u64 {
        (self.tokens.get() + 1).saturating_mul(TEXT_BYTES_PER_TOKEN_MAX)
    }

    fn allow(self, token: &TokenLogprob) -> bool {
        let text_fits = |token: &TokenLogprob| {
            token.token.as_str().len() <= LOGPROB_BYTES_MAX && token.bytes.len() <= LOGPROB_BYTES_MAX
        };
        self.alternatives.is_some_and(|most| token.top.len() <= usize::from(most))
            && text_fits(token)
            && token.top.iter().all(|other| other.top.is_empty() && text_fits(other))
    }
}

/// How a job that is being paid ended.
#[derive(Debug)]
pub(super) enum End {
    Whole {
        finish: FinishReason,
        usage: Usage,
    },
    Cut {
        error: JobError,
    },
    /// Nobody listens any more.
    Abandoned,
}

impl Jobs {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn insert(&mut self, record: JobRecord) {
        *self.by_payer.entry(purse(&record.payer)).or_default() += 1;
        self.prompt_bytes += record.prompt_bytes;
        self.open.insert(record.ask.id(), record);
    }

    /// Open jobs of one payer; with the demo key, of one subscriber.
    pub(super) fn open_of(&self, payer: &Payer) -> usize {
        self.by_payer.get(&purse(payer)).copied().unwrap_or_default()
    }

    pub(super) const fn prompt_bytes(&self) -> Bytes {
        self.prompt_bytes
    }

    /// Jobs of the demo key that wait for `model`: at most as many as the queue is long.
    pub(super) fn demo_queued(&self, model: &ModelId) -> usize {
        let is_demo =
            |job: &&JobId| self.open.get(job).is_some_and(|record| matches!(record.payer, Payer::Demo(_)));
        self.queues.get(model).into_iter().flatten().filter(is_demo).count()
    }

    pub(super) fn get_mut(&mut self, job: JobId) -> Option<&mut JobRecord> {
        self.open.get_mut(&job)
    }

    pub(super) fn remove(&mut self, job: JobId) -> Option<JobRecord> {
        let record = self.open.remove(&job)?;
        self.unqueue(record.ask.model(), job);
        self.prompt_bytes = self.prompt_bytes.saturating_sub(record.prompt_bytes);
        let purse = purse(&record.payer);
        if let Some(open) = self.by_payer.get_mut(&purse) {
            *open -= 1;
            if *open == 0 {
                self.by_payer.remove(&purse);
            }
        }
        Some(record)
    }

    /// Moves all deadlines forward by a pause in which nobody could be heard.
    pub(super) fn forgive(&mut self, pause: Duration) {
        for record in self.open.values_mut() {
            match &mut record.phase {
                Phase::Queued { since } => *since = since.after(pause),
                Phase::Running(run) => run.deadline = run.deadline.after(pause),
                Phase::Holding { .. } | Phase::Settling { .. } => {}
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &JobRecord> {
        self.open.values()
    }

    pub(super) fn queued(&self, model: &ModelId) -> usize {
        self.queues.get(model).map_or(0, VecDeque::len)
    }

    /// Puts a job into its model's queue: at the back, or at the front when it already had a provider and lost it.
    pub(super) fn queue(&mut self, job: JobId, now: Timestamp) {
        let Some(record) = self.open.get_mut(&job) else { return };
        record.phase = Phase::Queued { since: now };
        let queue = self.queues.entry(record.ask.model().clone()).or_default();
        if record.attempts.is_some() { queue.push_front(job) } else { queue.push_back(job) }
    }

    /// Takes a job out of its queue, to run it or to end it.
    pub(super) fn unqueue(&mut self, model: &ModelId, job: JobId) {
        if let Some(queue) = self.queues.get_mut(model) {
            queue.retain(|&other| other != job);
            if queue.is_empty() {
                self.queues.remove(model);
            }
        }
    }

    /// Models for which jobs wait.
    pub(super) fn waiting_models(&self) -> Vec<ModelId> {
        self.queues.keys().cloned().collect()
    }

    /// Jobs that wait for `model`, oldest first.
    pub(super) fn waiting(&self, model: &ModelId) -> Vec<JobId> {
        self.queues.get(model).into_iter().flatten().copied().collect()
    }
}

impl Run {
    /// An attempt that begins.
    pub(super) fn new(provider: ProviderId, attempt: Attempt, now: Timestamp, patience: Duration) -> Self {
        Self {
            provider,
            group: None,
            heard: None,
            attempt,
            sent_at: now,
            deadline: now.after(patience),
            prompt: None,
            next_seq: 0,
            delivered: TokenCount::ZERO,
            delivered_bytes: 0,
            digest: Digest::new(),
            boxes: Boxes::default(),
            logprobs: 0,
            tool_calls: 0,
            checkpoint: Checkpoint { at: now, delivered: TokenCount::ZERO },
        }
    }

    /// Most tokens that what was delivered can hold.
    fn tokens_max(&self) -> TokenCount {
        self.digest.tokens_max() + TokenCount::new(self.boxes.bytes)
    }

    /// Takes a chunk in, or answers that no honest provider sends it: out of turn, before the prompt was counted, or
    /// more than was asked for.
    #[must_use]
    pub(super) fn take(&mut self, chunk: &Chunk, bounds: Bounds) -> bool {
        let calls: usize = chunk.tool_calls.iter().map(ToolCall::text_bytes).sum();
        let text = chunk.content.as_str().len() + chunk.reasoning.as_str().len() + calls;
        let bytes = self.delivered_bytes + text as u64;
        let logprobs = self.logprobs + chunk.logprobs.len() as u64;
        let tool_calls = self.tool_calls + chunk.tool_calls.len() as u64;
        let delivered = self.delivered + chunk.tokens;
        let is_honest = self.prompt.is_some()
            && chunk.seq == self.next_seq
            && delivered <= bounds.tokens
            && bytes <= bounds.text_bytes_max()
            && logprobs <= delivered.get()
            && tool_calls <= if bounds.has_tools { delivered.get() } else { 0 }
            && chunk.logprobs.iter().all(|token| bounds.allow(token));
        if is_honest {
            self.next_seq += 1;
            self.digest.take(Part::Content, chunk.content.as_str());
            self.digest.take(Part::Reasoning, chunk.reasoning.as_str());
            for call in &chunk.tool_calls {
                self.digest.take(Part::ToolCall, call.name.as_str());
                self.digest.take(Part::ToolCall, call.arguments.as_str());
            }
            (self.delivered, self.delivered_bytes) = (delivered, bytes);
            (self.logprobs, self.tool_calls) = (logprobs, tool_calls);
        }
        is_honest
    }
}

impl JobRecord {
    pub(super) fn new(
        submission: Submission,
        spec: &'static ModelSpec,
        price_per_1k: XRam,
        now: Timestamp,
    ) -> Self {
        let Submission { job: id, payer, request, preferred, model: _ } = submission;
        let model = spec.model_id();
        let (prompt_bound, ask) = match request {
            Request::Plain(plain) => {
                let Plain { messages, tools, chat_template_kwargs, params } = *plain;
                let tokens = messages.iter().map(tokens_of_message).sum::<u64>()
                    + tokens_of_tools(&tools, &chat_template_kwargs);
                let job = Job { id, model, messages, tools, chat_template_kwargs, params };
                (tokens, Ask::Plain(Box::new(job)))
            }
            Request::Sealed(Sealed { prompt, max_tokens, temperature, provider }) => {
                let bytes = prompt.bytes().get();
                (
                    bytes,
                    Ask::Sealed { job: SealedJob { id, model, max_tokens, temperature, prompt }, provider },
                )
            }
        };
        let prompt_bound = TokenCount::new(prompt_bound);
        Self {
            ask,
            spec,
            admitted_at: now,
            payer,
            preferred,
            price_per_1k,
            prompt_bound,
            prompt_bytes: Bytes::new(prompt_bound.get()),
            tried: Vec::new(),
            attempts: None,
            interrupted: None,
            phase: Phase::Holding { abandoned: false },
        }
    }

    /// Most tokens that the job can take: what is held, in money or in the demo key's budget.
    pub(super) fn worst_case(&self) -> TokenCount {
        self.prompt_bound + self.ask.max_tokens()
    }

    /// What the worst case costs.
    pub(super) fn hold(&self) -> Option<XRam> {
        pricing::charge(self.price_per_1k, self.worst_case())
    }

    /// What the job asks of a provider.
    pub(super) fn wish(&self) -> Wish<'_> {
        let wish = wish_for(self.spec, self.prompt_bound, self.ask.max_tokens());
        Wish { preferred: self.preferred, client_wallet: self.client_wallet(), tried: &self.tried, ..wish }
    }

    /// Whence the money comes: keys are credited by the operator, so no wallet is known yet.
    pub(super) const fn client_wallet(&self) -> Option<WalletAddress> {
        None
    }

    /// Tokens that a model may write without anything to show for them, because the user asked so: a stop text is not
    /// part of the answer, and who weights tokens by their ids can ask for some that spell nothing.
    pub(super) fn unseen(&self) -> TokenCount {
        let Some(Job { params, .. }) = self.ask.plain() else { return TokenCount::ZERO };
        if !params.sampling.logit_bias.is_empty() {
            return params.max_tokens;
        }
        let longest = params.stop.iter().map(|stop| stop.as_str().len()).max().unwrap_or(0);
        TokenCount::new(longest as u64)
    }

    /// What the prompt is known by while the process lives.
    pub(super) fn prompt_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for message in self.ask.plain().map(|job| &job.messages).into_iter().flatten() {
            message.role.hash(&mut hasher);
            message.content.hash(&mut hasher);
            message.name.hash(&mut hasher);
            for call in &message.tool_calls {
                call.arguments.hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Whether the user has heard anything of the answer that runs.
    pub(super) fn spoke(&self) -> bool {
        let told = |run: &Run| run.heard.as_ref().is_some_and(|heard| !heard.is_empty());
        matches!(&self.phase, Phase::Running(run) if !run.digest.is_empty() || run.boxes.bytes > 0 || run.logprobs > 0 || told(run))
    }

    /// Lets a job that waits stand where it was interrupted, if it was.
    pub(super) fn take_up(&mut self) -> bool {
        let interrupted = self.interrupted.take();
        let was = interrupted.is_some();
        if let Some(run) = interrupted {
            self.phase = Phase::Running(*run);
        }
        was
    }

    /// The usage of an attempt that ends here: of what it claims, as much as what was delivered can hold.
    pub(super) fn so_far(&self, run: &Run) -> Usage {
        let completion = run.delivered.min(run.tokens_max() + self.unseen());
        Usage { prompt: run.prompt.unwrap_or_default(), completion, reasoning: TokenCount::ZERO }
    }

    /// The attempt that runs now, if `provider` and `attempt` are it.
    pub(super) fn run_of(&mut self, provider: ProviderId, attempt: Attempt) -> Option<&mut Run> {
        match &mut self.phase {
            Phase::Running(run) if run.provider == provider && run.attempt == attempt => Some(run),
            _ => None,
        }
    }

    /// Whether `provider` runs it now.
    pub(super) fn runs_on(&self, provider: ProviderId) -> bool {
        matches!(&self.phase, Phase::Running(run) if run.provider == provider)
    }

    /// How much an answer to this job can be.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            tokens: self.ask.max_tokens(),
            alternatives: self.ask.plain().and_then(|job| job.params.sampling.top_logprobs),
            has_tools: self.ask.plain().is_some_and(|job| !job.tools.is_empty()),
        }
    }

    /// The checkpoint that is due now, if one is.
    pub(super) fn checkpoint(&mut self, now: Timestamp) -> Option<SettleOrder> {
        let Phase::Running(run) = &mut self.phase else { return None };
        let fresh = run.delivered.saturating_sub(run.checkpoint.delivered).get();
        let is_due = fresh >= CHECKPOINT_TOKENS || now.since(run.checkpoint.at) >= CHECKPOINT_EVERY;
        if !is_due || (run.digest.is_empty() && run.boxes.bytes == 0) {
            return None;
        }
        run.checkpoint = Checkpoint { at: now, delivered: run.delivered };
        let Phase::Running(run) = &self.phase else { return None };
        Some(self.settle(run, self.so_far(run), Verdict::Unrewarded(Unrewarded::Unjudged)).0)
    }

    /// What is paid for `claim`: bounded by what the prompt can have, by what was delivered and what its text can hold,
    /// and so by the hold. An answer without a word costs nothing.
    pub(super) fn settle(&self, run: &Run, claim: Usage, verdict: Verdict) -> (SettleOrder, XRam) {
        let claim = match verdict {
            Verdict::Unrewarded(Unrewarded::Empty) => Usage::default(),
            _ => claim,
        };
        let completion = claim.completion.min(self.so_far(run).completion).min(self.ask.max_tokens());
        let usage = Usage {
            prompt: claim.prompt.min(self.prompt_bound),
            completion,
            reasoning: claim.reasoning.min(completion),
        };
        let charge = pricing::charge(self.price_per_1k, usage.prompt + usage.completion)
            .expect("tokens are at most the worst case, whose price was held");
        let order = SettleOrder {
            job: self.ask.id(),
            attempt: run.attempt,
            provider: run.provider,
            usage,
            charge,
            verdict,
        };
        (order, charge)
    }

    /// What the user is told of the money.
    pub(super) fn receipt(&self, charge: XRam, remaining: Option<XRam>) -> Receipt {
        Receipt { charge, price_per_1k: self.price_per_1k, remaining }
    }
}

/// What a job of `spec`'s model with so long a prompt and answer asks of a provider. The coordinator keeps the queue: a
/// provider is given only what it runs at once.
pub(super) fn wish_for(spec: &ModelSpec, prompt: TokenCount, answer: TokenCount) -> Wish<'static> {
    let context = (prompt + answer).min(spec.context());
    Wish {
        prompt,
        answer,
        weights: spec.weight_bytes(),
        memory: memory::needs(spec, None, Workload { context, slots: 1 }).total(),
        unmeasured: spec.expected_speed(),
        queue_max: 0,
        reputation_min: reputation::FLOOR,
        preferred: None,
        client_wallet: None,
        tried: &[],
    }
}

/// A payer as jobs are counted by it.
fn purse(payer: &Payer) -> Payer {
    match payer {
        Payer::Demo(address) => Payer::Demo(subscriber(*address)),
        Payer::Key(id) => Payer::Key(id.clone()),
    }
}
