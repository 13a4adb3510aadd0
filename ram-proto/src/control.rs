//! Control messages between a provider and the coordinator: JSON text frames on one WebSocket.
//!
//! ```text
//! provider                                   coordinator
//!    |  -- connects to /ws/provider ------------>  |
//!    |  <------------------------- challenge ----  |   nonce, once, within 60 s
//!    |  -- register ---------------------------->  |   signed statement, machine, offers, capabilities
//!    |  <-- registered | rejected ---------------  |   epoch: fences the sessions before this one
//!    |  -- heartbeat (every 10 s) -------------->  |   gone after 25 s without one
//!    |  <------------------------------ run -----  |   one session carries many jobs
//!    |  -- accepted, chunk*, finished ---------->  |
//!    |  <--------------------------- cancel -----  |
//!    |  <---------------------------- drain -----  |   or the provider says `draining`
//! ```
//!
//! What is said of a model over several nodes stands in [`shard`], what nobody between can read in [`sealed`].
//!
//! Every message is an object tagged `type`. Unknown fields are ignored. An unknown type is answered with `unsupported`
//! and is never fatal: what both ends understand is settled by [`Capability`] at registration, not by version numbers.
//! What is malformed is the peer's fault: the receiver closes the socket. Start at [`decode`].

pub mod sealed;
pub mod shard;

use std::collections::BTreeSet;
use std::fmt;

use ram_core::chat::PromptText;
use ram_core::chat::tools::ToolCall;
use ram_core::id::{Attempt, Epoch, GroupId, JobId, NodeKey, NodeName, ProviderId, WalletAddress};
use ram_core::job::{Job, Outcome, TokenLogprob};
use ram_core::provider::{Load, ModelOffer, ProviderSpec};
use ram_core::units::{Bytes, Timestamp, TokenCount};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::sealed::{SealedChunk, SealedJob};
use self::shard::{
    LinkShard, LoadShard, ShardFailed, ShardLinked, ShardLost, ShardReady, ShardReport, UnloadShard,
};

/// Longest message to a provider: a prompt of 4 MiB, each byte escaped as `\u00XX` at worst for control characters.
pub const TO_PROVIDER_BYTES_MAX: usize = 28 << 20;
/// Longest message to the coordinator: the registration of 64 offers is 10 KiB; a chunk of a second's tokens 2 KiB.
pub const TO_COORDINATOR_BYTES_MAX: usize = 1 << 20;
/// Most capabilities that either side may name.
pub const CAPABILITIES_MAX: usize = 64;
/// How often a provider says that it lives.
pub const HEARTBEAT_MS: u64 = 10_000;
/// How long the coordinator waits for a sign of life before it gives a provider up.
pub const HEARTBEAT_LOST_MS: u64 = 25_000;

/// What a coordinator says to a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProvider {
    /// The first word on a new socket: sign this.
    Challenge {
        /// Chain id of the network's money: 84530 embedded, 8453 Base.
        network: u64,
        /// The coordinator's name, which the statement must repeat.
        coordinator: String,
        /// Good once, for 60 seconds.
        nonce: Nonce,
        /// What this coordinator understands.
        capabilities: Capabilities,
    },
    /// You are in.
    Registered {
        /// Who you are here.
        provider: ProviderId,
        /// Which session this is; all earlier ones are void.
        epoch: Epoch,
        /// How often to send a heartbeat.
        heartbeat_ms: u64,
        /// What both ends understand.
        capabilities: Capabilities,
    },
    /// You are not in; the socket closes after this.
    Rejected {
        /// Why.
        reason: RejectReason,
        /// When it may be worth another try; `None`: not before something changes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// Run this.
    Run {
        /// Which try at the job this is.
        attempt: Attempt,
        /// The job. Boxed: other messages are small.
        job: Box<Job>,
        /// The group that shall answer, whose head this node is; by a model that it has whole when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupId>,
    },
    /// Open this and run it.
    RunSealed {
        /// Which try at the job this is: there is but one, for nobody else can open it.
        attempt: Attempt,
        /// The job. Boxed: other messages are small.
        job: Box<SealedJob>,
        /// As of [`ToProvider::Run`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupId>,
    },
    /// Nobody waits for this any more.
    Cancel {
        /// The job.
        job: JobId,
        /// The try.
        attempt: Attempt,
    },
    /// Finish what you have; no new jobs come.
    Drain,
    /// Hold these layers of a model.
    LoadShard(LoadShard),
    /// Link with the other shards, anew.
    LinkShard(LinkShard),
    /// Let layers go.
    UnloadShard(UnloadShard),
    /// A message of yours has a type that is unknown here.
    Unsupported {
        /// The type, cut to 64 bytes.
        of: String,
    },
}

