//! What happens to the [`Agent`](super::Agent), and what it wants done.

use std::fmt;
use std::time::Duration;

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::id::{Epoch, GroupId, ProviderId};
use ram_core::job::{Job, Outcome, TokenLogprob};
use ram_core::provider::{ModelOffer, Thermal};
use ram_core::units::{Bytes, TokenCount};
use ram_proto::control::shard::{
    LinkShard, LoadShard, ShardFailed, ShardLinked, ShardLost, ShardReady, ShardReport, UnloadShard,
};
use ram_proto::control::{Decoded, RejectReason, ToCoordinator, ToProvider};

/// One run of a job on this node. Never used twice, so that late words of a cancelled run fit no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// More of an answer, thoughts told from words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Tokens written since the piece before, hidden ones included.
    pub tokens: TokenCount,
    /// What the user sees.
    pub content: PromptText,
    /// What the model thought.
    pub reasoning: PromptText,
    /// Functions that the model called, each whole.
    pub tool_calls: Vec<ToolCall>,
    /// Log-probabilities of the content's tokens, when they were asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// What a node that holds shards is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardOrder {
    /// Hold layers, and say that they are ready, or why not; again if they are held.
    Load(LoadShard),
    /// Link them into a chain.
    Link(LinkShard),
    /// Let them go, whether or not they are loaded yet.
    Unload(UnloadShard),
}

/// What is to be said of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardWord {
    /// It is held.
    Ready(ShardReady),
    /// It is not, or not any more.
    Failed(ShardFailed),
    /// Its links stand.
    Linked(ShardLinked),
    /// One of them does not.
    Lost(ShardLost),
}

impl From<ShardWord> for ToCoordinator {
    fn from(word: ShardWord) -> Self {
        match word {
            ShardWord::Ready(word) => Self::ShardReady(word),
            ShardWord::Failed(word) => Self::ShardFailed(word),
            ShardWord::Linked(word) => Self::ShardLinked(word),
            ShardWord::Lost(word) => Self::ShardLost(word),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The time of [`Agent::wake_at`](super::Agent::wake_at) has come (or the shell just started).
    Wake,
    /// The socket that [`Effect::Connect`] asked for stands.
    LinkUp,
    /// The coordinator said something.
    Message(Decoded<ToProvider>),
    /// The socket is gone, or never stood, or carried bytes that do not read.
    LinkDown,
    /// The prompt of a run is read and fits.
    Started {
        /// The run.
        ticket: Ticket,
        /// Tokens of the rendered prompt.
        prompt: TokenCount,
    },
    /// A run has more of its answer.
    Piece {
        /// The run.
        ticket: Ticket,
        /// The piece.
        piece: Piece,
    },
    /// A run is over.
    Ended {
        /// The run.
        ticket: Ticket,
        /// How.
        outcome: Outcome,
    },
    /// What this node serves has changed: a model was loaded, gave way or failed, or its speed is known.
    Offers {
        /// All that is served now.
        offers: Vec<ModelOffer>,
        /// Memory under the cap that nothing uses yet.
        memory_free: Bytes,
    },
    /// How hot the machine is.
    Thermal(Thermal),
    /// Something is to be said of a shard.
    Shard(ShardWord),
    /// What the node lends to groups and how its shards do, anew. A node that never says so lends nothing.
    ShardReport(ShardReport),
    /// The operator wants the node to stop.
    DrainRequested,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few at a time, and each is taken at once")]
pub enum Effect {
    /// Open a socket to the coordinator; answer with [`Event::LinkUp`] or [`Event::LinkDown`].
    Connect,
    /// Say this to the coordinator.
    Send(ToCoordinator),
    /// Say what is still to be said, then close the socket; no event of it may follow.
    CloseLink,
    /// Run this job; answer with `Started`, `Piece`s and one `Ended`. A model that is not in memory is loaded first.
    Generate {
        /// The run.
        ticket: Ticket,
        /// The job.
        job: Job,
        /// The group that answers, whose first layers are in memory here; a whole model when there is none.
        group: Option<GroupId>,
    },
    /// Do this for a group; answer with [`Event::Shard`].
    Shard(ShardOrder),
    /// Stop this run now; its late events are ignored.
    CancelGeneration(Ticket),
    /// Tell the operator.
    Note(Note),
    /// All is done: the process may end.
    Exit,
}

/// What an operator should know. No word of a prompt is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The coordinator took the node in.
    Registered {
        /// Who the node is there.
        provider: ProviderId,
        /// Which of its sessions this is.
        epoch: Epoch,
    },
    /// The coordinator did not take the node in.
    Rejected {
        /// Why.
        reason: RejectReason,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// The socket is gone.
    LinkLost {
        /// Runs that were cut short; the coordinator gives their jobs to others.
        cancelled: usize,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// The coordinator broke the rules of the protocol; the socket is closed.
    PeerAtFault {
        /// What was wrong.
        what: &'static str,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// The coordinator does not know one of our messages.
    Unsupported {
        /// Its type.
        of: String,
    },
    /// No new jobs are taken; what runs will end.
    Draining {
        /// Runs that go on.
        running: usize,
        /// Whose wish it is.
        by: DrainedBy,
    },
    /// The time to drain is over; what still ran was cut short.
    DrainTimedOut {
        /// Runs that were cut short; the coordinator gives their jobs to others.
        cancelled: usize,
    },
}

/// Who wants no more jobs to come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainedBy {
    /// The one who runs this node.
    Operator,
    /// The coordinator.
    Coordinator,
}

impl Note {
    /// Whether an operator has to do something, or may have to.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        !matches!(self, Self::Registered { .. } | Self::Draining { .. })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered { provider, epoch } => {
                write!(f, "registered as {provider}, session {}", epoch.get())
            }
            Self::Rejected { reason, retry_in } => {
                write!(f, "the coordinator refused this node: {reason}; next try in {}", Seconds(*retry_in))
            }
            Self::LinkLost { cancelled: 0, retry_in } => {
                write!(f, "no connection to the coordinator; next try in {}", Seconds(*retry_in))
            }
            Self::LinkLost { cancelled, retry_in } => {
                write!(f, "connection lost with {cancelled} jobs running; next try in {}", Seconds(*retry_in))
            }
            Self::PeerAtFault { what, retry_in } => {
                write!(f, "the coordinator broke the protocol: {what}; next try in {}", Seconds(*retry_in))
            }
            Self::Unsupported { of } => write!(f, "the coordinator does not know messages of type `{of}`"),
            Self::Draining { running, by: DrainedBy::Operator } => {
                write!(f, "draining: {running} jobs to finish, no new ones")
            }
            Self::Draining { running, by: DrainedBy::Coordinator } => {
                write!(f, "the coordinator gives this node no new jobs; {running} to finish")
            }
            Self::DrainTimedOut { cancelled } => write!(f, "stopped with {cancelled} jobs unfinished"),
        }
    }
}

/// A wait as an operator reads it: `0.4 s`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.as_millis() / 100;
        write!(f, "{}.{} s", tenths / 10, tenths % 10)
    }
}
