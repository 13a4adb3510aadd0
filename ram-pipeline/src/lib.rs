//! One model over many machines.
//!
//! | room | what stands there |
//! |---|---|
//! | [`plan`] | which node holds which layers, what to expect of it, and why not |
//! | [`group`] | the life of a shard group: who loads, who is linked, who steps in for whom |
//! | [`driver`] | the head's part: tokens in, answers out |
//! | [`worker`] | a shard's part: steps in, a batch computed, steps or results out |
//! | [`stage`] | a run of layers, as the pipeline sees it |
//! | [`session`] | what a shard keeps of each session: room, progress, whose tokens |
//! | [`sim`] | driver and workers on a clock of its own: tokens a second before there are machines |
//! | `link` | streams between nodes, and frames over them: memory, TCP, TLS (feature `tokio`), QUIC (feature `iroh`) |
//! | `member` | a node's part in a group, running: all of the above (feature `tokio`) |
//!
//! The crate thinks and, but for these two, does nothing else: no sockets, no clock, no model.

pub mod driver;
pub mod group;
#[cfg(feature = "tokio")]
pub mod link;
mod log;
#[cfg(feature = "tokio")]
pub mod member;
pub mod plan;
pub mod session;
pub mod sim;
pub mod stage;
pub mod worker;
