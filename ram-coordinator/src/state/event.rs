//! What happens to the coordinator, and what it wants done: the whole surface between the core and its shells.

use ram_core::chat::PromptText;
use ram_core::chat::tools::{PromptJson, Tool, ToolCall};
use ram_core::id::{Attempt, JobId, ModelId, NodeName, ProviderId};
use ram_core::job::{Failure, FinishReason, GenerationParams, TokenLogprob, Usage};
use ram_core::reputation::Reputation;
use ram_core::units::{TokenCount, XRam};
use ram_core::validate::Verdict;
use ram_pipeline::{group, plan};
use ram_proto::blob::Blob;
use ram_proto::control::sealed::SealedPrompt;
use ram_proto::control::{Nonce, ToCoordinator, ToProvider};

use ram_core::chat::ChatMessage;

/// One WebSocket of one provider, from accept to close. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Whose money a job takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payer {
    /// The shared demo key, from this address; the network pays, within a budget per address and day.
    Demo(std::net::IpAddr),
    /// A key with an account of its own, by the key's public id.
    Key(String),
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A provider's socket opened; `nonce` is 32 fresh random bytes.
    SocketOpened {
        /// The socket.
        conn: ConnId,
        /// What its node shall sign.
        nonce: Nonce,
    },
    /// A provider said something.
    FromProvider {
        /// On this socket.
        conn: ConnId,
        /// This. Boxed so that events stay small in the inbox.
        message: Box<ToCoordinator>,
    },
    /// A provider's socket closed, or broke the rules and was closed.
    SocketClosed {
        /// The socket.
        conn: ConnId,
    },
    /// A user's request passed validation and authentication.
    Submit(Box<Submission>),
    /// The store answered [`Effect::Hold`].
    Held {
        /// The job.
        job: JobId,
        /// Whether the money is set aside.
        result: Result<(), HoldError>,
    },
    /// The store answered [`Effect::Settle`].
    Settled {
        /// The job.
        job: JobId,
        /// What the payer has left, when it has an account of its own.
        remaining: Option<XRam>,
    },
    /// The user went away.
    Abandon {
        /// The job.
        job: JobId,
    },
    /// The store told what an earlier process wrote by [`Effect::NoteStandings`].
    Remembered(Vec<Standing>),
    /// Time passed: comes at least every [`TICK`].
    Tick,
    /// The operator wants to stop: no new jobs, none that waits, and those that run end.
    Drain,
    /// The operator has thought better of it: new jobs are taken again.
    Resume,
    /// The process is about to end: providers are told to finish what they have.
    Dismiss,
    /// The operator takes a provider out of service, or back in.
    DrainProvider {
        /// Which.
        provider: ProviderId,
        /// Whether it takes no new jobs.
        draining: bool,
    },
}

/// How often [`Event::Tick`] comes.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(250);

/// One chat request.
#[derive(Debug)]
pub struct Submission {
    /// Fresh random bits.
    pub job: JobId,
    /// Who pays.
    pub payer: Payer,
    /// Alias or full id, as the user wrote it.
    pub model: ModelId,
    /// What is asked.
    pub request: Request,
    /// The provider that the user would rather have.
    pub preferred: Option<ProviderId>,
}

/// What is asked, in words or in a box.
#[derive(Debug)]
pub enum Request {
    /// In words.
    Plain(Box<Plain>),
    /// In a box.
    Sealed(Sealed),
}

/// A conversation to continue.
#[derive(Debug)]
pub struct Plain {
    /// It.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Further variables for the chat template.
    pub chat_template_kwargs: PromptJson,
    /// How to continue it; `max_tokens` is already defaulted.
    pub params: GenerationParams,
}

/// A conversation that one provider alone can read.
#[derive(Debug)]
pub struct Sealed {
    /// It.
    pub prompt: SealedPrompt,
    /// Most tokens of the answer.
    pub max_tokens: TokenCount,
    /// Where the prompt does not say.
    pub temperature: Option<f32>,
    /// Whom it was sealed to.
    pub provider: ProviderId,
}

/// Why money could not be set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Not enough.
    #[error("the balance of {balance} xRAM does not cover the hold of {needed} xRAM")]
    Insufficient {
        /// What there is.
        balance: XRam,
        /// What the job could cost at worst.
        needed: XRam,
    },
    /// The store did not take it.
    #[error("the ledger is not available")]
    Unavailable,
}