/// What a provider says to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToCoordinator {
    /// The answer to the challenge. Boxed: it comes once, the others by the thousand.
    Register(Box<Register>),
    /// I live, and this is how busy I am.
    Heartbeat {
        /// How busy.
        load: Load,
        /// The operator's cap, which may change while running.
        memory_cap: Bytes,
        /// What is served now.
        offers: Vec<ModelOffer>,
    },
    /// The prompt is counted and fits; tokens follow once it is read.
    Accepted {
        /// The job.
        job: JobId,
        /// The try.
        attempt: Attempt,
        /// Tokens of the rendered prompt, so that a job that is cut short can be charged.
        prompt: TokenCount,
    },
    /// More of an answer: under load several tokens in one message.
    Chunk(Chunk),
    /// More of an answer that only its user can read.
    SealedChunk(SealedChunk),
    /// The job ended here.
    Finished {
        /// The job.
        job: JobId,
        /// The try.
        attempt: Attempt,
        /// How.
        outcome: Outcome,
    },
    /// No new jobs, please; what runs will end.
    Draining,
    /// Layers are in memory, and a worker listens.
    ShardReady(ShardReady),
    /// Layers are not held, or not any more.
    ShardFailed(ShardFailed),
    /// All links of this shard stand.
    ShardLinked(ShardLinked),
    /// A link of this shard does not stand, or not any more.
    ShardLost(ShardLost),
    /// What this node lends to groups, and how its shards do.
    ShardReport(ShardReport),
    /// A message of yours has a type that is unknown here.
    Unsupported {
        /// The type, cut to 64 bytes.
        of: String,
    },
}

/// A provider's registration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// What was signed.
    pub statement: NodeStatement,
    /// Ed25519 over the statement's canonical bytes (`ram-crypto`, `identity::Statement`).
    pub signature: Signature,
    /// The node and what it offers; its name and wallet must equal the statement's.
    pub spec: ProviderSpec,
    /// How busy it is.
    pub load: Load,
    /// What it understands.
    pub capabilities: Capabilities,
}

/// The fields of the statement that binds a node's keys, wallet and name to one coordinator and one nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatement {
    /// Chain id of the challenge.
    pub network: u64,
    /// Name of the coordinator that challenged.
    pub coordinator: String,
    /// Its nonce.
    pub nonce: Nonce,
    /// The node's Ed25519 key, which signs.
    pub node_key: NodeKey,
    /// The X25519 key to which prompts are sealed.
    pub e2e_key: E2eKey,
    /// Where earnings go.
    pub wallet: Option<WalletAddress>,
    /// The node's name.
    pub name: NodeName,
    /// After this the statement is void.
    pub expires_at: Timestamp,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The job.
    pub job: JobId,
    /// The try.
    pub attempt: Attempt,
    /// 0, 1, 2, …: a doubled or lost message shows.
    pub seq: u32,
    /// Tokens written since the chunk before, hidden ones included.
    pub tokens: TokenCount,
    /// What the user sees.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub content: PromptText,
    /// What the model thought (`<think>`).
    #[serde(default, skip_serializing_if = "is_empty")]
    pub reasoning: PromptText,
    /// Functions that the model called, each whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Log-probabilities of the content's tokens, when they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

fn is_empty(text: &PromptText) -> bool {
    text.as_str().is_empty()
}

