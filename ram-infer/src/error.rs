//! Why a model could not be loaded or run, by whose fault.
//!
//! *The folder is wrong* (most variants: a person must fetch the model again or pick another), *the caller is wrong*
//! (a token outside of the vocabulary, a full cache), *the machine failed* ([`InferError::Device`]). No variant holds
//! a word of a user: prompts and answers never reach an error.

use std::io;

use ram_core::chat::template::TemplateError;
use ram_core::job::Failure;
use ram_core::units::{Bytes, TokenCount};

use crate::constrain::FormatFault;
use crate::device::Device;
use crate::sample::SampleError;

/// Why a model could not be loaded or run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// The folder lacks a file that every model has.
    #[error("the model's folder has no `{file}`")]
    MissingFile {
        /// Its name.
        file: String,
    },
    /// A file is there and cannot be read.
    #[error("`{file}` cannot be read: {kind}")]
    Unreadable {
        /// Its name.
        file: String,
        /// What the operating system answered.
        kind: io::ErrorKind,
    },
    /// A file of the bundled model cannot be written.
    #[error("`{file}` cannot be written: {kind}")]
    Unwritable {
        /// Its name.
        file: String,
        /// What the operating system answered.
        kind: io::ErrorKind,
    },
    /// A file that is read whole is larger than any of its kind.
    #[error("`{file}` has {} bytes, over the limit of {}", size.get(), limit.get())]
    FileTooLarge {
        /// Its name.
        file: String,
        /// Its size.
        size: Bytes,
        /// The most that is read.
        limit: Bytes,
    },
    /// A file that should be JSON is none.
    #[error("`{file}` is not JSON of the kind expected: {problem}")]
    MalformedJson {
        /// Its name.
        file: String,
        /// What the parser met, and where.
        problem: String,
    },
    /// A field that cannot be guessed is not there.
    #[error("`{file}` lacks the field `{field}`")]
    MissingField {
        /// The file's name.
        file: String,
        /// The field, dotted when it is nested.
        field: String,
    },
    /// A field holds what no model could mean.
    #[error("`{file}` has `{field}` = {value}, where {expected} was expected")]
    BadField {
        /// The file's name.
        file: String,
        /// The field, dotted when it is nested.
        field: String,
        /// What it holds, cut to a short text.
        value: String,
        /// What would have been taken.
        expected: String,
    },
    /// A field asks, rightly, for something that this engine does not do.
    #[error("`{file}` asks for `{field}` = {value}, which this engine does not do")]
    Unsupported {
        /// The file's name.
        file: String,
        /// The field, dotted when it is nested.
        field: String,
        /// What it asks for.
        value: String,
    },
    /// A model of another family.
    #[error(
        "models of the type `{model_type}` are not supported: llama, mistral, qwen2, qwen3 and qwen3_moe are, and on \
         the processor qwen3_next, qwen3_5, qwen3_5_moe and deepseek_v3"
    )]
    UnsupportedArchitecture {
        /// The `model_type` of config.json.
        model_type: String,
    },
    /// A safetensors file ends before the bytes that it announces.
    #[error("`{file}` claims {} bytes and has {}: it was cut short", claimed.get(), present.get())]
    Truncated {
        /// The file's name.
        file: String,
        /// Bytes that the header asks for, in all.
        claimed: Bytes,
        /// Bytes that are there.
        present: Bytes,
    },
    /// A safetensors header is longer than any that a model needs.
    #[error("the header of `{file}` claims {} bytes, over the limit of {}", claimed.get(), limit.get())]
    HeaderTooLong {
        /// The file's name.
        file: String,
        /// The length that it claims.
        claimed: Bytes,
        /// The most that is read.
        limit: Bytes,
    },
    /// A safetensors header is not what the format says.
    #[error("the header of `{file}` is malformed: {problem}")]
    MalformedHeader {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The index names a file that is not in the model's folder itself.
    #[error("the index names the shard {shard:?}, which is not a plain file name")]
    ShardOutside {
        /// What the index names.
        shard: String,
    },
    /// Two files, or one file twice, hold a tensor of the same name.
    #[error("the tensor `{tensor}` is stored twice")]
    DuplicateTensor {
        /// Its name.
        tensor: String,
    },
    /// The files lack a tensor that the architecture needs.
    #[error("the tensor `{tensor}` is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// The files hold a tensor that the architecture has no use for: the model is another one than config.json says.
    #[error("the tensor `{tensor}` has no place in this architecture")]
    UnusedTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of another shape than config.json makes it.
    #[error("the tensor `{tensor}` has the shape {actual:?}, where {expected:?} was expected")]
    TensorShape {
        /// Its name.
        tensor: String,
        /// The shape by config.json.
        expected: Vec<usize>,
        /// The shape stored.
        actual: Vec<usize>,
    },
    /// A tensor of an element type that its place does not take.
    #[error("the tensor `{tensor}` has elements of {actual}, where {expected} was expected")]
    TensorDtype {
        /// Its name.
        tensor: String,
        /// What would have been taken.
        expected: &'static str,
        /// The type stored.
        actual: String,
    },
    /// Weights packed in a way that this engine cannot read.
    #[error(
        "`{path}` is quantised as {format}, where affine with 2 to 6 or 8 bits in groups of 32, 64 or 128, mxfp4, nvfp4 and \
         mxfp8 are supported"
    )]
    UnsupportedQuantization {
        /// The module in question, or the field of config.json.
        path: String,
        /// How it is packed.
        format: String,
    },
    /// A token that the model's vocabulary does not have.
    #[error("token {token} is outside of the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// How many tokens there are.
        vocab_size: usize,
    },
    /// A forward pass over nothing.
    #[error("a forward pass needs at least one token")]
    NoTokens,
    /// A cache for more positions than the model was made for.
    #[error("a cache of {} tokens passes the model's context of {}", capacity.get(), context.get())]
    ContextExceeded {
        /// Positions asked for.
        capacity: TokenCount,
        /// Positions that the model takes.
        context: TokenCount,
    },
    /// More positions than the cache was made for.
    #[error("{} more tokens after {} do not fit a cache of {}", tokens.get(), position.get(), capacity.get())]
    CacheOverrun {
        /// Positions that the cache holds.
        position: TokenCount,
        /// Positions to append.
        tokens: TokenCount,
        /// Positions that it was made for.
        capacity: TokenCount,
    },
    /// A cache that another model made.
    #[error("the cache was made for a model of another shape")]
    CacheOfAnotherModel,
    /// The system has no more memory.
    #[error("the system has no {} bytes more for keys and values", wanted.get())]
    NoMemory {
        /// What was asked for.
        wanted: Bytes,
    },
    /// A run of layers that the model does not have.
    #[error("layers up to {end} were asked for, of a model of {layers}")]
    NoSuchLayers {
        /// The end of the run.
        end: u16,
        /// Layers of the model.
        layers: u16,
    },
    /// A part of a model, where only a whole one can be computed.
    #[error("on {device} a model is computed whole")]
    WholeOnly {
        /// The device.
        device: Device,
    },
    /// Logits, from a shard that puts out what the next one takes.
    #[error("this shard has no head and gives no logits")]
    NoHead,
    /// Numbers for a shard that takes tokens, none for one that takes numbers, or too many or few.
    #[error("a shard was given {actual:?} numbers to go on from, where {expected:?} were expected")]
    ShardInput {
        /// Numbers that it takes beside its tokens.
        expected: Option<usize>,
        /// Numbers given.
        actual: Option<usize>,
    },
    /// tokenizer.json is none, or one that its own library cannot use.
    #[error("`tokenizer.json` is no tokenizer: {problem}")]
    MalformedTokenizer {
        /// What the parser met.
        problem: String,
    },
    /// The chat template is broken, or refuses the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The model has no chat template: it continues texts and knows no conversations.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The vocabulary has no tokens for the prompt.
    #[error("the model's vocabulary cannot write this prompt")]
    NotEncodable,
    /// The answer cannot be held to its format.
    #[error(transparent)]
    Format(#[from] FormatFault),
    /// The logits leave no token to pick.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The system gives the engine no thread.
    #[error("no thread can be started: {kind}")]
    Thread {
        /// What the operating system answered.
        kind: io::ErrorKind,
    },
    /// The machine has no such device, or this build leaves it out.
    #[error("no {device} device can be opened here")]
    DeviceUnavailable {
        /// The device asked for.
        device: Device,
    },
    /// The device, or the mathematics on it, failed.
    #[error("the device failed: {problem}")]
    Device {
        /// What it said.
        problem: String,
    },
}

impl InferError {
    /// What candle met, as a failure of the device.
    #[expect(clippy::needless_pass_by_value, reason = "stands in map_err")]
    pub(crate) fn device(error: candle_core::Error) -> Self {
        Self::Device { problem: error.to_string() }
    }
}

impl InferError {
    /// How a request ends that it befalls in the middle of its answer.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Format(fault) => (*fault).into(),
            _ => Failure::Internal,
        }
    }
}
