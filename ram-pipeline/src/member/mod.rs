//! A node's part in a group, running (feature `tokio`): the worker, on the head the driver beside it, the stage on a
//! thread of its own, and the links of the present epoch.
//!
//! ```text
//! join(chain) -> dial the next shard (the last one: the head, for results)        | all is there
//!             -> welcome the shard before, once all behind this one is there      v
//! callers     -> whose epoch is to come wait, others are refused            Report::Linked
//! a link ends -> Report::Lost: who made the group says in which epoch and chain it goes on
//! ```
//!
//! A shard answers the one before it when it is linked to the one behind: so the head, once it is welcome, has a whole
//! chain. [`Member`] is the handle: it thinks nothing and waits for nothing.

mod actor;
mod links;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ram_core::id::{Epoch, JobId, NodeKey};
use ram_core::layers::LayerRange;
use ram_core::units::Timestamp;
use ram_proto::control::shard::Addresses;
use ram_proto::frame::{Code, Heartbeat, Logprob, ModelDigest, Spent};
use tokio::sync::{mpsc, watch};

use self::actor::Actor;
use crate::driver::{End, Request};
use crate::link::greet::{Caller, Open};
use crate::link::{Link, LinkError};
use crate::stage::{Stage, StageOutput};
use crate::worker::{Side, WorkerConfig};

/// What a member is, in every epoch.
#[derive(Clone, Copy, Debug)]
pub struct MemberConfig {
    /// The model, by its files.
    pub model: ModelDigest,
    /// The shard.
    pub worker: WorkerConfig,
    /// Tokens of a piece of a prompt, on the head.
    pub piece: NonZeroU32,
}

/// A member, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub node: NodeKey,
    /// Where it listens, best first.
    pub addresses: Addresses,
    /// What it holds.
    pub layers: LayerRange,
}

/// All members, in the order of layers, for as long as an epoch lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Later than those before.
    pub epoch: Epoch,
    /// At least one.
    pub peers: Vec<Peer>,
    /// Which of them this one is.
    pub place: usize,
}

/// Makes a link to a peer, by whichever of its addresses leads to it.
pub type Dialer = Arc<dyn Fn(&Peer) -> BoxFuture<'static, Result<Box<dyn Link>, LinkError>> + Send + Sync>;

/// What a member tells whoever runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// All links of an epoch are there; if this is the head, those of the whole chain.
    Linked(Epoch),
    /// A link of an epoch is gone, or was not to be had.
    Lost(Epoch, Side),
}

/// More of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// A token.
    Token {
        /// Which.
        token: u32,
        /// How likely it was, if asked for.
        logprob: Option<Logprob>,
        /// What the shards took for it.
        spent: Spent,
    },
    /// The end; nothing comes behind.
    End(End),
}

/// A member that runs; it ends when the last of these is dropped.
#[derive(Clone)]
pub struct Member {
    said: mpsc::UnboundedSender<Said>,
    status: watch::Receiver<Heartbeat>,
    hop: watch::Receiver<Option<Duration>>,
}

/// What a member is told.
enum Said {
    Join(Chain),
    Leave,
    Called(Box<Caller<Box<dyn Link>>>),
    Dialled { epoch: Epoch, side: Side, outcome: Result<Box<Open<Box<dyn Link>>>, LinkError> },
    Closed { link: u64 },
    Computed { outcome: Result<Vec<StageOutput>, Code>, took: Duration },
    OpenFailed { session: JobId, code: Code },
    Submit { request: Request, words: mpsc::UnboundedSender<Word> },
    Enough(JobId),
    Hopeless(Code),
}

impl Member {
    /// Begins, without links, on the caller's runtime. `clock` says what time it is, `reports` are for who runs it.
    #[must_use]
    pub fn start(
        config: MemberConfig,
        stage: impl Stage + Send + 'static,
        dialer: Dialer,
        clock: impl Fn() -> Timestamp + Send + 'static,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let (said, inbox) = mpsc::unbounded_channel();
        let actor = Actor::new(config, stage, dialer, Box::new(clock), said.downgrade(), reports);
        let (status, hop) = (actor.status(), actor.hop());
        tokio::spawn(actor.run(inbox));
        Self { said, status, hop }
    }

    /// Has all links made anew, in this epoch; one that is not later than the present one is not heard.
    pub fn join(&self, chain: Chain) {
        self.tell(Said::Join(chain));
    }

    /// Has all links closed, without a word of it: the layers serve no more, and stay. A later epoch may take them up.
    pub fn leave(&self) {
        self.tell(Said::Leave);
    }

    /// How busy it is, as it says on its links with each heartbeat.
    #[must_use]
    pub fn status(&self) -> Heartbeat {
        *self.status.borrow()
    }

    /// How long a frame takes to the next shard, from the last one to the head, as heartbeats of this epoch tell it.
    #[must_use]
    pub fn hop(&self) -> Option<Duration> {
        *self.hop.borrow()
    }

    /// Somebody has dialled, and said that it means this member's model.
    pub fn called(&self, caller: Caller<Box<dyn Link>>) {
        self.tell(Said::Called(Box::new(caller)));
    }

    /// Begins an answer, on the head. Who drops the words does not want any more of them.
    #[must_use]
    pub fn submit(&self, request: Request) -> mpsc::UnboundedReceiver<Word> {
        let (words, heard) = mpsc::unbounded_channel();
        self.tell(Said::Submit { request, words });
        heard
    }

    /// An answer is long enough.
    pub fn enough(&self, session: JobId) {
        self.tell(Said::Enough(session));
    }

    /// There is no other chain to be had: answers end with this.
    pub fn hopeless(&self, code: Code) {
        self.tell(Said::Hopeless(code));
    }

    fn tell(&self, said: Said) {
        // The actor ends when nobody is left who could tell it something.
        let _ = self.said.send(said);
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").finish_non_exhaustive()
    }
}