/// Why a provider is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The statement names another network.
    #[error("the statement is for another network")]
    WrongNetwork,
    /// The statement names another coordinator.
    #[error("the statement is for another coordinator")]
    WrongCoordinator,
    /// The nonce is not one of ours, was used, or is older than 60 seconds.
    #[error("the nonce is unknown, used or too old; connect again for a new one")]
    BadNonce,
    /// The statement has expired; is the node's clock right?
    #[error("the statement has expired; check this machine's clock")]
    Expired,
    /// The signature does not fit the statement, or a key in it is weak.
    #[error("the signature does not fit the statement")]
    BadSignature,
    /// Name, wallet or offers differ from what was signed, or are beyond the limits.
    #[error("the registration is at odds with its statement or over a limit")]
    BadSpec,
    /// No capability in common that a job could use.
    #[error("this version of the software has no capability in common with the coordinator; update it")]
    NoCommonCapability,
    /// The coordinator has as many providers as it can hold.
    #[error("the coordinator is full")]
    Full,
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    Draining,
    /// Something other than a registration came first.
    #[error("the first message must be a registration")]
    NotRegistered,
}

/// Fixed bytes on the wire as lower-case hexadecimal digits.
macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps the bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let mut bytes = [0; $len];
                ram_core::id::decode_hex(&text, &mut bytes)
                    .ok_or_else(|| {
                        serde::de::Error::custom(concat!("expected ", $len, " bytes as lower-case hexadecimal digits"))
                    })?;
                Ok(Self(bytes))
            }
        }
    };
}

hex_bytes! {
    /// 32 random bytes that a node signs once.
    Nonce, 32
}
hex_bytes! {
    /// An Ed25519 signature (RFC 8032).
    Signature, 64
}
hex_bytes! {
    /// A public X25519 key (RFC 7748).
    E2eKey, 32
}

/// One thing that an end understands, such as `chat.v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capability(String);

impl Capability {
    /// Plain chat jobs: `run`, `accepted`, `chunk`, `finished`, `cancel`.
    pub const CHAT_V1: &str = "chat.v1";
    /// Layers of a model held together with other nodes: all of [`shard`].
    pub const SHARD_V1: &str = "shard.v1";
    /// Jobs that only their provider can read: `run_sealed` and `sealed_chunk`, in both versions.
    pub const SEALED_V1: &str = "sealed.v1";

    /// Wraps a name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// What an end understands; at most [`CAPABILITIES_MAX`] names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// What this version of the software understands.
    #[must_use]
    pub fn ours() -> Self {
        let names = [Capability::CHAT_V1, Capability::SHARD_V1, Capability::SEALED_V1];
        Self(names.map(Capability::new).into())
    }

    /// What both understand.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).cloned().collect())
    }

    /// Whether `name` is among them.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|capability| capability.0 == name)
    }

    /// Whether there are more than a peer may name.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.0.len() > CAPABILITIES_MAX
    }
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<M> {
    /// One that we know.
    Known(M),
    /// One that a newer peer knows; answer `unsupported` and go on.
    Unknown {
        /// Its type, cut to 64 bytes.
        of: String,
    },
}

/// Why a peer's message was refused. Every variant means: close the socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Longer than its direction allows.
    #[error("a message of {got} bytes is over the limit of {limit}")]
    TooLong {
        /// Bytes that came.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not a JSON object tagged `type`.
    #[error("a message must be a JSON object with a text field `type`")]
    NotTagged,
    /// A known type whose fields do not fit.
    #[error("a message of type `{of}` does not read: line {line}, column {column}")]
    Malformed {
        /// The type.
        of: &'static str,
        /// Line of the first fault.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
}

/// A direction of the control channel: which messages it knows and how long they may be.
pub trait Message: Serialize + DeserializeOwned + closed::Closed {
    /// The values that `type` may have.
    const TYPES: &'static [&'static str];
    /// Longest message in bytes.
    const BYTES_MAX: usize;
}

