//! OpenAI's API as this network speaks it: shared by the gateway and by a provider's local server.
//!
//! A request comes in by [`ChatRequest::parse`]; every field known here is honoured or refused by name. An answer goes
//! out as one [`ChatCompletion`], or as [`ChatCompletionChunk`]s framed by [`sse`]; both start from a
//! [`CompletionHead`]. Whatever goes wrong is an [`ApiError`].

mod chunk;
mod error;
mod format;
mod heard;
mod json;
mod message;
mod models;
mod request;
mod response;
mod serving;
pub mod sse;
mod stream;
mod tools;

pub use chunk::{ChatCompletionChunk, ChunkChoice, ChunkObject, Delta, ToolCallDelta};
pub use error::{ApiError, ErrorBody, ErrorDetail, ErrorType, RETRY_AFTER_MAX};
pub use format::SCHEMA_NAME_BYTES_MAX;
pub use heard::Heard;
pub use json::{DEPTH_MAX, VALUES_MAX};
pub use message::{CALL_ID_BYTES_MAX, CALLS_MAX, CONTENT_BYTES_MAX, MESSAGES_MAX, NAME_CHARS_MAX};
pub use models::{ListObject, ModelCard, ModelList, ModelObject};
pub use request::{
    BODY_BYTES_MAX, ChatRequest, DEFAULT_MAX_TOKENS, Delivery, IGNORED_FIELD_BYTES_MAX, IGNORED_FIELDS_MAX,
    LOGIT_BIAS_MAX, N_MAX, ParsedChat, STOP_BYTES_MAX, STOPS_MAX, TOP_LOGPROBS_MAX,
};
#[cfg(feature = "openapi")]
pub(crate) use request::{IDENTIFIER_BYTES_MAX, METADATA_MAX};
pub use response::{
    AssistantMessage, AssistantRole, CalledFunction, ChatCompletion, Choice, ChoiceLogprobs, CompletionHead,
    CompletionId, CompletionIdError, CompletionObject, CompletionTokensDetails, CompletionUsage,
    LogprobEntry, MessageToolCall, ServedBy, ToolCallKind, TopLogprob, XramFields,
};
pub use serving::{
    BODY_BYTES_FREE, BODY_WITHIN, BodyIntake, DISCARD_BYTES_MAX, DISCARD_WITHIN, HEAD_BYTES_MAX, HEAD_WITHIN,
    HEADERS_MAX, HELD_BACK, IGNORED_FIELDS_HEADER, KEEP_ALIVE_EVERY, OpenStream, WRITE_STALL,
};
pub use stream::{AnswerPiece, Asked, StreamedAnswer, WholeAnswer};
pub use tools::{
    SCHEMA_DEPTH_MAX, TEMPLATE_KWARG_NAME_BYTES_MAX, TEMPLATE_KWARGS_BYTES_MAX, TEMPLATE_KWARGS_MAX,
    TOOLS_BYTES_MAX, TOOLS_MAX, ToolChoice,
};
