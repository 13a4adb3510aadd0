//! What the heads of frames say, word by word.

use std::fmt;
use std::str::FromStr;

use ram_core::id::{ContentHash, Epoch, JobId, NodeKey};
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::tensor::{Dtype, Shape};

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Head {
    /// The first word on a new link, of whoever made it.
    Hello(Hello),
    /// The answer: you are the one that was waited for.
    Welcome(Welcome),
    /// Room for a session's keys and values. The payload are the tokens that the sampler counts as seen before, if its
    /// settings look at any, in 32 bits each, little-endian: first of the prompt, the last `picks` of the answer. They
    /// are of use to the last shard alone.
    KvCacheInit(KvCacheInit),
    /// Compute this, and send it on. The payload are activations.
    ForwardPass(Step),
    /// Compute this, and send nothing on: a lost shard's keys and values are made anew. The payload are activations.
    Replay(Step),
    /// The last shard's answer to a step. The payload are logits, if those were wanted.
    Result(StepResult),
    /// Steps that were taken up since the last CREDIT; as many more may be sent.
    Credit {
        /// How many.
        steps: u32,
    },
    /// What lies behind a position is void.
    Trim(Trim),
    /// Nobody waits for the steps of a session that are on their way; its keys and values stay.
    Cancel(Of),
    /// A session has ended: its keys and values may go.
    Close(Of),
    /// I live, and this is how busy I am.
    Heartbeat(Heartbeat),
    /// Something that was asked for is not done.
    Error(Refusal),
    /// No new sessions, please; those that run will end.
    Goaway,
    /// The first word on a link that is for one file and nothing else, in place of HELLO.
    Fetch(Fetch),
    /// A piece of the file; one comes behind the other until its end. The payload are its bytes.
    Piece(Piece),
}

/// Who makes a link, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Which model, as the group's maker named it: of its files' digests.
    pub model: ModelDigest,
    /// The layers that the other end is expected to hold.
    pub layers: LayerRange,
    /// The group's epoch.
    pub epoch: Epoch,
    /// What goes over the link.
    pub carries: Carries,
    /// In which type activations are sent.
    pub dtype: Dtype,
    /// How wide they are.
    pub width: u32,
}

/// What goes over a link, from its maker's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carries {
    /// Steps down the chain.
    Steps,
    /// Results from the last shard to the head.
    Results,
}

/// The other end is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Steps that may be on their way before the first CREDIT.
    pub credits: u32,
    /// Positions of sessions that there is room for.
    pub kv_free: TokenCount,
    /// Sessions that it holds from before. One without any takes the place of a shard that was lost: what goes on over
    /// it is to be replayed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub sessions: u32,
}

/// Send me a file, from some byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Which: it has no other name here.
    pub content: ContentHash,
    /// The first byte that is wanted.
    pub from: u64,
}

/// Where a piece of a file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its first byte.
    pub at: u64,
    /// The size of the whole file.
    pub size: u64,
}

/// Whether there are none.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_none(count: &u32) -> bool {
    *count == 0
}

/// A session, as of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    /// The session: a job that this group runs.
    pub session: JobId,
    /// The group's epoch; what comes with another one is not done.
    pub epoch: Epoch,
}

/// Room for a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvCacheInit {
    /// Which.
    #[serde(flatten)]
    pub of: Of,
    /// Positions that it will have at most.
    pub positions: TokenCount,
    /// How the last shard picks tokens.
    pub sampling: Sampling,
    /// The number of the first pick: tokens of the answer so far.
    pub picks: TokenCount,
    /// How far the session had come in an epoch before: who holds it goes on there, who takes a lost shard's place gets
    /// that much by REPLAY first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Mark>,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Tokens.
    pub position: u32,
    /// Which ones.
    pub prefix: PrefixHash,
}

/// Some tokens of a session on their way through the layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatStep", into = "FlatStep")]
pub struct Step {
    /// Which session.
    pub of: Of,
    /// The position of the first token.
    pub position: u32,
    /// Tokens and width of the activations.
    pub shape: Shape,
    /// Their type.
    pub dtype: Dtype,
    /// Of all tokens before these: keys and values of others are not gone on with.
    pub prefix: PrefixHash,
    /// Of all tokens up to the last of these.
    pub after: PrefixHash,
    /// What is to come of it.
    pub want: Want,
    /// How long somebody waits for it yet.
    pub deadline_ms: u32,
    /// What it took so far.
    pub spent: Spent,
}