mod closed {
    /// Two directions, and no third.
    #[expect(unnameable_types, reason = "that is how a trait is kept to itself")]
    pub trait Closed {}
    impl Closed for super::ToProvider {}
    impl Closed for super::ToCoordinator {}
}

impl Message for ToProvider {
    const TYPES: &'static [&'static str] = &[
        "challenge",
        "registered",
        "rejected",
        "run",
        "run_sealed",
        "cancel",
        "drain",
        "load_shard",
        "link_shard",
        "unload_shard",
        "unsupported",
    ];
    const BYTES_MAX: usize = TO_PROVIDER_BYTES_MAX;
}

impl Message for ToCoordinator {
    const TYPES: &'static [&'static str] = &[
        "register",
        "heartbeat",
        "accepted",
        "chunk",
        "sealed_chunk",
        "finished",
        "draining",
        "shard_ready",
        "shard_failed",
        "shard_linked",
        "shard_lost",
        "shard_report",
        "unsupported",
    ];
    const BYTES_MAX: usize = TO_COORDINATOR_BYTES_MAX;
}

/// Reads one text frame.
///
/// # Errors
/// [`ControlError`] when the peer is at fault; the message's words never show in it.
pub fn decode<M: Message>(text: &str) -> Result<Decoded<M>, ControlError> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: String,
    }
    if text.len() > M::BYTES_MAX {
        return Err(ControlError::TooLong { got: text.len(), limit: M::BYTES_MAX });
    }
    if !text.trim_start().starts_with('{') {
        return Err(ControlError::NotTagged); // serde would read a tagged enum from an array, too
    }
    let Tag { r#type: tag } = serde_json::from_str(text).map_err(|_| ControlError::NotTagged)?;
    let Some(&of) = M::TYPES.iter().find(|&&known| known == tag) else {
        return Ok(Decoded::Unknown { of: tag.chars().take(64).filter(|c| !c.is_control()).collect() });
    };
    serde_json::from_str(text).map(Decoded::Known).map_err(|error| ControlError::Malformed {
        of,
        line: error.line(),
        column: error.column(),
    })
}

/// Writes one text frame.
///
/// # Panics
/// Never: every message is plain data, which always has a JSON form.
#[must_use]
pub fn encode<M: Message>(message: &M) -> String {
    serde_json::to_string(message).expect("messages hold no maps with keys other than text or numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_no_error() {
        let decoded = decode::<ToProvider>(r#"{"type":"warp_drive","speed":9}"#);
        assert_eq!(decoded, Ok(Decoded::Unknown { of: "warp_drive".to_owned() }));
    }

    #[test]
    fn an_unknown_field_is_ignored() {
        let decoded = decode::<ToProvider>(r#"{"type":"drain","why":"tired"}"#);
        assert_eq!(decoded, Ok(Decoded::Known(ToProvider::Drain)));
    }

    #[test]
    fn a_known_type_with_wrong_fields_names_the_type_and_no_content() {
        let error = decode::<ToCoordinator>(r#"{"type":"chunk","job":"my secret"}"#).unwrap_err();
        assert!(matches!(error, ControlError::Malformed { of: "chunk", .. }));
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn what_is_no_tagged_object_is_refused() {
        for text in ["", "[]", "{}", "null", r#"{"type":1}"#, "\u{0}", "{", r#"["draining"]"#] {
            assert_eq!(decode::<ToCoordinator>(text), Err(ControlError::NotTagged), "{text:?}");
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_read() {
        let text = " ".repeat(TO_COORDINATOR_BYTES_MAX + 1);
        assert!(matches!(decode::<ToCoordinator>(&text), Err(ControlError::TooLong { .. })));
    }

    #[test]
    fn capabilities_meet_in_what_both_know() {
        let theirs: Capabilities = serde_json::from_str(r#"["chat.v1", "teleport.v3"]"#).unwrap();
        let common = Capabilities::ours().common(&theirs);
        assert!(common.has(Capability::CHAT_V1) && !common.has("teleport.v3"));
    }
}