/// Something to do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Send this to a provider.
    Send {
        /// On this socket.
        conn: ConnId,
        /// This.
        message: Box<ToProvider>,
    },
    /// Close a provider's socket once what was sent has left.
    Close {
        /// The socket.
        conn: ConnId,
    },
    /// Set money aside, durably, and answer with [`Event::Held`].
    Hold(HoldOrder),
    /// Pay for a job and release the rest, durably and in one transaction, and answer with [`Event::Settled`].
    Settle(SettleOrder),
    /// Note, durably, what a running job has delivered so far; nobody waits for it.
    Checkpoint(SettleOrder),
    /// Note, durably, a result that nobody pays for; the hold stays as it is, and nobody waits.
    Refuse(SettleOrder),
    /// Note, durably, what is thought of these nodes; nobody waits.
    NoteStandings(Vec<Standing>),
    /// Release a hold whole: the job took nothing.
    Void {
        /// The job.
        job: JobId,
    },
    /// Tell the user.
    Reply {
        /// The job.
        job: JobId,
        /// This.
        reply: Reply,
    },
}

/// Money to set aside before a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldOrder {
    /// The job.
    pub job: JobId,
    /// Whose money.
    pub payer: Payer,
    /// The worst case.
    pub amount: XRam,
    /// The model, for the record.
    pub model: ModelId,
}

/// Money to pay for what a job has delivered: at its end, or if a crash should end it here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleOrder {
    /// The job.
    pub job: JobId,
    /// The fence: which attempt is paid.
    pub attempt: Attempt,
    /// Who served.
    pub provider: ProviderId,
    /// Tokens that are charged.
    pub usage: Usage,
    /// What they cost, never more than the hold.
    pub charge: XRam,
    /// What the result is worth: of one that is not good no reward is ever paid.
    pub verdict: Verdict,
}

/// What is thought of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The node, by its key.
    pub provider: ProviderId,
    /// How far it is trusted.
    pub reputation: Reputation,
}

/// Something to tell the user of a job. The last one is `Done` or `Failed`, and there is exactly one of those.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A provider took the job and has read the prompt.
    Started {
        /// Which.
        provider: ProviderId,
        /// Its name.
        name: NodeName,
        /// Tokens of the rendered prompt, as the provider counts.
        prompt: TokenCount,
    },
    /// More of the answer.
    Delta {
        /// What the user sees.
        content: PromptText,
        /// What the model thought.
        reasoning: PromptText,
        /// Functions that the model called, each whole.
        tool_calls: Vec<ToolCall>,
        /// Log-probabilities of the content's tokens, when they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The next box of an answer that only the user can read.
    Sealed {
        /// What the boxes need to be opened, with the first.
        nonce: Option<Blob>,
        /// The box.
        sealed: Blob,
        /// Whether it is the last.
        last: bool,
    },
    /// The answer is whole and paid.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// What was charged for.
        usage: Usage,
        /// What it cost.
        receipt: Receipt,
    },
    /// There is no answer, or no more of it.
    Failed {
        /// Why.
        error: JobError,
        /// What the tokens delivered so far cost, if any were.
        receipt: Option<Receipt>,
    },
}

/// What a job cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The charge.
    pub charge: XRam,
    /// The price that was fixed at admission.
    pub price_per_1k: XRam,
    /// What the payer has left, when it has an account of its own.
    pub remaining: Option<XRam>,
}

/// Why a job has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// No model of this name.
    #[error("the model `{0}` does not exist")]
    UnknownModel(ModelId),
    /// No provider could take it in time.
    #[error("no provider can serve `{0}` now")]
    NoCapacity(ModelId),
    /// The provider that the prompt was sealed to does not serve it any more.
    #[error("the provider that the prompt was sealed to is gone or busy; begin again with another")]
    ProviderGone,
    /// It is held by no node alone, and several together cannot hold it either.
    #[error("no provider has `{model}`, and it cannot be split over several: {refusal}")]
    DoesNotFit {
        /// The model.
        model: ModelId,
        /// What is missing.
        refusal: plan::Refusal,
    },
    /// The nodes that are to hold it together are not ready yet.
    #[error("the providers that share `{0}` are loading their layers; ask again in a minute")]
    Loading(ModelId),
    /// The nodes that were to hold it together did not manage to.
    #[error("the providers that share `{model}` could not serve it: {end}")]
    FellApart {
        /// The model.
        model: ModelId,
        /// Why.
        end: group::End,
    },
    /// Too many jobs wait for this model.
    #[error("too many requests wait for `{0}`")]
    QueueFull(ModelId),
    /// The payer has as many jobs open as one may.
    #[error("{most} requests of this caller are open already; wait for one to end")]
    TooManyOpen {
        /// How many that is.
        most: usize,
    },
    /// The payer cannot pay.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The demo key's budget for this address and day is spent.
    #[error("the demo key's budget for today is spent; use a key of your own")]
    DemoBudget,
    /// Providers failed.
    #[error("{failure}")]
    Provider {
        /// The last one's reason.
        failure: Failure,
    },
    /// The coordinator is stopping.
    #[error("the coordinator is shutting down")]
    Draining,
}