/// A step as it is written: serde would gather all fields in a map first to find those of an [`Of`] among them.
#[derive(Serialize, Deserialize)]
struct FlatStep {
    session: JobId,
    epoch: Epoch,
    position: u32,
    shape: Shape,
    dtype: Dtype,
    prefix: PrefixHash,
    after: PrefixHash,
    want: Want,
    deadline_ms: u32,
    #[serde(default, skip_serializing_if = "Spent::is_nothing")]
    spent: Spent,
}

impl From<FlatStep> for Step {
    fn from(flat: FlatStep) -> Self {
        let FlatStep { session, epoch, position, shape, dtype, prefix, after, want, deadline_ms, spent } =
            flat;
        let of = Of { session, epoch };
        Self { of, position, shape, dtype, prefix, after, want, deadline_ms, spent }
    }
}

impl From<Step> for FlatStep {
    fn from(step: Step) -> Self {
        let Step { of, position, shape, dtype, prefix, after, want, deadline_ms, spent } = step;
        let Of { session, epoch } = of;
        Self { session, epoch, position, shape, dtype, prefix, after, want, deadline_ms, spent }
    }
}

/// What is to come of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// Keys and values alone: more of the prompt follows.
    Nothing,
    /// The token after the last one.
    Token,
    /// Logits after each token.
    Logits,
}

/// Where the time of a step went, all shards together: of one size, however many there are. On the wire a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Spent {
    /// Microseconds of computing.
    pub compute_us: u32,
    /// Microseconds of waiting for other sessions' steps.
    pub queue_us: u32,
}

impl From<(u32, u32)> for Spent {
    fn from((compute_us, queue_us): (u32, u32)) -> Self {
        Self { compute_us, queue_us }
    }
}

impl From<Spent> for (u32, u32) {
    fn from(spent: Spent) -> Self {
        (spent.compute_us, spent.queue_us)
    }
}

impl Spent {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlatResult", into = "FlatResult")]
pub struct StepResult {
    /// Of which session.
    pub of: Of,
    /// The position after the step's last token, where the picked one will stand.
    pub position: u32,
    /// The token that was picked, if one was wanted.
    pub token: Option<u32>,
    /// How likely it was, if the session's sampling asks for that.
    pub logprob: Option<Logprob>,
    /// Rows and columns of the logits, in f32, if those were wanted.
    pub logits: Option<Shape>,
    /// What the step took.
    pub spent: Spent,
}

/// A result as it is written, as [`FlatStep`] is.
#[derive(Serialize, Deserialize)]
struct FlatResult {
    session: JobId,
    epoch: Epoch,
    position: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprob: Option<Logprob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logits: Option<Shape>,
    #[serde(default, skip_serializing_if = "Spent::is_nothing")]
    spent: Spent,
}

impl From<FlatResult> for StepResult {
    fn from(flat: FlatResult) -> Self {
        let FlatResult { session, epoch, position, token, logprob, logits, spent } = flat;
        Self { of: Of { session, epoch }, position, token, logprob, logits, spent }
    }
}

impl From<StepResult> for FlatResult {
    fn from(result: StepResult) -> Self {
        let StepResult { of: Of { session, epoch }, position, token, logprob, logits, spent } = result;
        Self { session, epoch, position, token, logprob, logits, spent }
    }
}

/// How likely a token and its rivals were; natural logarithms of the model's own probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// The token's own.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Where a session goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trim {
    /// Which session, in the epoch that now begins for it.
    #[serde(flatten)]
    pub of: Of,
    /// Positions that stay.
    pub position: u32,
    /// Of the tokens of those.
    pub prefix: PrefixHash,
}

/// How busy a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Sessions that it holds.
    pub sessions: u32,
    /// Steps that wait.
    pub queued: u32,
    /// Positions of sessions that there is room for.
    pub kv_free: TokenCount,
    /// Microseconds of computing that a step of one token took lately.
    pub step_us: u32,
    /// By which the other end can tell how far away it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
}

/// When a heartbeat was sent, and which one of the other end's was heard last: two of these tell how long the way there
/// and back takes, as reports of RTCP do (RFC 3550, 6.4.1). Microseconds of a clock of one's own, which begins anew
/// after an hour and a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Now.
    pub at_us: u32,
    /// What was heard last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<Echo>,
}

