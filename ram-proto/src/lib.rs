//! The wire of RAM Aggregator: what goes over it, in types, and what is refused on the way in.
//!
//! | module | speaks with |
//! |---|---|
//! | [`blob`] | whoever hands on what it cannot read |
//! | [`control`] | the other end of a provider's session |
//! | [`e2e`] | whoever opens a sealed prompt, or a sealed answer |
//! | [`frame`] | the next shard of a pipeline |
//! | [`openai`] | programs that speak OpenAI's API: requests, answers, streams, errors |
//! | `openapi` (a feature) | programs that read descriptions of an API |
//! | [`rest`] | dashboards and probes: `/api/v1`, `/health`, `/readyz` |
//! | [`routes`] | whoever needs a path |
//! | [`tensor`] | whoever sends numbers in a frame |
//!
//! Bytes in, values out, and back: nothing here opens a socket or reads a clock. What a stranger can make grow has a
//! limit that is checked before memory is taken for it. `vectors/` holds every format as golden JSON, for readers in
//! other languages.

pub mod blob;
pub mod control;
pub mod e2e;
pub mod frame;
pub mod openai;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod rest;
pub mod routes;
pub mod tensor;