/// A heartbeat that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// When it was sent, by its sender's clock.
    pub at_us: u32,
    /// How long ago it came.
    pub held_us: u32,
}

/// What is not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What it concerns; the link itself if no session.
    #[serde(flatten)]
    pub of: Option<Of>,
    /// Why.
    pub code: Code,
    /// When it may be worth another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The other end speaks another version.
    WrongVersion,
    /// This node holds no layers of that model.
    WrongModel,
    /// It holds other layers of it.
    WrongLayers,
    /// The group has gone on to another epoch.
    WrongEpoch,
    /// The session's tokens so far are not those that are held.
    WrongPrefix,
    /// Another type or width than was agreed, or more positions than there is room for.
    WrongShape,
    /// No such session is held: it was closed, or expired.
    UnknownSession,
    /// No room, for now.
    Busy,
    /// Nobody waits any more.
    DeadlineExceeded,
    /// More steps than there was credit for, or something out of its order.
    Protocol,
    /// The head has a type that is unknown here.
    Unsupported,
    /// No such file is here, or it has no such byte.
    UnknownContent,
    /// A shard further down is gone.
    LinkLost,
    /// It went wrong here.
    Internal,
}

impl Code {
    /// Whether the same may go well at another time or with another group.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::WrongEpoch
            | Self::WrongPrefix
            | Self::UnknownSession
            | Self::Busy
            | Self::LinkLost
            | Self::Internal => true,
            Self::WrongVersion
            | Self::WrongModel
            | Self::WrongLayers
            | Self::WrongShape
            | Self::DeadlineExceeded
            | Self::Protocol
            | Self::Unsupported
            | Self::UnknownContent => false,
        }
    }
}

/// A hash of a session's tokens from the first on: FNV-1a (draft-eastlake-fnv, 64 bits) over their ids, each as four
/// little-endian bytes.
///
/// It tells keys and values that belong to other tokens from those that belong to these. It keeps no secret and stops
/// no forger: sessions are told apart by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixHash(u64);

impl PrefixHash {
    /// Of no tokens.
    pub const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// With these tokens behind.
    #[must_use]
    pub fn with(self, tokens: &[u32]) -> Self {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        Self(bytes.fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }
}

impl Default for PrefixHash {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Serialize for PrefixHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Text, for JSON's numbers are floats of 53 bits to many readers.
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for PrefixHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = || serde::de::Error::custom("a prefix is 16 hexadecimal digits");
        let text = String::deserialize(deserializer)?;
        if text.len() != 16 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(expected());
        }
        u64::from_str_radix(&text, 16).map(Self).map_err(|_| expected())
    }
}

/// A model's files, by one digest (SHA-256).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelDigest([u8; 32]);

impl ModelDigest {
    /// Of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ModelDigest {
    type Err = ModelDigestError;

    fn from_str(text: &str) -> Result<Self, ModelDigestError> {
        // Sixty-four digits of a kind that a node's key has, too.
        let key: NodeKey = text.parse().map_err(|_| ModelDigestError)?;
        Ok(Self(*key.as_bytes()))
    }
}

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a model's digest is 64 hexadecimal digits, lower-case")]
pub struct ModelDigestError;

impl Serialize for ModelDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The types of heads that are known here.
pub const TYPES: [&str; 15] = [
    "HELLO",
    "WELCOME",
    "KV_CACHE_INIT",
    "FORWARD_PASS",
    "REPLAY",
    "RESULT",
    "CREDIT",
    "TRIM",
    "CANCEL",
    "CLOSE",
    "HEARTBEAT",
    "ERROR",
    "GOAWAY",
    "FETCH",
    "PIECE",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the reference's own table of test vectors ("foobar" is 85944171f73967e8, "foob" stands for one token).
    #[test]
    fn a_prefix_is_hashed_by_fnv_1a() {
        let token = u32::from_le_bytes(*b"foob");
        assert_eq!(PrefixHash::EMPTY.with(&[token]), PrefixHash(0xdd12_0e79_0c25_12af));
        let all = PrefixHash::EMPTY.with(&[1, 70_000, u32::MAX]);
        assert_eq!(all, PrefixHash(0x1983_acea_9d93_75e2));
        assert_eq!(PrefixHash::EMPTY.with(&[1]).with(&[70_000, u32::MAX]), all);
    }
}
